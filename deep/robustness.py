"""Command: how trained networks stand deformed images and attacks, and how calibrated they are.

`python -m deep.robustness runs/train/* --data-dir FOLDER` measures run folders of `deep.train` on
the test set as it is, on eight deformations of it (see `deep.deformations`) and under FGSM and PGD
(see `deep.attacks`), and puts the runs of one objective together. A network of your own goes by
`--model --checkpoint --data`. The table is printed; robustness.json holds all numbers.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from deep.attacks import EPSILON, fgsm, pgd
from deep.checkpoint import load_weights
from deep.data.examples import in_proportion
from deep.data.images import ImageData, load_images
from deep.deformations import (
    DEFORMATIONS,
    PUBLISHED,
    PUBLISHED_COLUMNS,
    PUBLISHED_SOURCE,
    Deformation,
    Shear,
    deform,
)
from deep.evaluate import evaluate
from deep.models import resolve_model
from deep.processes import choose_device
from deep.run_folder import RECIPE, WEIGHTS, labels, read_object
from theory.command import run_command
from theory.errors import InputError
from theory.losses import Head
from theory.record import check_writable, command_line, environment, write_json
from theory.report import align

PROG = "python -m deep.robustness"
RECORD = "robustness.json"
CURVES = {
    "rotation": tuple(range(0, 61, 10)),
    "shear": tuple(range(0, 61, 10)),
    "zoom": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
}


@dataclass(frozen=True)
class Config:
    """Accuracy, loss and calibration on deformed and attacked test images."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders of deep.train; or name a network by --model and --checkpoint"""
    model: str | None = None
    """A network's name, or path/to/file.py:factory"""
    width: int | None = None
    """Of that network, as for deep.train"""
    checkpoint: Path | None = None
    """Its weights: a safetensors file, or one by torch.save (read as weights only)"""
    head: Head = "softmax"
    """Its loss"""
    data: str | None = None
    """digits, cifar10, cifar100 or svhn; the runs' own if not given"""
    data_dir: Path | None = None
    """Folder that holds the published files; the runs' own if not given"""
    samples: int | None = None
    """Test images, classes in proportion, the same for all networks; all if not given"""
    fill: Literal["black", "mean"] = "black"
    """Outside a deformed image: black (deformed before normalisation), or the mean colour (deformed
    after normalisation and filled with 0, as the published code does)"""
    shear: Shear = "tangent"
    """Shear by an angle φ: by tan φ, or by sin φ with the width stretched by 1/cos φ"""
    curves: bool = False
    """Measure accuracy against angle and zoom besides, on a grid"""
    epsilon: float = EPSILON
    """Radius of the attacks in the ∞-norm, in pixel units of [0, 1]; 0 for no attacks"""
    attack_steps: int = 10
    """Steps of PGD"""
    step_size: float | None = None
    """Of PGD, in pixel units; a quarter of epsilon if not given"""
    seed: int = 0
    """Of the angles and of PGD's starts, for all networks alike"""
    batch_size: int = 256
    """Images in one pass"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    out: Path = Path("runs") / "robustness"
    """Folder for robustness.json"""
    debug: bool = False
    """Show the traceback of an error"""

    def check(self) -> None:
        """Raises InputError if flags contradict each other or a number is out of range."""
        if self.runs and (self.model or self.checkpoint):
            raise InputError("run folders and --model are two ways: use one of them")
        if not self.runs and not (self.model and self.checkpoint and self.data):
            raise InputError("name run folders, or all of --model, --checkpoint and --data")
        least = {"samples": 1, "attack_steps": 1, "batch_size": 1, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} is {value}: it must be at least {bound}")
        if self.seed >= 2**63:
            raise InputError(f"seed is {self.seed}: it must be below 2^63")
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}: it is in pixel units, from 0 to 1")


@dataclass(frozen=True)
class Candidate:
    """One network to measure, `recipe` holding at least model, width, data, data_dir, seed."""

    name: str
    weights: Path
    recipe: Mapping[str, Any]


def candidates(config: Config) -> list[Candidate]:
    """The networks that the flags name.

    Raises:
        InputError: If a folder is no finished run, stands twice, or the runs differ in their data.
    """
    if not config.runs:
        recipe = {
            "model": config.model, "width": config.width, "head": config.head, "data": config.data,
            "data_dir": config.data_dir, "objective": Path(str(config.checkpoint)).stem, "seed": 0,
        }  # fmt: skip
        return [Candidate(str(config.checkpoint), Path(str(config.checkpoint)), recipe)]
    found = []
    for folder in config.runs:
        recipe = read_object(folder / RECIPE)
        missing = {"model", "width", "data", "data_dir", "objective", "seed"} - recipe.keys()
        if missing:
            raise InputError(
                f"{folder / RECIPE} lacks {', '.join(sorted(missing))}: is it a run's?"
            )
        kinds = {"model": str, "width": int | None, "data": str, "objective": str, "seed": int}
        wrong = [name for name, kind in kinds.items() if not isinstance(recipe[name], kind)]
        if wrong:
            raise InputError(
                f"{folder / RECIPE}: {wrong[0]} is {recipe[wrong[0]]!r}: restore what was there"
            )
        if not (folder / WEIGHTS).exists():
            raise InputError(f"{folder} has no {WEIGHTS}: let its training end first")
        one_case = {"data": str(recipe["data"]).casefold()}  # deep.train takes a name in any
        found.append(Candidate(str(folder), folder / WEIGHTS, {**recipe, **one_case}))
    if len({run.weights.resolve() for run in found}) < len(found):
        raise InputError("a run stands twice: name each once")
    sets = {run.recipe["data"] for run in found}
    if config.data is None and len(sets) > 1:
        raise InputError(f"the runs were trained on {', '.join(sorted(sets))}: compare one set's")
    return found


def test_images(config: Config, data: ImageData, device: torch.device) -> tuple[Tensor, Tensor]:
    """The test images and labels that all networks are measured on, on the device.

    Raises:
        InputError: If more are asked for than there are.
    """
    x, y = data.x_test, data.y_test
    if config.samples is not None:
        chosen, _ = in_proportion(y, config.samples, seed=0)
        x, y = x[chosen], y[chosen]
    return x.to(device), y.to(device)


def measure(
    model: nn.Module, x: Tensor, y: Tensor, data: ImageData, config: Config, head: Head
) -> Iterator[tuple[str, dict[str, float]]]:
    """One test set after another: its name, and accuracy, its standard error, NLL and ECE.

    Curves' points are named "rotation=10" and so on; their zooms and angles are the same for all
    images, angles with both signs, each for half of the images (those of even and odd number).
    """
    mean, std = torch.tensor(data.mean).to(x), torch.tensor(data.std).to(x)
    fill = -mean / std if config.fill == "black" else torch.zeros_like(mean)
    numbers = torch.arange(len(x), device=x.device)

    def deformed(deformation: Deformation, which: Tensor = numbers) -> Tensor:
        parts = which.split(config.batch_size)
        return torch.cat([
            deform(x[part], deformation, part, fill=fill, seed=config.seed, shear=config.shear)
            for part in parts
        ])  # fmt: skip

    def on_grid(kind: Any, amount: float) -> Tensor:
        both = torch.empty_like(x)
        for start, sign in ((0, 1), (1, 1 if kind == "zoom" else -1)):
            law = Deformation("", kind, sign * amount, sign * amount)
            both[start::2] = deformed(law, numbers[start::2])
        return both

    def attacked(attack: Callable[..., Tensor], **options: Any) -> Tensor:
        return attack(
            model, x, y, mean=mean, std=std, epsilon=config.epsilon, head=head,
            batch_size=config.batch_size, **options,
        )  # fmt: skip

    sets: dict[str, Callable[[], Tensor]] = {"clean": lambda: x}
    for law in DEFORMATIONS:
        sets[law.name] = lambda law=law: deformed(law)  # type: ignore[misc]
    if config.epsilon > 0:
        size = config.epsilon / 4 if config.step_size is None else config.step_size
        sets["FGSM"] = lambda: attacked(fgsm)
        sets["PGD"] = lambda: attacked(
            pgd, steps=config.attack_steps, step_size=size, seed=config.seed
        )
    if config.curves:
        for kind, amounts in CURVES.items():
            for amount in amounts:
                sets[f"{kind}={amount:g}"] = lambda k=kind, a=amount: on_grid(k, a)  # type: ignore[misc]
    for name, images in sets.items():
        found = evaluate(model, images(), y, head=head, batch_size=config.batch_size)
        accuracy = 1 - found.error
        yield (
            name,
            {
                "accuracy": accuracy,
                "accuracy_se": math.sqrt(accuracy * found.error / len(y)),
                "nll": found.loss,
                "ece": found.calibration_error,
            },
        )


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one label together.

    Args:
        runs: Each with `label`, `seed` and `measures` (name of a test set -> numbers).

    Returns:
        One dict a label, in order of first appearance: `label`, `seeds`, and `measures`: name of a
        test set -> number's name -> {mean, sd}; sd has n − 1 in its denominator and is NaN for a
        single run. `accuracy` has `se` besides, the mean's standard error from drawing test
        images, as if the runs' errors on an image went together (their mean standard error).
    """
    groups = []
    for label in dict.fromkeys(run["label"] for run in runs):
        own = [run for run in runs if run["label"] == label]
        measures: dict[str, Any] = {}
        for name in own[0]["measures"]:
            table = {k: [run["measures"][name][k] for run in own] for k in own[0]["measures"][name]}
            se = float(np.mean(table.pop("accuracy_se")))
            measures[name] = {
                k: {
                    "mean": float(np.mean(v)),
                    "sd": float(np.std(v, ddof=1)) if v[1:] else math.nan,
                }
                for k, v in table.items()
            }
            measures[name]["accuracy"]["se"] = se
        seeds = [run["seed"] for run in own]
        groups.append({"label": label, "seeds": seeds, "measures": measures})
    return groups


def table(record: Mapping[str, Any]) -> str:
    """Accuracy, NLL and ECE: one row a test set, one column a group of runs."""
    groups, published = record["groups"], record["published"]
    rows = [name for name in groups[0]["measures"] if "=" not in name]
    parts = []
    for number, title, scale, digits in (
        ("accuracy", "accuracy [%]", 100, 2),
        ("nll", "NLL [nats]", 1, 3),
        ("ece", "ECE [%]", 100, 2),
    ):
        columns = [f"talk: {name}" for name in published["columns"]] if number == "accuracy" else []
        lines = [[title, *(f"{g['label']} ({len(g['seeds'])})" for g in groups), *columns]]
        for name in rows:
            cells = []
            for group in groups:
                found = group["measures"][name][number]
                spread = "" if math.isnan(found["sd"]) else f" ± {scale * found['sd']:.{digits}f}"
                cells.append(f"{scale * found['mean']:.{digits}f}{spread}")
            talk = published["accuracy"].get(name, ["–"] * len(columns)) if columns else []
            lines.append([name, *cells, *map(str, talk)])
        parts.append("\n".join(align(lines)))
    settings = record["settings"]
    errors = [g["measures"][name]["accuracy"]["se"] for g in groups for name in rows]
    notes = [
        f"(n): runs, mean ± standard deviation over their seeds; {record['samples']} test images "
        f"of {record['data']}: standard error of an accuracy up to {100 * max(errors):.2f} %",
        f"outside a deformed image: {settings['fill']}; shear: {settings['shear']}; attacks: "
        f"ε = {settings['epsilon']:.4g} in pixel units, PGD of {settings['attack_steps']} steps; "
        "ECE over 15 intervals",
    ]
    if published["columns"]:
        notes.append(f"talk: {published['source']}")
    return "\n\n".join([*parts, "\n".join(notes)])


def run(config: Config) -> int:
    """Loads, measures, prints, writes."""
    config.check()
    device = choose_device(config.device)
    found = candidates(config)
    name = config.data or str(found[0].recipe["data"])
    names = labels([candidate.recipe for candidate in found])
    pairs = [(label, c.recipe["seed"]) for label, c in zip(names, found, strict=True)]
    if len(set(pairs)) < len(pairs):
        twice = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise InputError(f"two runs of {twice[0]} have seed {twice[1]}: they are no two draws")
    check_writable(config.out)
    folder = config.data_dir or found[0].recipe["data_dir"]
    data = load_images(name, folder)
    x, y = test_images(config, data, device)
    runs = []
    for label, candidate in zip(names, found, strict=True):
        recipe = candidate.recipe
        model = resolve_model(
            str(recipe["model"]), num_classes=data.num_classes, in_channels=x.shape[1],
            image_size=(x.shape[2], x.shape[3]), width=recipe["width"],
        ).to(device)  # fmt: skip
        load_weights(model, candidate.weights)
        head = recipe.get("head", "softmax")
        steps = measure(model, x, y, data, config, head)
        bar = tqdm(steps, desc=candidate.name, unit="set", leave=False, disable=None)
        runs.append(
            {"run": candidate.name, "label": label, "seed": recipe["seed"], "recipe": recipe,
             "measures": dict(bar)}
        )  # fmt: skip
    is_talks = data.name == "cifar100"
    record = {
        "command": command_line("deep.robustness"),
        "environment": environment(),
        "settings": {k: v for k, v in asdict(replace(config, runs=())).items() if k != "runs"},
        "data": data.name,
        "source": data.source,
        "samples": len(x),
        "device": str(device),
        "deformations": [asdict(law) for law in DEFORMATIONS],
        "published": {
            "source": PUBLISHED_SOURCE if is_talks else "",
            "columns": PUBLISHED_COLUMNS if is_talks else (),
            "accuracy": PUBLISHED if is_talks else {},
        },
        "groups": summarise(runs),
        "runs": runs,
    }
    print(table(record))
    write_json(config.out / RECORD, _plain(record))
    print(f"\n{config.out / RECORD}")
    return 0


def _plain(value: Any) -> Any:
    """The record with paths as text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
