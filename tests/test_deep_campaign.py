"""A campaign trains every objective for equally long, and never trains a finished run again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deep.campaign
from deep.campaign import Config, main, plan, table

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
base = "quick-digits"
model = "mlp"
width = 4
log_samples = 50
check_samples = 10
check_gradients = false
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


def flags(recipe, out, *more):
    return [
        "--recipe", str(recipe), "--objectives", "erm", "mixupe-paper", "--seeds", "3",
        "--epochs", "2", "--threads", "1", "--out", str(out), *more,
    ]  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A campaign of two runs, called once; its folder and what it printed."""
    out = tmp_path_factory.mktemp("campaign") / "c"
    command = [sys.executable, "-m", "deep.campaign", *flags(recipe, out, "--jobs", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_run_stands_in_the_record_with_its_log_and_checks(finished):
    out, printed = finished
    assert "2 runs, epochs each: 2" in printed
    assert "2 of 2 runs are done" in printed
    runs = lines(out)
    assert [(r["recipe"]["objective"], r["recipe"]["seed"]) for r in runs] == [
        ("erm", 3), ("mixupe-paper", 3),
    ]  # fmt: skip
    for run in runs:
        assert [line["epoch"] for line in run["log"]] == [1, 2]
        assert [check["epoch"] for check in run["checks"]] == [0, 1, 2]
        assert run["result"]["last"] == run["log"][-1]
        assert run["recipe"]["width"] == 4
        assert run["result"]["environment"]["commit"]


def test_the_table_is_of_means_and_standard_deviations_over_seeds():
    def run(objective, seed, error, cosine):
        line = {"test_error": error, "test_loss": 10 * error, "train_loss": 0.5}
        check = {
            "relative_error": {"value": 2.0}, "pearson": {"value": None},
            "alignment": None if cosine is None else {"cosine_abs_q": cosine},
        }  # fmt: skip
        result = {"last": line, "best_on_validation": None, "best_on_test": line}
        return {"recipe": {"objective": objective, "seed": seed}, "result": result,
                "checks": [{"relative_error": {"value": 9.0}}, check]}  # fmt: skip

    runs = [run("erm", 0, 0.1, 0.5), run("erm", 1, 0.2, None), run("mixup", 0, 0.3, 0.25)]
    _, _, erm, mixup, *notes = table(runs).splitlines()
    # The standard deviation of 10 and 20 is √50 = 7.07.
    expected = "erm 2 15.00 ± 7.07 – 15.00 ± 7.07 1.500 ± 0.707 0.500 ± 0.000 2.00 ± 0.00 – 0.50"
    assert erm.split() == expected.split()
    assert mixup.split() == [
        "mixup",
        "1",
        "30.00",
        "–",
        "30.00",
        "3.000",
        "0.500",
        "2.00",
        "–",
        "0.25",
    ]
    assert "chosen on the test set" in notes[1]


def test_finished_runs_are_not_trained_again(finished, recipe, capsys):
    out, _ = finished
    before = (out / "runs.jsonl").read_bytes()
    assert main(flags(recipe, out)) == 0
    assert "started" not in capsys.readouterr().out
    assert (out / "runs.jsonl").read_bytes() == before


def test_plan_and_record_are_all_that_need_be_carried(finished, recipe, tmp_path, capsys):
    out, _ = finished
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(out / "campaign.json", there)
    record = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (there / "runs.jsonl").write_text(record[0])
    assert main(flags(recipe, there)) == 0
    printed = capsys.readouterr().out
    assert "erm-seed3: started" not in printed
    assert "mixupe-paper-seed3: done" in printed
    again = lines(there)
    assert again[0] == lines(out)[0]
    for part in ("log", "checks"):  # the same run on the same machine
        assert again[1][part] == lines(out)[1][part]


def test_epochs_follow_from_the_budget_and_are_the_same_for_all(recipe, tmp_path, monkeypatch):
    seconds = {"erm": 10.0, "mixup": 20.0}
    monkeypatch.setattr(deep.campaign, "_seconds_per_epoch", lambda config, threads: seconds)
    made = plan(
        Config(
            recipe=str(recipe), objectives=("erm", "mixup"), seeds=(0, 1), jobs=2,
            budget_minutes=5, out=tmp_path / "c",
        )
    )  # fmt: skip
    assert made["epochs"] == 10  # 300 s · 2 jobs / (2 seeds · 30 s)
    assert made["seconds"] == seconds
    again = Config(
        recipe=str(recipe), objectives=("erm", "mixup"), seeds=(0, 1), budget_minutes=99,
        out=tmp_path / "c",
    )  # fmt: skip
    assert plan(again) == json.loads((tmp_path / "c" / "campaign.json").read_text())
    assert plan(again)["epochs"] == 10


def test_an_epoch_is_measured_for_every_objective(recipe, tmp_path):
    config = Config(
        recipe=str(recipe), objectives=("erm", "mixupe-exact"), seeds=(0,), budget_minutes=1,
        out=tmp_path / "c",
    )  # fmt: skip
    made = plan(config)
    assert set(made["seconds"]) == {"erm", "mixupe-exact"}
    assert min(made["seconds"].values()) > 0
    assert made["epochs"] == int(60 / sum(made["seconds"].values()))


def test_a_campaign_that_is_stopped_goes_on(finished, recipe, tmp_path):
    """SIGTERM to the campaign reaches its runs, which write checkpoints; the record is the same."""
    out = tmp_path / "c"
    command = [sys.executable, "-m", "deep.campaign", *flags(recipe, out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (out / "erm-seed3" / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "call again to go on" in printed
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "2 of 2 runs are done" in again.stdout
    for run, other in zip(lines(out), lines(finished[0]), strict=True):
        assert run["log"] == other["log"]
        assert run["checks"] == other["checks"]


def test_time_that_is_up_ends_the_call(recipe, tmp_path, capsys):
    assert main(flags(recipe, tmp_path / "c", "--minutes", "0.001")) == 0
    assert "call again to go on" in capsys.readouterr().out


def test_a_run_that_fails_is_named_with_its_reason(recipe, tmp_path, capsys):
    bad = tmp_path / "bad.toml"
    bad.write_text(RECIPE + "lr = 1e30\n")
    assert main(flags(bad, tmp_path / "c")) == 1
    printed = capsys.readouterr()
    assert "0 of 2 runs are done" in printed.out
    assert "erm-seed3 failed: error: the loss is" in printed.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--seeds", "1", "1"], "name at least one, and each once"),
        (["--seeds", "-1"], "seed is -1: it must be at least 0 and below 2^32"),
        (["--minutes", "-1"], "--minutes is -1"),
        (["--budget-minutes", "nan"], "--budget-minutes is nan"),
        (["--recipe", "none"], "unknown recipe 'none'"),
        (["--objectives", "adam"], "adam"),
    ],
)
def test_bad_input_is_one_line(recipe, tmp_path, capsys, more, message):
    assert main([*flags(recipe, tmp_path / "c"), *more]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "c" / "campaign.json").exists()


def test_another_campaign_in_the_folder_is_refused(finished, recipe, capsys):
    out, _ = finished
    assert main([*flags(recipe, out), "--seeds", "3", "4"]) == 2
    assert "holds another campaign (seeds was [3], is [3, 4])" in capsys.readouterr().err


def test_a_recipe_that_has_changed_is_refused_and_a_plan_without_settings_is_not(tmp_path, capsys):
    path, out = tmp_path / "my.toml", tmp_path / "c"
    path.write_text(RECIPE)
    more = ("--minutes", "1e-9")  # plans, and trains nothing
    assert main(flags(path, out, *more)) == 0
    made = json.loads((out / "campaign.json").read_text())
    assert (made["settings"]["width"], made["settings"]["data"]) == (4, "digits")
    assert not {"objective", "seed", "epochs", "data_dir"} & made["settings"].keys()
    path.write_text(RECIPE + "epochs = 9\nseed = 5\n")  # the campaign has its own
    assert main(flags(path, out, *more)) == 0
    path.write_text(RECIPE.replace("width = 4", "width = 5") + "milestones = [1.5]\n")
    capsys.readouterr()
    assert main(flags(path, out, *more)) == 2
    told = capsys.readouterr().err
    assert "another campaign (milestones was [], is [1.5]; width was 4, is 5)" in told
    assert told.count("\n") == 1
    del made["settings"]
    (out / "campaign.json").write_text(json.dumps(made))
    assert main(flags(path, out, *more)) == 0
    (out / "campaign.json").write_text(json.dumps({**made, "settings": [1]}))
    assert main(flags(path, out, *more)) == 2
    assert "is no whole plan" in capsys.readouterr().err


def test_jobs_may_change_from_call_to_call_and_threads_may_not(
    recipe, tmp_path, monkeypatch, capsys
):
    asked = []

    def note(folder, cells, *, jobs, threads, **others):
        asked.append((jobs, threads))
        (folder / "runs.jsonl").write_text("")
        return {}

    monkeypatch.setattr(deep.campaign, "carry_out", note)
    out = tmp_path / "c"
    for more in (["--jobs", "3", "--threads", "2"], [], ["--jobs", "1"], ["--threads", "2"]):
        few = ["--recipe", str(recipe), "--epochs", "2", "--out", str(out), *more]
        assert main(few) == 0
    assert asked == [(3, 2), (3, 2), (1, 2), (3, 2)]
    assert main(["--recipe", str(recipe), "--threads", "1", "--out", str(out)]) == 2
    assert "threads were 2, are 1" in capsys.readouterr().err


def test_a_budget_below_one_epoch_is_refused(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deep.campaign, "_seconds_per_epoch", lambda config, threads: {"erm": 600.0})
    arguments = ["--recipe", str(recipe), "--objectives", "erm", "--budget-minutes", "5"]
    assert main([*arguments, "--out", str(tmp_path / "c")]) == 2
    assert "one epoch of all 3 runs takes about 30 minutes" in capsys.readouterr().err
