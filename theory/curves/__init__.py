"""Piecewise affine curves carried through a network: the engine of `theory.segments`.

On a segment x + a (x' − x) a ReLU network is a piecewise affine function of a. `Curves` is a tensor
whose every example is such a curve, known by its values at vertices. It passes
through ordinary module code: PyTorch hands every operation to `Curves.__torch_function__`.

    affine operations   act on the vertices as they are, one batch row a vertex;
    ReLU and its like   first insert vertices where units meet their kink, and set them to it there;
    maxima              first insert vertices at the corners of the upper envelope;
    several curves      are first interpolated onto the union of their vertices, which is exact;
    everything else     is refused by name: nothing is guessed.

To the network a batch of curves has the shape of a batch of examples, so that `len(x)`, views and
constants with one row an example keep their meaning whatever the number of vertices. An operation
that treats the examples of a batch together is refused.
"""

from theory.curves import affine, kinked  # noqa: F401 - they fill the table of rules
from theory.curves.tensor import Curves
from theory.curves.vertices import MOST_SEGMENTS, TICKS, Grid, TooManyVertices

__all__ = ["MOST_SEGMENTS", "TICKS", "Curves", "Grid", "TooManyVertices"]
