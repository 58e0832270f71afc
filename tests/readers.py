"""Every reader of files from outside, with a small valid folder and what makes its result sound."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
from damage import (
    Change,
    damaged,
    header_node,
    in_gzip,
    json_node,
    png_chunk,
    state_node,
    tar_header,
    zip_member,
)
from graph_cases import drawn_graphs, text_of
from PIL import Image
from scipy.io import savemat
from test_deep_data import cifar_files, random_part, write_archive
from test_deep_graphs import tu_files, write_zip
from test_deep_grid import SMALL, SWEEP
from test_deep_speech import clips, wav
from test_deep_speech import write_archive as write_speech
from test_deep_tabular import ARFF, FISH, idx
from test_figures_tables import LINES
from test_figures_training import run_of
from torch import nn

import deep.campaign
from deep.checkpoint import load_weights
from deep.data import tabular
from deep.data.arff import read_arff
from deep.data.files import reading
from deep.data.graphs import load_graphs
from deep.data.idx import read_idx
from deep.data.images import load_images
from deep.data.published import read_cifar10
from deep.data.speech import load_speech, read_wav
from deep.grid import read_sweep
from deep.resume import Checkpoints
from deep.runner import gather
from deep.table import read_record
from deep.train import config_of_recipe
from figures import deformations, losses, studies, tables, training
from figures.runs import read_runs
from theory import check_approximation, read_reports
from theory.record import json_line
from toy.data import load as load_toy


@dataclass
class Reader:
    """A reader and a small valid folder for it.

    Attributes:
        write: Writes the folder.
        read: Reads it and asserts that what comes back is sound.
        files: Which of its files are damaged, one at a time.
        changes: How.
        share: Of the inputs; less for a slow one.
        finish: Called with the folder once a file is damaged.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], None]
    files: tuple[str, ...]
    changes: tuple[Change, ...] = (damaged,)
    share: float = 1.0
    finish: Callable[[Path], None] = lambda folder: None
    contents: dict[str, bytes] = field(default_factory=dict)


def sound_examples(data):
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert len(x) == len(y) > 0
        assert bool(x.isfinite().all())
        assert 0 <= int(y.min()) <= int(y.max()) < data.num_classes


def sound_graphs(loaded):
    graphs, labels, _ = loaded
    assert len(graphs) == len(labels)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    features, edges = graphs.features, graphs.edge_index
    assert bool((features.sum(1) == 1).all())
    assert not edges.numel() or 0 <= int(edges.min()) <= int(edges.max()) < len(features)


def sound_frame(folder):
    frame = read_arff(folder / "a.arff")
    for name in frame:
        column = frame[name]
        if column.dtype == np.float64:
            assert not np.isinf(column).any()
        else:
            assert column.cat.codes.max() < len(column.cat.categories)


def sound_table(name, *size):
    """Reads a table that is known to be of another size than the published one's."""
    known = tabular._SETS[name]
    smaller = known._replace(rows=size[0], features=size[1], classes=size[2])

    def read(folder):
        with patch.dict(tabular._SETS, {name: smaller}):
            table = tabular.load_table(name, folder)
        numbers = table.features.select_dtypes("number").to_numpy()
        assert not np.isinf(numbers).any()
        assert 0 <= table.labels.min() <= table.labels.max() < len(table.classes)

    return read


def sound_toy(folder):
    data = load_toy(str(folder / "t.csv"))
    assert np.isfinite(data.x).all()
    assert set(data.y) == {-1.0, 1.0}


def sound_idx(folder):
    assert read_idx(folder / "a.gz").dtype == np.uint8


def sound_wav(folder):
    with reading(folder / "a.wav"):
        content = (folder / "a.wav").read_bytes()
    samples = read_wav(content, folder / "a.wav")
    assert 0 < len(samples) <= 16_000


def sound_published(published):
    for part in (published.train, published.test):
        assert part.images.dtype == np.uint8
        assert part.images.shape == (len(part.labels), 3, 32, 32)
        assert 0 <= part.labels.min() <= part.labels.max() < 10


def sound_json(value):
    """Nothing that JSON cannot hold or a file cannot."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def sound_reports(reports):
    for report in reports:
        assert all(c.verdict in ("HOLDS", "FAILS", "NOT MEASURED") for c in report.claims.values())
        assert report.samples[["q", "q_hat"]].dtypes.map(lambda t: t.kind in "fi").all()
        json_line(report.settings)


def small_model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def sound_weights(name):
    def read(folder):
        model = small_model()
        load_weights(model, folder / name)
        assert all(bool(t.isfinite().all()) for t in model.state_dict().values())

    return read


def sound_state(folder):
    state = Checkpoints(folder).load(small_model(), lambda line: None)
    assert isinstance(state, dict)


def sums(folder):
    """The check sums of a checkpoint, right again."""
    lines = [f"{hashlib.sha256((folder / '7' / name).read_bytes()).hexdigest()}  {name}\n"
             for name in ("weights.safetensors", "state.pt")]  # fmt: skip
    (folder / "7" / "SHA256SUMS").write_text("".join(lines))


def write_small_cifar(folder):
    write_archive(folder / "cifar-10-binary.tar.gz", "cifar10", cifar_files("cifar10", 1)[0])


def write_cifar_folder(folder):
    for name, content in cifar_files("cifar100", 1)[0].items():
        (folder / name).write_bytes(content)


def write_sprites(folder):
    for batch in (3, 50):
        Image.new("RGB", (1024, 1000), (batch, 7, 9)).save(folder / f"cifar10_batch_{batch}.png")
    (folder / "cifar10_labels.json").write_text(json.dumps([k % 10 for k in range(51_000)]))


def write_svhn(folder):
    for name, compressed in (("train", True), ("test", False)):
        images, digits = random_part(3, 10, 0)
        content = {"y": np.where(digits == 0, 10, digits).astype(np.uint8)[:, None],
                   "X": images.transpose(1, 2, 3, 0)}  # fmt: skip
        savemat(folder / f"{name}_32x32.mat", content, do_compression=compressed)


def write_words(folder):
    audio = clips(speakers=2)
    names = list(audio)
    write_speech(
        folder, {name: samples[:200] for name, samples in audio.items()}, names[:1], names[1:2]
    )


def write_weights(folder):
    torch.manual_seed(0)
    state = small_model().state_dict()
    (folder / "weights.safetensors").write_bytes(safetensors.torch.save(state))
    torch.save(state, folder / "weights.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)


def write_report(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    data = [(torch.randn(8, 5), torch.arange(8) % 3)]
    check_approximation(model, data, pair_samples=3).to_json(folder / "report.json")


def write_runs(folder):
    line = {"epoch": 1.0, "train_loss": 2.0, "test_loss": None, "test_error": 0.5}
    runs = [run_of("erm", seed) | {"log": [line], "name": f"erm-seed{seed}"} for seed in (0, 1)]
    (folder / "runs.jsonl").write_text("".join(map(json_line, runs)))


def write_run(folder):
    run = run_of("erm", 0) | {"log": [{"epoch": 1.0, "train_loss": 2.0}]}
    (folder / "a").mkdir()
    (folder / "a" / "recipe.json").write_text(json.dumps(run["recipe"]))
    (folder / "a" / "result.json").write_text(json.dumps({"recipe": run["recipe"], "seconds": 1.5}))
    for name in ("log", "checks"):
        (folder / "a" / f"{name}.jsonl").write_text("".join(map(json_line, run[name])))


def sound_runs(folder):
    sound_json(read_runs(folder / "runs.jsonl"))
    rows = losses.read(folder / "runs.jsonl") + training.read(folder / "runs.jsonl")
    assert all(isinstance(row["network"], str) for row in rows)


def sound_run(folder):
    sound_json(read_runs(folder))
    sound_json(gather(folder, ["a"]))
    (folder / "runs.jsonl").unlink()


def sound_lines(folder):
    sound_json(read_record(folder / "record.jsonl"))
    sound_json(tables.read(folder / "record.jsonl"))


def write_robustness(folder):
    group = {"label": "erm", "seeds": [0], "measures": {"clean": {"accuracy": {"mean": 0.5}}}}
    record = {"groups": [group], "runs": [], "published": {}, "data": "d", "samples": 3}
    (folder / "robustness.json").write_text(json.dumps(record))


def campaign_config(folder):
    return deep.campaign.Config(recipe="quick-digits", objectives=("erm",), seeds=(0,), out=folder)


def write_plan(folder):
    plan = {"recipe": "quick-digits", "objectives": ["erm"], "seeds": [0], "jobs": 1, "threads": 1,
            "epochs": 3, "seconds": {"erm": 1.5}, "settings": {"width": 8}}  # fmt: skip
    (folder / "campaign.json").write_text(json.dumps(plan))


def sound_plan(folder):
    planned = deep.campaign.plan(campaign_config(folder))
    assert len(deep.campaign.cells(campaign_config(folder), planned)) == 1


def sound_sweep(folder):
    cells = read_sweep(folder / "sweep.toml")
    assert cells
    for cell in cells:
        assert (folder / cell.name).resolve().parent == folder.resolve()
        assert not any("\0" in flag for flag in cell.flags)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


RECIPE = """base = "quick-digits"
model = "mlp"
objective = "mixup"
lr = 0.03
epochs = 3
milestones = [1, 2.5]
flip = true
alpha = 0.5
"""
WORDS = "speech_commands_v0.02.tar.gz"
TU = tuple(f"MUTAG_{part}.txt" for part in ("A", "graph_indicator", "graph_labels", "node_labels"))
MORPH = "1,2.5,10\n3,4,9\n5,6,10\n7,8,9\n"
JSON = (damaged, json_node, json_node)

READERS = {
    "arff": Reader(text("a.arff", ARFF), sound_frame, ("a.arff",)),
    "csv": Reader(
        text("mfeat-morphological.csv", "att1,att2,class\n" + MORPH),
        *(sound_table("mfeat-morph", 4, 2, 2), ("mfeat-morphological.csv",)),
    ),
    "csv-abalone": Reader(
        text("abalone.csv", FISH + FISH.replace("9\n", "3\n").replace("M", "F") + FISH),
        *(sound_table("abalone", 3, 8, 2), ("abalone.csv",)),
    ),
    "csv-toy": Reader(
        text("t.csv", "1.0,2.0,1\n-1.0,0.5,0\n0.25,1e-3,1\n"),
        *(sound_toy, ("t.csv",)),
    ),
    "idx": Reader(
        lambda f: (f / "a.gz").write_bytes(idx(np.arange(60).reshape(3, 4, 5))),
        sound_idx,
        *(("a.gz",), (damaged, in_gzip, in_gzip)),
    ),
    "graph-text": Reader(
        text("MUTAG.txt", text_of(drawn_graphs())),
        *(lambda f: sound_graphs(load_graphs("MUTAG", f)), ("MUTAG.txt",)),
    ),
    "tu-text": Reader(
        lambda f: [(f / n).write_text(t) for n, t in tu_files("MUTAG", drawn_graphs()).items()],
        *(lambda f: sound_graphs(load_graphs("MUTAG", f)), TU),
    ),
    "tu-zip": Reader(
        lambda f: write_zip(f / "MUTAG.zip", tu_files("MUTAG", drawn_graphs())),
        lambda f: sound_graphs(load_graphs("MUTAG", f)),
        *(("MUTAG.zip",), (damaged, zip_member)),
    ),
    "cifar-tar": Reader(
        *(write_small_cifar, lambda f: sound_examples(load_images("cifar10", f))),
        *(("cifar-10-binary.tar.gz",), (damaged, in_gzip, tar_header, tar_header)),
        share=0.4,
    ),
    "cifar-binary": Reader(
        *(write_cifar_folder, lambda f: sound_examples(load_images("cifar100", f))),
        ("train.bin", "test.bin"),
        share=0.5,
    ),
    "png": Reader(
        *(write_sprites, lambda f: sound_published(read_cifar10(f))),
        *(("cifar10_batch_3.png", "cifar10_batch_50.png"), (damaged, png_chunk)),
        share=0.1,
    ),
    "png-labels": Reader(
        *(write_sprites, lambda f: sound_published(read_cifar10(f))),
        *(("cifar10_labels.json",), (damaged,)),
        share=0.05,
    ),
    "svhn-mat": Reader(
        *(write_svhn, lambda f: sound_examples(load_images("svhn", f))),
        ("train_32x32.mat", "test_32x32.mat"),
        share=0.5,
    ),
    "wav": Reader(
        lambda f: (f / "a.wav").write_bytes(wav(np.arange(300))),
        sound_wav,
        ("a.wav",),
    ),
    "speech-tar": Reader(
        *(write_words, lambda f: sound_examples(load_speech("speech-commands", f))),
        *((WORDS,), (damaged, in_gzip, tar_header)),
        share=0.15,
    ),
    "safetensors": Reader(
        *(write_weights, sound_weights("weights.safetensors"), ("weights.safetensors",)),
        (damaged, header_node, header_node),
    ),
    "torch-zip": Reader(
        *(write_weights, sound_weights("weights.pt"), ("weights.pt",)),
        (damaged, zip_member, state_node),
    ),
    "torch-old": Reader(write_weights, sound_weights("old.pt"), ("old.pt",)),
    "state": Reader(
        lambda f: Checkpoints(f).save(7, small_model(), {"index": 7, "sums": {"loss": 0.5}}),
        *(sound_state, ("7/state.pt",)),
        changes=(damaged, zip_member),
        finish=sums,
    ),
    "state-sums": Reader(
        lambda f: Checkpoints(f).save(7, small_model(), {"index": 7}),
        *(sound_state, ("7/SHA256SUMS",)),
    ),
    "recipe": Reader(
        *(text("r.toml", RECIPE), lambda f: config_of_recipe(str(f / "r.toml"))),
        *(("r.toml",), (damaged,)),
        share=0.25,
    ),
    "sweep": Reader(
        text("sweep.toml", "seeds = [3]\n[grid]\nalpha = [0.5]" + SWEEP.format(
            recipe=SMALL.format(epochs=1)).replace("seeds = [0, 1]\n", "")),
        *(sound_sweep, ("sweep.toml",), (damaged,)),
        share=0.08,
    ),
    "report": Reader(
        *(write_report, lambda f: sound_reports(read_reports(f / "report.json"))),
        *(("report.json",), JSON),
        share=0.25,
    ),
    "record": Reader(
        text("record.jsonl", "".join(map(json_line, LINES))), sound_lines, ("record.jsonl",), JSON
    ),
    "runs": Reader(write_runs, sound_runs, ("runs.jsonl",), JSON),
    "run-folder": Reader(
        *(write_run, sound_run),
        tuple(f"a/{name}" for name in ("recipe.json", "result.json", "log.jsonl", "checks.jsonl")),
        *(JSON, 0.5),
    ),
    "robustness": Reader(
        *(write_robustness, lambda f: sound_json(deformations.read(f / "robustness.json"))),
        *(("robustness.json",), JSON),
    ),
    "study": Reader(
        text("bias.json", json.dumps({"study": "bias", "settings": {"data": "moons"}, "w": [0.5]})),
        lambda f: sound_json(studies.read(f / "bias.json")),
        *(("bias.json",), JSON),
    ),
    "campaign": Reader(write_plan, sound_plan, ("campaign.json",), JSON, 0.4),
}  # fmt: skip
