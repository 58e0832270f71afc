"""Recipes: every setting that decides the result of a training run, by name or from a file.

`Config` adds what a run needs beside them: where it goes, and how it is stopped and resumed.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deep.loop import Optimization
from deep.mixup import Lam, LossForm
from deep.mixupe import Statistics
from deep.objective import Objective
from theory.errors import InputError, unknown
from theory.losses import Head
from theory.record import read_text

_LONGEST, _LONGEST_LINE = 2**16, 2**12
BUILT_IN = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimization):
    """What is trained, on what, by which objective, and how it is watched."""

    model: str = "preact18"
    """preact18|34|50|101, wrn28-10, lenet, vgg11|13, mlp, mlp-bias-free, or your own:
    path/to/file.py:factory"""
    width: int | None = None
    """Channels of the first stage (PreActResNet, VGG), widening factor (WRN) or hidden units (MLP);
    the published number if not given"""
    checkpoint: Path | None = None
    """Weights to start from: a safetensors file, or one by torch.save (read as weights only)"""
    data: str = "digits"
    """digits (embedded), cifar10, cifar100, svhn (3 × 32 × 32); speech-small, speech-commands
    (1 × 160 × 101); tables for an MLP, such as iris, optdigits, letter, mnist"""
    objective: Objective = "mixupe-paper"
    """What training minimises"""
    head: Head = "softmax"
    """softmax: cross-entropy; sigmoid: binary cross-entropy on each logit"""
    loss: LossForm = "cross-entropy"
    """erm, mixup, manifold_mixup: cross-entropy, or the published baselines' BCE on softmax"""
    alpha: float = 1.0
    """α of Beta(α, β)"""
    beta: float | None = None
    """β of Beta(α, β); α if not given"""
    lam: Lam = "batch"
    """One λ a batch, or one a sample"""
    eta: float = 0.001
    """Strength of MixupE's penalty"""
    tau: float = 1.0
    """mixupe-official-v1 and -v3: only q (or q̂) below τ count"""
    clean_statistics: Statistics = "update"
    """Whether MixupE's clean pass updates batch norm's running statistics (the published code
    does) or leaves them"""
    crop_padding: int = 0
    """Images: random crops after padding by so many black pixels; 0 for none"""
    flip: bool = False
    """Images: random mirror images"""
    validation: int = 0
    """Training examples held out for validation, classes in proportion, the same for every seed (of
    speech, clips: their speakers stay in training too)"""
    seed: int = 0
    """Of initial weights, order of examples, mixing and augmentation"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: automatic mixed precision; weights stay float32"""
    channels_last: bool = False
    """Memory format of weights and images"""
    compile: bool = False
    """Compile the network with torch.compile"""
    deterministic: bool = True
    """Ask PyTorch for deterministic algorithms, so that a resumed run is the uninterrupted one"""
    log_samples: int = 2000
    """Training examples on which the clean training loss is measured each epoch"""
    check_every: float = 0.0
    """Epochs between checks of q̂ ≈ q on a fixed probe set; 0 for none"""
    check_samples: int = 256
    """Training examples in the probe set, drawn once, classes in proportion"""
    check_gradients: bool = True
    """Compare the parameter gradients of |q| and |q̂| in each check (most of its time)"""

    def check(self) -> None:
        """Raises InputError if a number is out of range."""
        super().check()
        check_seed(self.seed)
        least = {"crop_padding": 0, "validation": 0, "log_samples": 1, "check_samples": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least {bound}")
        if not 0 <= self.check_every < float("inf"):
            raise InputError(f"check_every is {self.check_every}: it must be 0 or positive")


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """Train a network by ERM, Mixup, Manifold Mixup or a form of MixupE."""

    recipe: str | None = None
    """Settings by name or from a .toml file; other flags override them"""
    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    out: Path | None = None
    """The run's folder; runs/train/… if not given"""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder (from the start if there is none)"""
    force: bool = False
    """Resume although the settings have changed"""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints; 0 for none but those on a signal"""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, instead of minutes"""
    keep: int = 3
    """How many checkpoints are kept"""
    debug: bool = False
    """Show the traceback of an error"""

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or a name made of what distinguishes runs."""
        name = f"{Path(self.model).stem}-{self.data}-{self.objective}-seed{self.seed}"
        return self.out or Path("runs") / "train" / name

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as recipe.json holds it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        values = {"recipe": self.recipe, **values, "data_dir": self.data_dir}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def check(self) -> None:
        """Raises InputError if a number is out of range."""
        super().check()
        if self.epochs == 0:
            raise InputError("epochs is 0: there is nothing to train")
        least = {"checkpoint_minutes": 0, "checkpoint_steps": 1, "keep": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < math.inf:
                raise InputError(f"{name} is {value}: it must be at least {bound} and finite")
        if self.force and not self.resume:
            raise InputError("--force is for --resume: add it, or leave --force out")


def check_seed(seed: int) -> None:
    """Raises InputError unless PyTorch, NumPy and scikit-learn all take the seed."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: it must be at least 0 and below 2^32")


def recipe_settings(name: str) -> dict[str, Any]:
    """Settings of a built-in recipe or of a TOML file, those of its `base` included.

    Args:
        name: A name in recipes.toml, or the path of a TOML file whose top level holds the settings;
            its `base` may be a built-in name.

    Returns:
        Flags' names with underscores -> values, unchecked but for the names.

    Raises:
        InputError: Unknown name or key, a file that cannot be read or is no TOML, circular bases.
    """
    built_in = read_toml(BUILT_IN, "recipe")
    if name.endswith(".toml"):
        settings = read_toml(Path(name), "recipe")
    elif name in built_in:
        settings = dict(built_in[name])
    else:
        raise unknown("recipe", name, built_in, "a .toml file")
    seen = [name]
    while "base" in settings:
        base = settings.pop("base")
        if base in seen or base not in list(built_in):
            fault = "leads back to itself" if base in seen else "is no built-in recipe"
            raise InputError(f"recipe {name}: base {base!r} {fault}")
        seen.append(base)
        inherited = dict(built_in[base])
        if settings.get("model", inherited.get("model")) != inherited.get("model"):
            inherited.pop("width", None)  # is that of the base's network
        settings = {**inherited, **settings}
    for key in settings:
        if key not in Recipe.__dataclass_fields__:
            wrong = unknown("key", key, ("base", *Recipe.__dataclass_fields__))
            raise InputError(f"recipe {name}: {wrong}")
    return settings


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """The settings as a user would type them, so that the command line's parser checks them.

    Raises:
        InputError: If a value is a table or list of such, or a text that would be no value there.
    """
    flags: list[str] = []
    for key, value in settings.items():
        flag = key.replace("_", "-")
        for item in value if isinstance(value, list) else [value]:
            text = isinstance(item, str)
            if isinstance(item, list | dict) or (
                text and (item.startswith("--") or not item.isprintable())
            ):
                told = repr(item) if text else f"a {type(item).__name__}"
                raise InputError(f"{key} cannot be {told}: give it a number, word or true or false")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: The file.
        what: What an error calls it.

    Raises:
        InputError: If it cannot be read or is no TOML.
    """
    text = read_text(path, f"{what} ", "name a .toml file")
    # The parser keeps each beginning of a dotted key: memory by the square of the key's length.
    if len(text) > _LONGEST or any(len(line) > _LONGEST_LINE for line in text.splitlines()):
        raise InputError(
            f"{what} {path} has more than {_LONGEST} characters, or {_LONGEST_LINE} in a line: "
            "shorten or break it"
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits, too
        raise InputError(f"{what} {path} is no TOML ({error}): mend it") from error
