"""MixupE in its published forms, and with the exact term in the place of its approximation.

Zou, Verma et al., "MixupE", UAI 2023. All forms add to the `Mixup` loss of the batch a penalty on
the CLEAN inputs, taken from a second, separate forward pass (one pass over clean and mixed inputs
together would change the statistics of batch norm: another algorithm), and rescale:

    total = η̂ (L_mix + η E[a] P),      η̂ = |L_mix| / |L_mix + η E[a] P|, held constant

E[a] is the mean of a = 1 − λ under the relabelled law of Theorem 1,
α/(α+β)·Beta(α+1, β) + β/(α+β)·Beta(β+1, α), which is α/(2α+1) for α = β. η̂ is a constant in
differentiation (the authors' published code detaches it, the talk does not say), so the VALUE of
the loss is always ±L_mix, and only the direction and length of the gradient change. With
g = ∇h(f) the predicted probabilities, q = (g − y)ᵀ J (x̄' − x), q̂ = (y − g)ᵀ f and n the batch size:

    mixupe-paper        P = 1/n Σ |q̂|                     the talk
    mixupe-official-v1  P = 1/n Σ_{q < τ} q                g − y detached
    mixupe-official-v2  P = 1/n Σ |q|                      g − y detached
    mixupe-official-v3  P = −1/n Σ_{q̂ < τ} q̂              what the published code recommends
    mixupe-official-v4  P = −1/n Σ q̂                      g − y detached
    mixupe-exact        P = 1/n Σ |q|                      nothing detached
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deep.mixup import Lam, Mixup
from deep.processes import mean_over_processes
from theory.errors import InputError
from theory.first_order import coupled_abs_q, first_order, q_hat
from theory.losses import Head, probabilities
from theory.mixing import relabelled_law
from theory.network import derivative_rules, differentiable_kernels
from theory.tangents import value_and_tangent

Statistics = Literal["update", "freeze"]


class MixupE(Mixup):
    """The talk's form, P = 1/n Σ |q̂|.

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss.
        alpha: α > 0.
        beta: β > 0; None for β = α.
        lam: One λ a "batch" or a "sample".
        eta: Strength η ≥ 0 of the penalty.
        tau: τ of the forms that leave out what is not below it; they still divide by n.
        mean: x̄', the mean of the training inputs, for the forms with exact q.
        clean_statistics: Whether the clean pass, like every pass in train mode, updates the running
            statistics of batch and instance norm ("update": two updates a step, as in the published
            code), or leaves them as they were ("freeze").
        generator: A CPU generator, used as in `Mixup`: for equal seeds both mix alike.

    Raises:
        InputError: If a number is out of range, or the mean is missing or of another shape than
            an input.
    """

    needs_mean = False
    mean: Tensor

    def __init__(
        self,
        model: nn.Module,
        head: Head = "softmax",
        alpha: float = 1.0,
        beta: float | None = None,
        lam: Lam | str = "batch",
        *,
        eta: float = 0.001,
        tau: float = 1.0,
        mean: Float[Tensor, "*dims"] | None = None,
        clean_statistics: Statistics | str = "update",
        generator: torch.Generator,
    ):
        super().__init__(model, head, alpha, beta, lam, generator=generator)
        if not 0 <= eta < math.inf:
            raise InputError(f"eta is {eta}: it must be zero or a positive finite number")
        if math.isnan(tau):
            raise InputError("tau is NaN: it must be a number (inf leaves nothing out)")
        if clean_statistics not in ("update", "freeze"):
            raise InputError(f"unknown clean_statistics {clean_statistics!r}: use update or freeze")
        if self.needs_mean and mean is None:
            raise InputError("exact q needs the mean of the training inputs: pass mean")
        self.eta, self.tau, self.clean_statistics = eta, tau, clean_statistics
        self.mean_a = relabelled_law(alpha, beta).moment(1)
        if mean is not None:
            mean = mean.to(next(model.parameters(), mean))  # in the network's type, on its device
        self.register_buffer("mean", mean if self.needs_mean else None, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        mixup_loss = super().forward(x, targets)
        with ExitStack() as stack:
            if self.clean_statistics == "freeze":
                stack.enter_context(frozen_statistics(self.model))
            if self.needs_mean:
                stack.enter_context(differentiable_kernels(self.model))
            penalty = self.penalty(x, targets)
        total = mixup_loss + self.eta * self.mean_a * penalty
        mixed, whole = mean_over_processes(torch.stack([mixup_loss, total]))
        return eta_hat(mixed, whole) * total

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        return q_hat(self.logits(x), targets, self.head).abs().mean()

    def below(self, values: Tensor) -> Tensor:
        """The mean of the values below τ over all of the batch, those left out counting as zero."""
        return torch.where(values >= self.tau, 0.0, values).mean()  # a NaN stays

    def q_of_constant_residual(self, x: Tensor, targets: Tensor) -> Tensor:
        """q with g − y detached: rows of the gradient of ⟨f, g − y⟩ in x, times x̄' − x.

        Through batch norm with batch statistics the rows are those of a coupled gradient: their sum
        is the sum of q, but a single one is not its example's directional derivative.
        """
        self.check_mean(x)
        with derivative_rules(), torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.logits(x)
            residual = (probabilities(logits, self.head) - targets).detach()
            (c,) = torch.autograd.grad(logits, x, residual, create_graph=True)
        return (c * (self.mean - x.detach())).flatten(1).sum(1)

    def check_mean(self, x: Tensor) -> None:
        """Raises InputError if x̄' has another shape than an input."""
        if self.mean.shape != x.shape[1:]:
            raise InputError(
                f"mean has shape {tuple(self.mean.shape)} and one input {tuple(x.shape[1:])}: they "
                "must be the same"
            )


def eta_hat(mixed: Float[Tensor, "*runs"], whole: Float[Tensor, "*runs"]) -> Float[Tensor, "*runs"]:
    """η̂ = |L_mix| / |L_mix + η E[a] P| from the two losses, without a graph."""
    mixed, whole = mixed.detach(), whole.detach()
    # Both vanish at a perfect fit (in round-off): 0/0, and there is nothing to rescale.
    return torch.where(whole == 0, torch.ones_like(whole), (mixed / whole).abs())


class OfficialV1(MixupE):
    """The published code's first variant, P = 1/n Σ_{q < τ} q.

    Unlike the talk: exact q (a second derivative), g − y detached from it, no absolute value, and
    q ≥ τ left out.
    """

    needs_mean = True

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        return self.below(self.q_of_constant_residual(x, targets))


class OfficialV2(MixupE):
    """The published code's second variant, P = 1/n Σ |q|.

    Unlike the talk: exact q (a second derivative), with g − y detached from it.
    """

    needs_mean = True

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        return self.q_of_constant_residual(x, targets).abs().mean()


class OfficialV3(MixupE):
    """The published code's third variant, which it recommends: P = −1/n Σ_{q̂ < τ} q̂.

    Unlike the talk: no absolute value, the opposite sign (it rewards q̂ below τ for growing), and
    q̂ ≥ τ left out.
    """

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        return -self.below(q_hat(self.logits(x), targets, self.head))


class OfficialV4(MixupE):
    """The published code's fourth variant, P = −1/n Σ q̂ with g − y detached.

    Unlike the talk: no absolute value, the opposite sign, and the gradient flows through f alone.
    """

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        logits = self.logits(x)
        residual = (probabilities(logits, self.head) - targets).detach()
        return (residual * logits).sum(1).mean()


class Exact(MixupE):
    """P = 1/n Σ |q|, what the talk's penalty approximates.

    Where batch norm normalises by the batch, q is the batch's own: the derivative of each loss
    while all examples move towards x̄' together. Where a fully connected layer stands before the
    first batch norm and nothing bypasses both, the norm undoes the move: P is zero but for its eps.

    Models of common layers take the fast way of `theory.tangents`; others cost more: double
    backward passes.
    """

    needs_mean = True
    _has_tangents: bool | None = None

    def penalty(self, x: Tensor, targets: Tensor) -> Tensor:
        """P on a clean batch."""
        self.check_mean(x)
        if self._has_tangents is None:
            self._has_tangents = self._try_tangents(x)
        if self._has_tangents:
            logits, tangents = value_and_tangent(self.logits, x, self.mean - x)
            residual = probabilities(logits, self.head) - targets
            return (residual * tangents).sum(1).abs().mean()
        if not _coupled(self.model):
            q = first_order(self.logits, x, targets, self.mean, self.head, create_graph=True).q
            return q.abs().mean()
        return coupled_abs_q(self.logits, x, targets, self.mean, head=self.head) / len(x)

    def _try_tangents(self, x: Tensor) -> bool:
        """Whether every operation of the model has a rule, found by a pass over two examples.

        It leaves the model's buffers and PyTorch's generators as they were: a resumed run tries
        again, where the uninterrupted one does not.
        """
        devices = [x.device] if x.is_cuda else []
        try:
            with _copied_buffers(self.model.modules()), torch.random.fork_rng(devices):
                value_and_tangent(self.logits, x[:2], x[:2])
        except InputError:
            return False
        return True


def _coupled(model: nn.Module) -> bool:
    """Whether examples of a batch interact, through batch norm by the batch's statistics."""
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


@contextmanager
def _copied_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts copies in the place of the modules' own buffers, so that no pass changes any of them.

    Running statistics are not all that such a pass changes: spectral norm iterates its vectors.
    """
    kept = [(module, dict(module._buffers)) for module in modules]
    try:
        for module, buffers in kept:
            copies = {name: None if b is None else b.clone() for name, b in buffers.items()}
            module._buffers.update(copies)
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keeps train-mode batch and instance norm from updating their running statistics.

    Nothing else changes.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # Which updates the statistics that it has in train mode, whatever track_running_stats says.
    instance_norms = [m for m in model.modules() if isinstance(m, _InstanceNorm)]
    try:
        for layer in layers:
            if layer.training:
                layer.track_running_stats = False
        with _copied_buffers(instance_norms):
            yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
