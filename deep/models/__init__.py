"""The networks, by name, and the user's own ones, by file.

`build_model("preact18", num_classes=10)` builds a network of the registry `MODELS`;
`resolve_model` takes a registry name or `path/to/file.py:factory`.
"""

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from deep.models.from_file import call_with_named, model_from_file
from deep.models.gin import GIN
from deep.models.lenet import LeNet
from deep.models.mlp import MLP
from deep.models.preact_resnet import PreActResNet
from deep.models.vgg import VGG
from deep.models.wide_resnet import WideResNet
from theory.errors import InputError, unknown

# Each takes num_classes and in_channels, and where they mean something image_size and width.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "preact18": partial(PreActResNet, 18),
    "preact34": partial(PreActResNet, 34),
    "preact50": partial(PreActResNet, 50),
    "preact101": partial(PreActResNet, 101),
    "wrn28-10": partial(WideResNet, 28),
    "lenet": LeNet,
    "vgg11": partial(VGG, 11),
    "vgg13": partial(VGG, 13),
    "mlp": MLP,
    "mlp-bias-free": partial(MLP, bias=False),
    "gin": GIN,  # for graphs: in_channels is the length of a node's feature vector
    "gin-bias-free": partial(GIN, bias=False),
}


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    width: int | None = None,
) -> nn.Module:
    """A freshly initialised network of the registry, in train mode.

    Inputs are (batch, in_channels, height, width) or, for gin, `deep.data.graph_batches.Graphs`;
    outputs are logits (batch, num_classes).

    Args:
        name: A key of `MODELS`.
        num_classes: Number of logits.
        in_channels: Channels of the images, or length of a node's feature vector.
        image_size: Side of square images, or (height, width).
        width: Channels of the first stage (PreActResNets and VGGs, 64), widening factor (WRN, 10)
            or hidden units (MLP, 128; GIN, 64); None for the number in brackets, which is the
            published one where there is one. Smaller values serve tests and small studies.

    Raises:
        InputError: If the name is unknown, a number is not positive, the images are too small for
            the network, or a width is given to a network that has no such choice.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS, "path/to/file.py:factory")
    size = _height_and_width(image_size)
    numbers = {"num_classes": num_classes, "in_channels": in_channels, "image_size": min(size)}
    if width is not None:
        numbers["width"] = width
        if "width" not in inspect.signature(MODELS[name]).parameters:
            raise InputError(f"{name} has no width to choose: leave width out")
    for argument, number in numbers.items():
        if number < 1:
            raise InputError(f"{argument} is {number}: it must be at least 1")
    return call_with_named(MODELS[name], **{**numbers, "image_size": size})


def resolve_model(
    spec: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int],
    width: int | None = None,
) -> nn.Module:
    """A network by its name in the registry, or the user's own by `path/to/file.py:factory`.

    The user's factory, a function or a class, is called with those of the keywords `num_classes`,
    `in_channels` and `image_size` (always a pair (height, width)) that its signature names, so it
    may take none of them. It must return an `nn.Module`.

    Args:
        spec: A key of `MODELS`, or `path/to/file.py:factory`.
        num_classes: Number of classes in the data.
        in_channels: Channels of the images.
        image_size: Side of square images, or (height, width).
        width: As for `build_model`; your own network's factory chooses its own.

    Raises:
        InputError: As `build_model` and `deep.models.from_file.model_from_file` state, or if a
            width is given to the user's own network.
    """
    size = _height_and_width(image_size)
    if ":" in spec or spec.endswith(".py"):
        if width is not None:
            raise InputError(f"width is for networks of the registry, not for {spec}: leave it out")
        return model_from_file(
            spec, num_classes=num_classes, in_channels=in_channels, image_size=size
        )
    return build_model(
        spec,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        width=width,
    )


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size
