"""What a symbolic identity is, and the algebra that proves one.

The rules in `Identity.residual` are those that the identities of `theory.symbolic` need: Gamma
functions, exponentials and logarithms, rational functions, step functions and signs. A residual
that they do not bring to zero proves nothing; a numeric look at both sides (`Identity.at`) tells a
false identity from one that they cannot prove.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from theory.errors import InputError

Side: TypeAlias = sp.Expr | sp.MatrixBase


@dataclass(frozen=True)
class Identity:
    """Two expressions that are claimed to be equal.

    Attributes:
        name: Short, in words.
        statement: The formula as the theory writes it, in LaTeX.
        left: A scalar or a matrix; derivatives may stand unevaluated.
        right: Of the same shape.
    """

    name: str
    statement: str
    left: Side
    right: Side

    def residual(self) -> Side:
        """left − right, simplified: zero where the identity is proved."""
        difference = self.left - self.right
        if isinstance(difference, sp.MatrixBase):
            return difference.applyfunc(_simplified)
        return _simplified(difference)

    def holds(self) -> bool:
        """Whether the residual is zero, in every entry."""
        return bool(sp.Matrix([self.residual()]).is_zero_matrix)

    def latex(self) -> str:
        """Both sides, as they are, joined by an equals sign."""
        return f"{sp.latex(self.left)} = {sp.latex(self.right)}"

    def at(self, values: Mapping[str, float | sp.Lambda]) -> tuple[np.ndarray, np.ndarray]:
        """Both sides as float64 arrays, each name of a symbol or function given a value.

        Args:
            values: Numbers for symbols and `sympy.Lambda` for undefined functions, by name; names
                that do not occur are ignored.

        Raises:
            InputError: If a name that occurs has no value.
        """
        return _evaluated(self.left, values), _evaluated(self.right, values)


def _evaluated(side: Side, values: Mapping[str, float | sp.Lambda]) -> np.ndarray:
    functions = {applied.func for applied in side.atoms(AppliedUndef)}
    symbols = side.free_symbols
    missing = sorted({str(s) for s in functions | symbols} - set(values))
    if missing:
        raise InputError(f"no value is given for {', '.join(missing)}: add them to `values`")
    # Functions first: a derivative must be taken before its variable becomes a number.
    side = side.subs({f: values[str(f)] for f in functions}).doit()
    return np.array(side.subs({s: values[str(s)] for s in symbols}).evalf(), dtype=float)


def _simplified(difference: sp.Expr) -> sp.Expr:
    """Rules that suffice here, in place of a general simplification and its cost."""
    e = difference.doit()
    if e.has(sp.beta, sp.RisingFactorial):
        e = sp.powsimp(sp.gammasimp(e.rewrite(sp.gamma)))
    # max(0, z) = z θ(z) and |z| = z sign z; sign² = 1 but at 0, where nothing here is smooth.
    e = e.replace(sp.Max, lambda *z: sp.Max(*z).rewrite(sp.Heaviside))
    e = sp.expand(e.replace(sp.Abs, lambda z: z * sp.sign(z)).replace(sp.log, _split_log))
    above, below = sp.fraction(sp.cancel(e))
    even = sp.expand(above).replace(
        lambda p: p.is_Pow and p.base.func == sp.sign, lambda p: p.base ** (p.exp % 2)
    )
    return sp.cancel(even / below)


def _split_log(argument: sp.Expr) -> sp.Expr:
    """Logarithm of a positive ratio as a difference, log exp z as z."""
    return sp.expand_log(sp.log(sp.factor(argument)), force=True)
