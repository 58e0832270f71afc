"""Weights of a model to and from a file, without ever running what the file says."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from theory.errors import InputError
from theory.record import check_regular, reason, write_atomically


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Writes the model's parameters and buffers as a safetensors file, whole or not at all.

    Args:
        model: Its `state_dict` is written, names unchanged.
        path: The file; one that exists is replaced.

    Raises:
        InputError: If the file cannot be written.
    """
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(weights)))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Reads parameters and buffers from a file into the model, all of them or none.

    The file is a safetensors file, or one written by `torch.save`, which is read with
    `weights_only=True` and so cannot run code. It holds a state dict, bare or under the key
    "state_dict" or "model"; the prefix "module." that `DataParallel` leaves on every name is
    removed. Weights are converted to the model's type and device.

    Args:
        model: Receives the weights.
        path: The file.

    Raises:
        InputError: If the file is missing, truncated or corrupt, holds something other than
            weights, weights of other names or shapes than the model's, or NaN or an infinity that
            is no constant of the model's. The model is then unchanged.
    """
    path = Path(path)
    own = model.state_dict()
    weights = _strip_prefix(_state_dict(_read(path), path), own)
    _check_names(weights, own, path)
    converted = {}
    for name, mine in own.items():
        theirs = weights[name]
        if not torch.can_cast(theirs.dtype, mine.dtype):
            raise InputError(
                f"checkpoint {path}: {name} is {theirs.dtype}, which does not convert to the "
                f"model's {mine.dtype}: name the model it was saved from"
            )
        converted[name] = theirs.to(mine.dtype)
        # An infinity that is the model's own is a constant, as in a mask of attention.
        constant = mine.isinf() & (mine == converted[name].to(mine.device))
        if not bool((converted[name].isfinite() | constant.cpu()).all()):
            raise InputError(
                f"checkpoint {path}: {name} holds NaN or infinity: take one from before training "
                "diverged"
            )
    model.load_state_dict(converted)


def _read(path: Path) -> object:
    """What the file holds, on the CPU; its first bytes, not its name, tell the format."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist: check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"cannot read checkpoint {path}: {reason(error)}") from error
    if head[8:] == b"{":  # safetensors: the header's length in eight bytes, then the header
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            # Besides its own exception, whatever torch makes of a type or shape in the header.
            raise _damaged(path) from error
    if not head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle from before torch 1.6
        raise _damaged(path)
    return load_tensors(path)


def load_tensors(path: Path) -> object:
    """What `torch.save` wrote, on the CPU: tensors, numbers, strings and containers of them.

    Nothing else is made of what the file says, and nothing in it is run.

    Raises:
        InputError: If the file is damaged or holds anything else.
    """
    try:
        # From memory: of a file on disk torch reads into as much memory as a text in it claims.
        content = io.BytesIO(path.read_bytes())
        if content.getbuffer()[:2] == b"PK":
            _check_members(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a protocol of pickle that is not torch's own
            return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is damaged or holds Python objects other than tensors, which could "
            "run code: save the model's state_dict alone"
        ) from error
    except Exception as error:
        # A damaged file can break the parser anywhere, and it promises no type of exception.
        raise _damaged(path) from error


def _check_members(content: io.BytesIO) -> None:
    """Raises ValueError if the archive claims to hold more than it has bytes.

    torch.save stores its members as they are; torch.load would unpack those that are not.
    """
    with zipfile.ZipFile(content) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(content.getbuffer()):
            raise ValueError("its members are larger than the file")
    content.seek(0)


def _damaged(path: Path) -> InputError:
    return InputError(f"checkpoint {path} is truncated or corrupt, or no checkpoint: copy it again")


def _state_dict(content: object, path: Path) -> Mapping[str, Tensor]:
    """The mapping of names to tensors in what a file holds."""
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"checkpoint {path} holds no weights but {type(content).__name__}: save the model's "
            "state_dict"
        )
    for name, value in content.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(name, str) or not dense:
            raise InputError(
                f"checkpoint {path}: entry {name!r} is {type(value).__name__}, no dense tensor: "
                "save the model's state_dict alone, or under the key 'state_dict'"
            )
    return content


def _strip_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    prefix = "module."
    if all(name.startswith(prefix) for name in weights) and not all(
        name.startswith(prefix) for name in own
    ):
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _check_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Raises unless names and shapes are the model's."""
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    faults = [
        f"{len(names)} {kind} ({', '.join(map(repr, names[:3]))}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if faults:
        raise InputError(
            f"checkpoint {path} is of another model: of its tensors {' and '.join(faults)}; "
            "name the model it was saved from"
        )
    differing = [name for name in own if weights[name].shape != own[name].shape]
    if differing:
        first = differing[0]
        raise InputError(
            f"checkpoint {path}: {first} has shape {tuple(weights[first].shape)}, the model's has "
            f"{tuple(own[first].shape)} ({len(differing)} differ): build the model with the "
            "classes, channels and image size it was trained with"
        )
