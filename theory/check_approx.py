"""Command: does MixupE's approximation q̂ ≈ q hold for a network, before and while it trains?

`python -m theory.check_approx --model preact50` needs nothing else: it trains on scikit-learn's
digits for a short while, checks at initialisation and as it goes, prints the claims with their
verdicts, and writes `report.json`, `samples.csv` and figures.
"""

import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from deep.checkpoint import load_weights
from deep.data.examples import in_proportion
from deep.data.graph_batches import Graphs
from deep.data.graphs import GraphExamples
from deep.data.load import load_examples
from deep.loop import Optimization, Training
from deep.models import resolve_model
from deep.models.embedder import Embedder
from deep.objective import Objective, build_objective
from deep.processes import choose_device
from deep.recipes import check_seed
from figures.check_approx import NAMES, drawings
from figures.drawing import save as save_figures
from figures.page import save as save_page
from theory.approximation import FIRST_ORDER_WORK, GRADIENT_WORK, check_approximation
from theory.command import run_command
from theory.errors import InputError, check_positive
from theory.losses import Head, as_targets
from theory.mixing import beta_law
from theory.network import BatchNormMode, count_logits, evaluating
from theory.record import command_line, writable, write_atomically
from theory.regularizer import PairSettings
from theory.report import (
    Report,
    claims_table,
    corrections_table,
    orders_table,
    segments_summary,
    write_reports,
)
from theory.taylor import Engine
from theory.verdicts import Thresholds, broken_conditions, parse_condition

PROG = "python -m theory.check_approx"


@dataclass(frozen=True)
class Config:
    """Check MixupE's q̂ = (y − g)ᵀf against exact q, before and while a network trains."""

    model: str
    """preact18|34|50|101, wrn28-10, lenet, vgg11|13, mlp, gin (for graphs; checked from the graph
    embedding on), mlp-bias-free, gin-bias-free, or your own: path/to/file.py:factory"""
    width: int | None = None
    """Of a network of the registry, as for deep.train; the published one if not given"""
    checkpoint: Path | None = None
    """Weights to start from: a safetensors file, or one by torch.save (read as weights only)"""
    data: str = "digits"
    """digits (embedded), cifar10, cifar100, svhn (3 × 32 × 32); speech-small, speech-commands
    (1 × 160 × 101); tables for an MLP, such as iris, optdigits, letter, mnist; graphs: MUTAG, PTC,
    PROTEINS, NCI1, IMDB-BINARY, IMDB-MULTI, PTC_MR"""
    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    objective: Objective = "mixupe-paper"
    """What training minimises"""
    eta: float = 0.001
    """Strength of MixupE's penalty"""
    epochs: float = 1.0
    """Passes over the training data, fractions allowed; 0 checks without training"""
    check_every: float = 0.5
    """Epochs between checks"""
    batch_size: int = 32
    """Examples in a training step, and in one pass of a check"""
    lr: float = 0.02
    """Peak learning rate (SGD, Nesterov momentum 0.9, short warm-up, cosine to zero)"""
    samples: int = 64
    """Training examples that are checked, drawn once, classes in proportion"""
    order: int = 1
    """Highest order of Theorem 1's expansion; above 1, each order is measured against exact R"""
    engine: Engine = "series"
    """How Taylor terms are computed: power series, or nested jvp (the reference, up to order 4)"""
    max_pieces: int | None = None
    """ReLU networks: follow segments between samples kink by kink, for at most so many pieces,
    each of which costs about one forward pass in float64"""
    alpha: float = 1.0
    """α of Beta(α, β)"""
    beta: float | None = None
    """β of Beta(α, β); α if not given"""
    head: Head = "softmax"
    """softmax: cross-entropy; sigmoid: binary cross-entropy on each logit"""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the checks; training is in float32"""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one"""
    batch_norm: BatchNormMode = "eval"
    """Check with running statistics (eval) or with those of each batch (batch)"""
    gradients: bool = True
    """Compare the parameter gradients of |q| and |q̂| (half of a check's time)"""
    nodes: int = 8
    """Quadrature nodes for the expectation over λ"""
    pair_samples: int | None = None
    """Examples whose pairs are all taken for the exact regulariser; as many as fit if not given"""
    pair_seconds: float = 15.0
    """About how many seconds this and the estimate of R over all samples may take at each check"""
    tolerance: float | None = None
    """Go on with that estimate until the half-width of its 95 % interval is this part of it"""
    thresholds: Annotated[Thresholds, tyro.conf.arg(name="threshold")] = field(
        default_factory=Thresholds
    )
    """What the claims are held against"""
    seed: int = 0
    """Of initial weights, order of examples, mixing and bootstrap"""
    out: Path | None = None
    """Folder for report.json, samples.csv and figures; runs/check_approx/… if not given"""
    fail_on: tuple[str, ...] = ()
    """Conditions such as "q_hat>0.5" "pearson<0.9" that make the exit code 1 if the last check
    meets them, or could not measure them"""
    html: bool = False
    """Write report.html too: everything on one page that needs no other file"""
    debug: bool = False
    """Show the traceback of an error"""


def measure(config: Config, on_check: Any = None) -> list[Report]:
    """Runs the checks that a configuration asks for, training in between.

    Args:
        config: The flags.
        on_check: Called with the reports so far after each check.

    Returns:
        The reports in order, before training first.

    Raises:
        InputError: If a flag, file, network or data set cannot be used.
    """
    _check_numbers(config)
    device = choose_device(config.device)
    data = load_examples(config.data, config.data_dir)
    torch.manual_seed(config.seed)
    channels, height, width = data.image_shape
    model = resolve_model(
        config.model,
        num_classes=data.num_classes,
        in_channels=channels,
        image_size=(height, width),
        width=config.width,
    ).to(device)
    if isinstance(data, GraphExamples) != isinstance(model, Embedder):
        raise InputError(
            f"{config.model} and {data.name} do not go together: graphs need a model that embeds "
            "them, such as gin, and nothing else does"
        )
    if config.checkpoint is not None:
        load_weights(model, config.checkpoint)
    if config.samples > len(data.x_train):
        raise InputError(
            f"--samples is {config.samples}: {data.name} has {len(data.x_train)} training examples,"
            " ask for fewer"
        )
    chosen, _ = in_proportion(data.y_train, config.samples, config.seed)
    probe = data.x_train[chosen]
    num_logits = count_logits(model, data.x_train[:2].to(device))
    targets = as_targets(data.y_train, num_logits, config.head)
    objective = build_objective(
        config.objective,
        model,
        head=config.head,
        alpha=config.alpha,
        beta=config.beta,
        eta=config.eta,
        mean=None if isinstance(data, GraphExamples) else data.x_train.mean(0).to(device),
        generator=torch.Generator().manual_seed(config.seed),
    )
    reports: list[Report] = []
    with _Progress(config, len(data.x_train), len(probe)) as progress:
        for state in _states(config, objective, data.x_train, targets, progress):
            pairs = reports[0].regularizer.get("samples") if reports else config.pair_samples
            network, x, mean = _on_vectors(model, probe, data.x_train)
            report = check_approximation(
                network,
                [(x, data.y_train[chosen])],
                alpha=config.alpha,
                beta=config.beta,
                order=config.order,
                engine=config.engine,
                max_pieces=config.max_pieces,
                head=config.head,
                mean=mean,
                batch_norm=config.batch_norm,
                dtype=getattr(torch, config.dtype),
                batch_size=config.batch_size,
                gradients=config.gradients,
                nodes=config.nodes,
                pair_samples=pairs,
                pair_seconds=config.pair_seconds,
                tolerance=config.tolerance,
                thresholds=config.thresholds,
                seed=config.seed,
                on_progress=progress.add,
            )
            settings = {**_as_json(config), **report.settings, "source": data.source}
            settings["mean"] = "training data"
            reports.append(replace(report, training=state, settings=settings))
            if on_check:
                on_check(reports)
            progress.checked(reports)
    return reports


def _on_vectors(
    model: nn.Module, probe: Tensor | Graphs, x_train: Tensor | Graphs
) -> tuple[nn.Module, Tensor, Tensor]:
    """What the theory is about: a network, its inputs, and their mean over the training data.

    For graphs that is the model's head on embeddings, which are inputs as they are now.
    """
    if not isinstance(model, Embedder):
        assert isinstance(probe, Tensor)
        assert isinstance(x_train, Tensor)
        return model, probe, x_train.mean(0)
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        embedded, mean = model.embed(probe.to(device)), model.embed(x_train.to(device)).mean(0)
    return model.head, embedded, mean


def _states(
    config: Config, objective: nn.Module, x: Tensor | Graphs, targets: Tensor, progress: "_Progress"
) -> Iterator[dict[str, Any]]:
    """Trains, stopping wherever a check is due; yields where training stands."""
    start = {"epoch": 0.0, "step": 0, "train_loss": None}
    if config.epochs == 0:  # nor need the network have anything to train
        yield start
        return
    settings = Optimization(epochs=config.epochs, batch_size=config.batch_size, lr=config.lr)
    generator = torch.Generator().manual_seed(config.seed)
    # Before the first check, which takes minutes: what cannot be trained is refused at once.
    training = Training(objective, x, targets, settings, generator=generator)
    yield start
    due, losses = config.check_every, []
    for step in training:
        losses.append(step.loss)
        progress.add(_training_work(config.objective) * config.batch_size)
        last = step.index + 1 == step.total
        if last or step.epoch >= due - 1e-9:
            mean = sum(losses) / len(losses)
            yield {"epoch": round(step.epoch, 6), "step": step.index + 1, "train_loss": mean}
            losses.clear()
            due = config.check_every * (math.floor(step.epoch / config.check_every + 1e-9) + 1)


def _training_work(objective: str) -> float:
    """A training step's cost for one example in forward passes, roughly, for the time left."""
    if objective in ("mixupe-exact", "mixupe-official-v1", "mixupe-official-v2"):
        return 12.0
    return 8.0 if objective.startswith("mixupe") else 4.0


class _Progress:
    """A bar over all training and checking, with the time left."""

    def __init__(self, config: Config, examples: int, samples: int) -> None:
        self._checks = 1 + math.ceil(config.epochs / config.check_every - 1e-9)
        settings = PairSettings(
            config.alpha, config.beta, order=config.order, nodes=config.nodes, engine=config.engine
        )
        self._pair_work = settings.rows_per_pair + settings.draws(1)
        self._fixed = config.epochs * examples * _training_work(config.objective)
        one = samples * (FIRST_ORDER_WORK + (GRADIENT_WORK if config.gradients else 0))
        one += samples * (config.nodes + settings.series_work) if config.order > 1 else 0
        self._fixed += self._checks * one
        pairs = 0 if config.batch_norm == "batch" else config.pair_samples or 12
        self._bar = tqdm(
            total=int(self._total(pairs)),
            disable=None,  # silent where stderr is no terminal
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left",
            desc=f"checking {Path(config.model).name}",
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _total(self, pairs: int) -> float:
        return self._fixed + self._checks * pairs**2 * self._pair_work

    def add(self, work: float) -> None:
        """So much work was done, in forward passes of one example."""
        left = (self._bar.total or 0) - self._bar.n
        self._bar.update(min(work, left))

    def checked(self, reports: Sequence[Report]) -> None:
        """Says where a check stands, and plans anew with the number of pairs it took."""
        report = reports[-1]
        self._bar.total = int(self._total(report.regularizer.get("samples", 0)))
        self._bar.refresh()
        state, value = report.training, {n: c.value for n, c in report.claims.items()}
        loss = f"clean loss {report.samples['loss'].mean():.3f}, "
        if state["train_loss"] is not None:
            loss += f"training loss {state['train_loss']:.3f}, "
        correlation = float(report.agreement["value"]["pearson"])
        self._bar.write(
            f"epoch {state['epoch']:<5.3g} {loss}error of q̂ {value['q_hat']:.2f} (normalisation "
            f"{value['normalization']:.2f}, homogeneity {value['homogeneity']:.2f}), correlation "
            f"{correlation:+.2f}",
            file=sys.stdout,
        )
        sys.stdout.flush()  # a log file shall show it now


def _check_numbers(config: Config) -> None:
    beta_law(config.alpha, config.beta)
    check_seed(config.seed)
    if not 0 <= config.epochs < math.inf:
        raise InputError(f"--epochs is {config.epochs}: it must be 0 or positive, and finite")
    counts = {
        "samples": 1,
        "order": 1,
        "batch_size": 2,
        "nodes": 1,
        "pair_samples": 1,
        "max_pieces": 1,
    }
    for name, least in counts.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}: it must be at least {least}")
    for name in ("check_every", "pair_seconds", "lr", "tolerance"):
        value = getattr(config, name)
        if value is not None:
            check_positive(f"--{name.replace('_', '-')}", value)


def _as_json(config: Config) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def save(folder: Path, reports: Sequence[Report]) -> None:
    """Writes report.json and samples.csv of the checks so far, each as a whole.

    Raises:
        InputError: If the folder cannot be written to.
    """
    write_reports(folder / "report.json", reports, command=command_line("theory.check_approx"))
    samples = pd.concat(
        report.samples.assign(epoch=report.training["epoch"], sample=range(len(report.samples)))
        for report in reports
    )
    columns = ["epoch", "sample", *reports[-1].samples.columns]
    write_atomically(
        folder / "samples.csv", lambda path: samples[columns].to_csv(path, index=False)
    )


def _keep(folder: Path, reports: Sequence[Report], finished: list[Report]) -> None:
    if not finished:  # what an earlier check left must not pass for this one's
        for name in ("report.html", *(f"{name}.png" for name in NAMES)):
            (folder / name).unlink(missing_ok=True)
    save(folder, reports)
    finished[:] = reports


def run(config: Config) -> int:
    """Measures, saves and prints; the exit code."""
    for text in config.fail_on:
        parse_condition(text)
    training = config.objective if config.epochs > 0 else "as-is"
    parts = [Path(config.model).name, config.data, training]
    if config.checkpoint is not None:
        parts.append(config.checkpoint.name)
    name = re.sub(r"[^\w.-]+", "_", "-".join(parts))
    folder = config.out or Path("runs") / "check_approx" / name
    with writable(folder), warnings.catch_warnings():
        # Said once by torch.func on first use; nothing that a user of this command can act on.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is")
        finished: list[Report] = []
        try:
            reports = measure(config, on_check=lambda done: _keep(folder, done, finished))
        except KeyboardInterrupt:
            kept = f"{len(finished)} finished checks are in {folder}" if finished else "nothing yet"
            print(f"interrupted: {kept}", file=sys.stderr)
            return 130
    figures = save_figures(folder, drawings(reports))
    shown = reports if len(reports) == 1 else [reports[0], reports[-1]]
    print(f"\n{claims_table(shown)}\n")
    print("What would mend q̂, ‖q − approximation‖ / ‖q‖ and costs in forward passes:\n")
    print(f"{corrections_table(shown)}\n")
    if reports[-1].orders:
        for report in shown:
            print(f"Theorem 1 order by order, epoch {report.training['epoch']:.3g}:\n")
            print(f"{orders_table(report)}\n")
    for report in shown if reports[-1].segments else ():
        print(f"epoch {report.training['epoch']:.3g}, {segments_summary(report)}\n")
    if config.html:
        figures.append(save_page(folder, reports, command_line("theory.check_approx")))
    print(f"Written to {folder}: report.json, samples.csv, {', '.join(p.name for p in figures)}")
    broken = broken_conditions(reports[-1], config.fail_on)
    for line in broken:
        print(f"failed on {line}", file=sys.stderr)
    return 1 if broken else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
