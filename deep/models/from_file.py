"""A user's own model, named on the command line as `path/to/file.py:factory`."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from theory.errors import InputError


def call_with_named(factory: Callable[..., Any], **offered: object) -> Any:
    """Calls `factory` with those of the offered keywords that its signature names."""
    names = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in offered.items() if name in names})


def model_from_file(spec: str, **offered: object) -> nn.Module:
    """Imports the file and calls its factory.

    The file is ordinary Python and is run as such, its folder first on the import path as if it had
    been started as a script: name only files that you trust.

    Args:
        spec: `path/to/file.py:factory`, the factory a function or a class.
        **offered: Keywords for the factory; it gets those that its signature names.

    Returns:
        What the factory returned.

    Raises:
        InputError: If the file is missing or fails to import, if it has no such factory, or if the
            factory fails or returns something other than an `nn.Module`.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file or not name:
        raise InputError(f"model {spec!r} names no factory: write path/to/file.py:factory")
    if not path.is_file():
        raise InputError(f"model file {file} does not exist: write path/to/file.py:factory")
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        module = _import_file(path)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise InputError(f"{file} defines no factory {name!r}: {_factories(module)}")
        try:
            model = call_with_named(factory, **offered)
        except Exception as error:
            raise InputError(f"{spec} failed: {_describe(error, path)}") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} returned {type(model).__name__}: a factory must return a torch.nn.Module"
        )
    return model


def _import_file(path: Path) -> ModuleType:
    # A prefix keeps the user's `model.py` from hiding, or being hidden by, an installed package.
    name = f"_model_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model file {path} is not Python source: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path} fails to import: {_describe(error, path)}") from error
    return module


def _describe(error: BaseException, path: Path) -> str:
    """The exception on one line, with the line of `path` that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
        lines.append(error.lineno)
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _factories(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"it defines {', '.join(own)}" if own else "it defines no function or class"
