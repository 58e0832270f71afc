"""The gallery: names, captions with their sources, looks, tables with grey, and three images."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.patches import Rectangle
from matplotlib.testing.compare import compare_images

from figures import mixing, published
from figures.__main__ import main
from figures.gallery import about, gallery, of_record
from figures.style import look

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
BASELINE = Path(__file__).parent / "baseline"


@pytest.fixture(scope="module")
def entries():
    return gallery(RESULTS)


@pytest.fixture
def results(tmp_path):
    """A folder of records with a study and a table in it."""
    root = tmp_path / "results"
    for name in ("toy/sweep.json", "tables/4/record.jsonl"):
        (root / name).parent.mkdir(parents=True)
        shutil.copy(RESULTS / name, root / name)
    return root


def test_every_record_that_has_figures_is_in_the_gallery(entries):
    drawn = {record for entry in entries.values() for record in entry.records}
    kept = {path for path in RESULTS.rglob("*.json*") if path.name != "campaign.json"}
    assert kept - drawn == set((RESULTS / "benchmarks").iterdir())
    for name in ("mixing", "toy/boundary", "toy/bias", "tables/images", "tables/6/table-nested",
                 "check_approx/preact50-digits-mixupe-paper/q", "campaign/small-cifar10/training",
                 "check_approx/mlp-digits-mixupe-paper/orders"):  # fmt: skip
        assert name in entries


def numbered(labels):
    """Whether ticks show numbers, which need a name and a unit; names of rows do not."""
    texts = [label.get_text() for label in labels if label.get_text()]
    return any(text.strip("$−-").replace("\\mathdefault{", "")[:1].isdigit() for text in texts)


def test_every_figure_names_its_axes_and_says_what_it_shows(entries):
    unnamed, count = [], 0
    for name, entry in entries.items():
        assert entry.drawing.caption.endswith("."), name
        for ax in entry.drawing.plot().axes:
            if not ax.has_data() or not ax.axison:
                continue
            for axis, siblings in (("x", ax.get_shared_x_axes()), ("y", ax.get_shared_y_axes())):
                labels = getattr(ax, f"get_{axis}ticklabels")()
                named = any(getattr(a, f"get_{axis}label")() for a in siblings.get_siblings(ax))
                count += numbered(labels)
                if numbered(labels) and not named:
                    unnamed.append((name, axis, ax.get_title(loc="left")))
    assert not unnamed
    assert count > 3 * len(entries)


def test_caption_names_record_command_commit_and_date(entries):
    text = about(entries["toy/bias"])
    record = json.loads((RESULTS / "toy" / "bias.json").read_text())
    assert f"record:  {RESULTS / 'toy' / 'bias.json'}\n" in text
    assert f"command: {record['command']}\n" in text
    assert f"commit:  {record['environment']['commit']}\n" in text
    day = text.rpartition("date:")[2].strip()
    assert day == "unknown" or len(day) == len("2026-11-25")  # unknown in a clone without history
    assert "record:" not in about(entries["mixing"])


def test_date_of_the_record_goes_before_that_of_the_commit(results):
    path = results / "toy" / "sweep.json"
    record = json.loads(path.read_text())
    record["environment"]["date"] = "2031-02-03T04:05:06+00:00"
    path.write_text(json.dumps(record))
    assert "date:    2031-02-03\n" in about(of_record(path)["sweep"])


def test_command_draws_names_in_their_folders(results, tmp_path, capsys):
    out = tmp_path / "drawn"
    flags = ["--results", str(results), "--out", str(out)]
    assert main(["toy/*", "tables/4/ra?ks", *flags]) == 0
    drawn = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert drawn == {
        f"{name}.{suffix}" for name in ("toy/sweep", "tables/4/ranks")
        for suffix in ("png", "pdf", "txt")
    }  # fmt: skip
    assert (out / "toy/sweep.pdf").read_bytes().startswith(b"%PDF")
    assert str(out / "toy/sweep.png") in capsys.readouterr().out


def test_list_names_all_and_draws_nothing(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out.split("\n")
    assert set(gallery(results)) <= set(shown)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reader_that_has_seen_enough_is_no_error(results):
    command = [sys.executable, "-m", "figures", "--list", "--results", str(results)]
    with subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_folder_of_several_records_is_drawn_whole(tmp_path):
    source = RESULTS / "campaign" / "small-cifar10"
    shutil.copy(source / "runs.jsonl", tmp_path)
    shutil.copy(RESULTS / "check_approx" / "gin-MUTAG-mixupe-paper" / "report.json", tmp_path)
    assert {"losses", "training", "q", "overview"} <= set(of_record(tmp_path))


def test_a_report_is_drawn_by_whatever_name(tmp_path):
    source = RESULTS / "check_approx" / "gin-MUTAG-mixupe-paper" / "report.json"
    shutil.copy(source, tmp_path / "mine.json")
    assert of_record(tmp_path / "mine.json").keys() == of_record(source).keys()


def test_a_folder_of_studies_is_drawn():
    folder = RESULTS / "generalization" / "logistic-synthetic"
    assert {entry.records[0] for entry in of_record(folder).values()} == {
        folder / "generalization.json"
    }


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (
            ["toy/nothing"],
            "no figure or record is called toy/nothing: see python -m figures --list",
        ),
        (["--results", "nowhere"], "there is no folder nowhere: name a record, or by --results"),
        (["gone.json", "--results", "nowhere"], "there is no record gone.json: name a record"),
        (["bad.json"], "bad.json is no record that can be drawn"),
        (["torn.json"], "torn.json is no JSON"),
    ],
)
def test_bad_names_are_one_line(results, tmp_path, monkeypatch, capsys, argv, complaint):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"settings": {}}')
    Path("torn.json").write_text("[" * 100_000)
    assert main([*argv, "--out", "drawn"]) == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert shown.count("\n") == 1
    assert not Path("drawn").exists()


def test_looks_have_the_widths_they_promise(entries):
    single, several = entries["check_approx/mlp-digits-mixupe-paper/q"], entries["toy/bias"]
    before = rcParams["font.size"]
    for name, widths in (("screen", (5.6, 9.0)), ("paper", (3.25, 6.75)), ("talk", (7.0, 12.3))):
        with look(name):
            sizes = [entry.drawing.plot().get_size_inches() for entry in (single, several)]
        assert tuple(width for width, _ in sizes) == widths
        assert all(height <= 9 for _, height in sizes)
    assert rcParams["font.size"] == before


def test_what_was_not_run_is_grey_and_what_was_stands_there(results):
    table = published.comparisons(results)["tables/4/table"]
    lines = map(json.loads, (results / "tables/4/record.jsonl").read_text().splitlines())
    rows = {name: ours for name, _, ours in table.rows}
    assert rows["Volkert"] == [None, None, None]
    line = next(line for line in lines if line["row"] == "iris")
    errors = [100 * r["error"] for r in line["results"] if r["method"] == "mixupe-paper"]
    assert rows["Iris"][2] == f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"
    ax = published.plot(table).axes[0]
    patches = [p for p in ax.patches if isinstance(p, Rectangle)]
    missing = sum(text is None for ours in rows.values() for text in ours)
    assert len(patches) == missing > 0
    assert "Grey: not run; python -m deep.table 4 would." in published.drawings(results)[
        "tables/4/table"
    ][0].caption  # fmt: skip


def image_run(objective, error, **settings):
    recipe = {"model": "preact50", "data": "cifar10", "width": None, "seed": 0, "epochs": 200.0,
              "alpha": 1.0, "eta": 0.001, "objective": objective}  # fmt: skip
    result = {"last": {"test_error": error}}
    return {"recipe": recipe | settings, "result": result, "log": [], "checks": []}


def write_campaign(root, name, runs):
    path = root / "campaign" / name / "runs.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return path


def test_runs_at_the_published_width_fill_the_table_of_images(tmp_path):
    runs = [
        image_run("mixup", error, width=width, seed=seed)
        for width, seed, error in ((None, 0, 0.05), (None, 1, 0.07), (8, 2, 0.9))
    ]
    path = write_campaign(tmp_path, "gpu", runs)
    table = published.comparisons(tmp_path)["tables/images"]
    rows = {name: (talk, ours) for name, talk, ours in table.rows}
    talk, ours = rows["PreActResNet50, CIFAR-10"]
    assert talk == ["4.71 ± 0.06", "4.53 ± 0.04", "3.53 ± 0.05"]
    assert ours == [None, "6.00 ± 1.41", None]
    assert rows["Wide-ResNet-28-10, SVHN"] == (["2.82 ± 0.05", "2.48 ± 0.12", "2.29 ± 0.17"],
                                               [None] * 3)  # fmt: skip
    assert table.records == [path]
    assert table.title.endswith(" Ours: PreActResNet50, CIFAR-10: gpu, 200 epochs.")


def test_a_row_of_images_is_one_campaigns(tmp_path):
    """Two epochs at η = 0 are not mixed with 800, nor another row's campaign with this one's."""
    short = [image_run("mixupe-paper", 0.6, seed=k, epochs=2.0, eta=0.0) for k in (0, 1)]
    other = image_run("erm", 0.2, data="svhn", epochs=2.0)
    brief = write_campaign(tmp_path, "a-brief", [*short, image_run("erm", 0.5, epochs=2.0), other])
    long = write_campaign(
        tmp_path, "b-long", [image_run("mixupe-paper", 0.04, seed=1, epochs=800.0)]
    )
    table = published.comparisons(tmp_path)["tables/images"]
    rows = {name: ours for name, _, ours in table.rows}
    assert rows["PreActResNet50, CIFAR-10"] == [None, None, "4.00"]
    assert rows["PreActResNet50, SVHN"] == ["20.00", None, None]
    assert set(table.records) == {brief, long}
    assert "CIFAR-10: b-long, 800 epochs" in table.title
    assert "SVHN: a-brief, 2 epochs" in table.title


def test_a_row_of_images_has_one_alpha_and_eta_where_they_apply(tmp_path):
    """ERM has neither and Mixup no η, so theirs need not be MixupE's; of two sets the larger."""
    runs = [
        image_run("erm", 0.05, alpha=7.0, eta=7.0),
        image_run("mixup", 0.04, alpha=0.2, eta=7.0),
        image_run("mixup", 0.9, alpha=0.5),
        image_run("mixupe-paper", 0.8, alpha=0.5, eta=0.1, lr=0.2),
        image_run("mixupe-paper", 0.03, alpha=0.2, eta=0.01),
    ]
    write_campaign(tmp_path, "sweep", runs)
    table = published.comparisons(tmp_path)["tables/images"]
    assert table.rows[0][2] == ["5.00", "4.00", "3.00"]


def test_accuracies_on_deformed_images_of_cifar100_fill_their_table(tmp_path):
    folder = tmp_path / "campaign" / "long"
    folder.mkdir(parents=True)
    measures = {"rotation 20": {"accuracy": {"mean": 0.6, "sd": 0.02}}}
    record = {
        "data": "cifar100", "samples": 10, "runs": [], "published": {"columns": ["Ours"]},
        "groups": [{"label": "mixup", "seeds": [0, 1], "measures": measures}],
    }  # fmt: skip
    (folder / "robustness.json").write_text(json.dumps(record))
    table = published.comparisons(tmp_path)["tables/deformations"]
    name, talk, ours = table.rows[0]
    assert (name, talk) == ("rotation 20", ["56.48", "60.08", "62.23"])
    assert ours == ["60.00 ± 2.00", None, None]


def test_illustration_mixes_pixels():
    first, half, last = mixing.mixed((1.0, 0.5, 0.0))
    np.testing.assert_allclose(half, (first + last) / 2)
    assert first.shape == last.shape
    assert 0 <= half.min() < half.max() <= 1
    assert np.abs(first - last).max() > 0.3


@pytest.mark.parametrize(
    "name", ["mixing", "toy/bias", "check_approx/mlp-digits-mixupe-paper/q"], ids=lambda n: n[-4:]
)
def test_image_is_that_of_the_baseline(entries, tmp_path, name):
    """Drawn anew a figure differs from tests/baseline by no more than hinting of its letters."""
    entry = entries[name]
    drawn = tmp_path / "drawn.png"
    entry.drawing.plot().savefig(drawn, dpi=60)
    expected = BASELINE / f"{name.replace('/', '-')}.png"
    assert compare_images(str(expected), str(drawn), tol=4) is None
