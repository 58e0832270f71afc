"""White-box attacks in the ∞-norm: what a network makes of images changed against it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deep.augment import uniforms
from theory.errors import InputError
from theory.losses import Head, as_targets, loss
from theory.network import evaluating

EPSILON = 8 / 255


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    labels: Int[Tensor, " samples"],
    *,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    epsilon: float = EPSILON,
    head: Head = "softmax",
    batch_size: int = 256,
) -> Float[Tensor, "samples channels height width"]:
    """Fast gradient sign method: p + ε·sign(∇ℓ), clipped to [0, 1], in pixel units.

    Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
    Arguments, result and errors are those of `pgd`, of which it is the case of one step of size ε
    from the image itself.
    """
    return pgd(
        model, x, labels, mean=mean, std=std, epsilon=epsilon, steps=1, step_size=epsilon,
        seed=None, head=head, batch_size=batch_size,
    )  # fmt: skip


def pgd(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    labels: Int[Tensor, " samples"],
    *,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    epsilon: float = EPSILON,
    steps: int = 10,
    step_size: float = EPSILON / 4,
    seed: int | None = 0,
    head: Head = "softmax",
    batch_size: int = 256,
) -> Float[Tensor, "samples channels height width"]:
    """Projected gradient descent on the negative loss, from a random start.

    With p = x·std + mean in pixel units and the ball B = {p' : |p' − p| ≤ ε, 0 ≤ p' ≤ 1}, each step
    is p' ← projection onto B of p' + step_size·sign(∇ℓ(p')); Madry et al., "Towards deep learning
    models resistant to adversarial attacks", ICLR 2018. The last iterate is returned. Gradients
    are those of evaluation mode; the model is left as it was, its parameters' gradients too.

    Args:
        model: Maps normalised images to logits.
        x: Normalised images; batches of them go to the model's device.
        labels: Class indices, whose loss is raised.
        mean: Of the normalisation, in pixel units of [0, 1].
        std: Likewise.
        epsilon: Radius ε in pixel units of [0, 1].
        steps: How many.
        step_size: Their size, in pixel units.
        seed: Of the start, uniform on the cube of radius ε and then clipped: a function of seed
            and the image's place in x, whatever the batch size or device. None starts at p.
        head: Which loss.
        batch_size: Images in one pass.

    Returns:
        The attacked images, normalised, on the device and in the type of x.

    Raises:
        InputError: If ε, steps or their size are out of range, or labels outside the classes.
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon is {epsilon}: it is in pixel units, from 0 to 1")
    if steps < 1 or not 0 <= step_size <= 1:
        raise InputError(f"{steps} steps of size {step_size}: at least 1, of size 0 to 1")
    if len(x) == 0:
        return x.clone()
    device = next((p.device for p in model.parameters()), x.device)
    shift, scale = (v.to(device, x.dtype)[:, None, None] for v in (mean, std))
    attacked = []
    with evaluating(model) as f, torch.enable_grad():
        for which in torch.arange(len(x)).split(batch_size):
            pixels = x[which].to(device) * scale + shift
            truth = labels[which].to(device)
            low, high = (pixels - epsilon).clamp(0, 1), (pixels + epsilon).clamp(0, 1)
            moved = pixels
            if seed is not None:
                u = uniforms(which.to(device), pixels[0].numel(), seed=seed, epoch=0)
                moved = pixels + epsilon * (2 * u.T.reshape(pixels.shape) - 1).to(pixels)
            moved = moved.clamp(low, high)
            for _ in range(steps):
                moved.requires_grad_()
                logits = f((moved - shift) / scale)
                targets = as_targets(truth, logits.shape[1], head, dtype=logits.dtype)
                (slope,) = torch.autograd.grad(loss(logits, targets, head).sum(), moved)
                moved = (moved.detach() + step_size * slope.sign()).clamp(low, high)
            attacked.append(((moved - shift) / scale).to(x))
    return torch.cat(attacked)
