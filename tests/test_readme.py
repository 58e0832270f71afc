"""What the README shows is what the code and the records in `results/` say."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deep.campaign import table
from deep.deformations import PUBLISHED
from deep.run_folder import read_lines
from deep.tables.compare import gains, measured, ranks, selections
from deep.tables.published import METHODS, published
from deep.tables.render import overview, rendered
from theory import read_reports
from theory.report import claims_table, orders_table, segments_summary

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- table: (\S+) -->\n```\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("record", "shown"), TABLES, ids=[record for record, _ in TABLES])
def test_tables_are_those_of_the_records(record, shown):
    reports = read_reports(ROOT / record)
    ends = [reports[0], reports[-1]] if len(reports) > 1 else reports
    assert shown == claims_table(ends) + "\n"
    assert reports[-1].environment["commit"]
    assert "+changes" not in reports[-1].environment["commit"]


def test_summary_rows_are_those_of_the_records():
    paths, shown = re.search(r"<!-- rows: (.+) -->\n((?:\|.*\n)+)", README).groups()
    assert shown.splitlines()[2:] == summary_rows([ROOT / path for path in paths.split()])


def summary_rows(paths):
    """A row a check: what it says of q̂."""
    rows = []
    for path in paths:
        for check in read_reports(path):
            assert "+changes" not in check.environment["commit"]
            value = {name: claim.value for name, claim in check.claims.items()}
            numbers = (
                *(f"{value[name]:.2f}" for name in ("q_hat", "normalization", "homogeneity")),
                f"{check.agreement['value']['pearson']:+.2f}",
                f"{value['gradient']:+.2f}",
            )
            cells = (check.settings["objective"], f"{check.training['epoch']:.2f}", *numbers)
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def test_the_toys_numbers_are_those_of_its_records():
    records = {
        name: json.loads((ROOT / "results" / "toy" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bias", "soft", "relu", "boundary", "sweep", "descent")
    }
    for record in records.values():
        assert "+changes" not in record["environment"]["commit"]
    soft = records["bias"]["soft_minimiser"]
    quoted = f"‖w‖ = {soft['norm']:.3f} and {soft['angle_degrees']:.0f}° from"
    assert quoted in " ".join(README.split())
    sizes = [abs(row["angle_degrees"]) for row in records["soft"]["by_alpha"]]
    assert 0 < int(np.argmax(sizes)) < len(sizes) - 1  # "largest in between"
    erm, mixup, mixupe = (panel["test_accuracy"] for panel in records["boundary"]["panels"])
    assert erm > max(mixup, mixupe)  # "cost accuracy"


ORDERS = re.findall(r"<!-- orders: (\S+) -->\n```\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("record", "shown"), ORDERS, ids=[record for record, _ in ORDERS])
def test_tables_of_orders_are_those_of_the_records(record, shown):
    report = read_reports(ROOT / record)[-1]
    lines = [orders_table(report), *([segments_summary(report)] if report.segments else [])]
    assert shown == "\n".join(lines) + "\n"
    assert "+changes" not in report.environment["commit"]


def test_the_bounds_rows_are_those_of_the_record():
    path, shown = re.search(r"<!-- bound: (.+) -->\n((?:\|.*\n)+)", README).groups()
    record = json.loads((ROOT / path).read_text(encoding="utf-8"))
    ends = (record["sizes"][0], record["sizes"][-1])
    assert shown.splitlines()[0].endswith(f"| n = {ends[0]['n']} | n = {ends[1]['n']:.0e} |")
    named = ("reach", "ball", "class", "complexity", "objective", "repaired")
    claims = [[size["claims"][name] for size in ends] for name in named]
    rows = [
        " | ".join(
            [
                first["statement"].replace("|", "\\|"),
                first["measure"].replace("|", "\\|"),
                *(f"{claim['verdict']} {claim['value']:.3g}" for claim in (first, last)),
            ]
        )
        for first, last in claims
    ]
    assert shown.splitlines()[2:] == [f"| {row} |" for row in rows]


COSTS = re.findall(r"<!-- costs: (.+) -->\n((?:\|.*\n)+)", README)
CAMPAIGNS = re.findall(r"<!-- campaign: (\S+) -->\n```\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("path", "shown"), COSTS, ids=[path for path, _ in COSTS])
def test_costs_are_those_of_the_record(path, shown):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    figures = [json.loads(line) for line in lines]
    assert "+changes" not in figures[0]["commit"]
    rows = [
        f"| {figure['name']} | {digits(figure['ratio'])} | {figure['goal'] or ''} |"
        for figure in figures[1:]
    ]
    assert shown.splitlines()[2:] == rows


def digits(ratio):
    return f"{ratio:.2f}" if ratio >= 0.05 else f"{ratio:.4f}"


@pytest.mark.parametrize(("path", "shown"), CAMPAIGNS, ids=[path for path, _ in CAMPAIGNS])
def test_campaigns_are_those_of_the_record(path, shown):
    runs = read_lines(ROOT / path)
    assert shown == table(runs) + "\n"
    for run in runs:
        assert "+changes" not in run["result"]["environment"]["commit"]
    plan = json.loads((ROOT / path).with_name("campaign.json").read_text(encoding="utf-8"))
    assert {run["recipe"]["epochs"] for run in runs} == {plan["epochs"]}


def test_running_statistics_are_compared_as_the_records_say():
    found = []
    for clean in ("update", "freeze"):
        path = ROOT / "results" / "campaign" / "clean-statistics" / clean / "runs.jsonl"
        runs = read_lines(path)
        assert {run["recipe"]["clean_statistics"] for run in runs} == {clean}
        last = [run["result"]["last"] for run in runs]
        found += [[100 * line["test_error"] for line in last], [line["test_loss"] for line in last]]
    (error, loss), (frozen_error, frozen_loss) = (
        [
            f"{np.mean(v):.{k}f} ± {np.std(v, ddof=1):.{k}f}"
            for v, k in zip(pair, (2, 3), strict=True)
        ]
        for pair in (found[:2], found[2:])
    )
    text = " ".join(README.split())
    assert f"error is {error} % with the update and {frozen_error} % without" in text
    assert f"test loss {loss} and {frozen_loss}." in text


def test_what_the_clean_pass_gains_without_a_penalty_is_what_the_records_say():
    folder = ROOT / "results" / "campaign" / "clean-statistics"
    text = " ".join(README.split())
    shown = []
    digits = read_lines(folder / "digits-eta0" / "runs.jsonl")
    control = read_lines(folder / "cifar10-eta0" / "runs.jsonl")
    for run in [*digits, *control]:
        assert run["recipe"]["eta"] == 0
        assert "+changes" not in run["result"]["environment"]["commit"]
    for objective in ("mixup", "mixupe-paper"):
        own = [run for run in digits if run["recipe"]["objective"] == objective]
        errors = [100 * run["result"]["last"]["test_error"] for run in own]
        shown.append(f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} %")
    clean = "with a clean pass and no penalty (`--eta 0`) it has"
    assert f"Mixup has {shown[0]}; {clean} {shown[1]}." in text

    last = {("eta 0", run["recipe"]["seed"]): run["result"]["last"] for run in control}
    for run in read_lines(folder.parent / "small-cifar10" / "runs.jsonl"):
        last[run["recipe"]["objective"], run["recipe"]["seed"]] = run["result"]["last"]

    def gains(objective, key):
        return [last["mixup", seed][key] - last[objective, seed][key] for seed in (1, 2)]

    for seed in (1, 2):  # the same training, so the same mixed losses
        assert last["eta 0", seed]["loss"] == pytest.approx(last["mixup", seed]["loss"], rel=1e-5)
    for objective, said in (
        ("eta 0", "test error by {:.1f} and {:.1f} points and its test loss by {:.3f} and {:.3f},"),
        ("mixupe-paper", "lowers them by {:.1f} and {:.1f} points and by {:.3f} and {:.3f}."),
    ):
        errors = (100 * gain for gain in gains(objective, "test_error"))
        assert said.format(*errors, *gains(objective, "test_loss")) in text
    left = [
        100 * np.mean(np.subtract(gains(objective, "test_error"), gains("eta 0", "test_error")))
        for objective in ("mixupe-paper", "mixupe-official-v3", "mixupe-exact")
    ]
    assert left[0] < 0 < left[1]
    said = (
        "is −{:.2f} points for |q̂| in the talk's form, {:.2f} for official-v3 and {:.2f} for exact"
    )
    assert said.format(abs(left[0]), *left[1:]) in text


def test_there_are_tables_to_compare():
    assert ORDERS
    assert TABLES
    assert COSTS
    assert CAMPAIGNS


def test_links_and_pictures_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_library_example_runs_as_it_stands(tmp_path):
    example = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "torch" in b)
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "L_mix = L_std + R" in done.stdout
    assert (tmp_path / "report.json").exists()


def test_flags_named_in_the_readme_exist():
    # pip's, torchrun's, everyone's
    others = {"--index-url", "--no-index", "--no-deps", "--nproc-per-node", "--help"}
    named = set(re.findall(r"(--[a-z][a-z0-9.-]+)", README)) - others
    known = ""
    commands = (
        ["theory.check_approx"], ["theory.generalization"], ["toy", "bias"], ["deep.train"],
        ["deep.campaign"], ["deep.robustness"], ["deep.grid", "run"], ["deep.table", "4"],
        ["figures"],
    )  # fmt: skip
    for command in commands:
        known += subprocess.run(
            [sys.executable, "-m", *command, "--help"],
            capture_output=True, text=True, cwd=ROOT, timeout=300, check=True,
        ).stdout  # fmt: skip
    assert {flag for flag in named if flag not in known} == set()


OVERVIEWS = re.findall(r"<!-- overview: (\d) (\S+) \((.*)\) -->\n((?:\|.*\n)+)", README)


@pytest.mark.parametrize(
    ("number", "path", "selection", "shown"), OVERVIEWS, ids=[f"{o[0]} {o[2]}" for o in OVERVIEWS]
)
def test_overviews_are_those_of_the_record(number, path, selection, shown):
    lines = read_lines(ROOT / path)
    assert shown == overview(int(number), lines, selection or None) + "\n"
    files = rendered(int(number), lines)
    for line in lines:
        assert "+changes" not in line["environment"]["commit"]
    for name, text in files.items():
        assert (ROOT / path).with_name(name).read_text(encoding="utf-8") == text


def test_kinds_of_data_are_compared_as_the_records_say():
    paths, shown = re.search(r"<!-- kinds: (.+) -->\n((?:\|.*\n)+)", README).groups()
    assert shown == kinds_table([ROOT / path for path in paths.split()])


def kinds_table(paths):
    """A row a record: what its last check says of q̂."""
    rows = [
        "| network | data | epoch | ‖q − q̂‖ / ‖q‖ | normalisation gap | homogeneity gap | "
        "Pearson(q, q̂) | cos(∇mean\\|q\\|, ∇mean\\|q̂\\|) | q̂ ≈ q |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    for path in paths:
        check = read_reports(path)[-1]
        assert "+changes" not in check.environment["commit"]
        claims, settings = check.claims, check.settings
        width = "" if settings["width"] is None else f", width {settings['width']}"
        cells = [
            f"{settings['model']}{width}", settings["data"], f"{check.training['epoch']:.3g}",
            *(f"{claims[n].value:.2g}" for n in ("q_hat", "normalization", "homogeneity")),
            f"{check.agreement['value']['pearson']:+.2f}", f"{claims['gradient'].value:+.2f}",
            claims["q_hat"].verdict,
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_what_was_reproduced_is_what_the_records_say():
    (shown,) = re.findall(r"<!-- verdicts -->\n((?:\|.*\n)+)", README)
    assert shown == verdicts_table()
    cells = [line.split(" | ") for line in shown.splitlines()[2:]]
    assert sum(int(line[3]) for line in cells if line[1] == "Mixup") == 0  # "no claimed gain"


def verdicts_table():
    """A row a table, selection and baseline: what became of the gains that the talk claims."""
    kinds = ("reproduced", "not reproduced", "undecided")
    rows = [
        f"| table | over | gains claimed and tested | {' | '.join(kinds)} |",
        "| --- " * 6 + "|",
    ]
    for number in (4, 5, 6):
        lines = read_lines(ROOT / "results" / "tables" / str(number) / "record.jsonl")
        for selection in selections(lines):
            frame = gains(published(number), measured(lines, selection))
            frame = frame[(frame["method"] == "mixupe-paper") & (frame["claimed"] < 0)]
            for baseline, name in (("erm", "ERM"), ("mixup", "Mixup")):
                verdicts = list(frame.loc[frame["baseline"] == baseline, "verdict"])
                # "reproduced, smaller" is reproduced
                found = [sum(text.split(",")[0] == kind for text in verdicts) for kind in kinds]
                assert sum(found) == len(verdicts)
                table = f"{number}, {selection}" if selection else str(number)
                rows.append(f"| {' | '.join([table, name, *map(str, [len(verdicts), *found])])} |")
    return "\n".join(rows) + "\n"


def test_what_is_said_of_table_4_is_what_its_record_says():
    lines = read_lines(ROOT / "results" / "tables" / "4" / "record.jsonl")
    rows = measured(lines, None)
    assert set(published(4).rows) - set(rows) == {"volkert"}
    splits = {line["row"]: len(line["settings"]["seeds"]) for line in lines}
    assert splits == {**dict.fromkeys(rows, 20), "mnist": 5}
    took = Counter()
    for line in lines:
        if line["row"] != "mnist":
            took[line["command"]] += line["seconds"]
    assert len(took) == 2  # a call on each core
    assert f"{max(took.values()) / 60:.0f}" == "34"
    assert f"{sum(took.values()) / 60:.0f}" == "53"
    frame = gains(published(4), rows)
    frame = frame[frame["method"] == "mixupe-paper"].set_index(["row", "baseline"])
    over_mixup, over_erm = (frame.xs(name, level="baseline") for name in ("mixup", "erm"))
    assert not over_mixup["verdict"].str.startswith("reproduced").any()
    assert (over_mixup["difference"].abs() < 0.25).all()
    assert not ((over_mixup["low"] > 0) | (over_mixup["high"] < 0)).any()
    reproduced = over_erm["verdict"].str.startswith("reproduced")
    assert list(over_erm.index[reproduced]) == ["mfeat-zernike"]
    assert f"{over_erm.loc['mfeat-zernike', 'p']:.2f}" == "0.32"
    erm, mixup = rows["mfeat-zernike"].of("erm", "mixup")
    assert erm.mean() - mixup.mean() > 0.9 * -over_erm.loc["mfeat-zernike", "difference"]
    assert over_erm.loc["balance-scale", "difference"] > 5
    assert min(ranks(rows).pairs.values()) > 0.05


def test_what_is_said_of_table_5_is_what_its_record_says():
    lines = read_lines(ROOT / "results" / "tables" / "5" / "record.jsonl")
    rows = measured(lines, "last epoch")
    assert list(rows) == list(published(5).rows)
    assert ranks(rows).ranks["mixup"] == 1  # "the lowest", on each
    frame = gains(published(5), rows)
    assert (frame["verdict"] == "undecided").all()
    assert (frame["high"] - frame["low"] > 2 * frame["claimed"].abs()).all()  # "wider"
    assert frame["claimed"].abs().between(0.095, 2.2).all()  # "0.1 to 2 points"
    assert {line["data"]["train"] + line["data"]["test"] for line in lines} == {960}


def test_what_is_said_of_table_6_is_what_its_record_says():
    lines = read_lines(ROOT / "results" / "tables" / "6" / "record.jsonl")
    assert set(published(6).rows) == {line["row"] for line in lines}
    means = []
    for selection in ("common epoch", "nested"):
        rows = measured(lines, selection)
        frame = gains(published(6), rows)
        assert not frame["verdict"].str.startswith("reproduced").any()
        means.append(
            {row: [e.mean() for e in of.of(*METHODS.values())] for row, of in rows.items()}
        )
    common, nested = means
    higher = [b - a for row in nested for a, b in zip(common[row], nested[row], strict=True)]
    least, *rest = sorted(higher)
    assert f"{least:.2f}" == f"{nested['NCI1'][-1] - common['NCI1'][-1]:.2f}" == "-0.07"
    assert [f"{value:.1f}" for value in (rest[0], rest[-1])] == ["0.3", "5.8"]
    last = {row for row, (*others, mixupe) in nested.items() if mixupe > max(others)}
    assert last == {"PROTEINS", "IMDB-BINARY", "IMDB-MULTI"}
    worse = frame[frame["low"] > 0]  # nested
    pairs = zip(worse["row"], worse["baseline"], strict=True)
    assert set(pairs) == {("IMDB-BINARY", "mixup"), ("IMDB-MULTI", "mixup")}
    assert (worse["p"] > 0.05).all()


def test_what_is_said_claim_by_claim_is_what_the_checks_say():
    checks = {
        path.parent.name: read_reports(path)
        for path in (ROOT / "results" / "check_approx").glob("*/report.json")
    }
    last = {name: reports[-1].claims for name, reports in checks.items()}
    missed = sorted(claims["first_order"].value for claims in last.values())
    assert f"{missed[0]:.2f}" == "0.49"
    assert len(missed) == 10
    assert missed[1] > 0.84
    holds = {name for name, claims in last.items() if claims["q_hat"].verdict == "HOLDS"}
    assert holds == {f"mlp{kind}-optdigits-mixupe-paper" for kind in ("", "-bias-free")}
    fails = [claims["q_hat"].value for name, claims in last.items() if name not in holds]
    assert (f"{min(fails):.1f}", f"{max(fails):.1f}") == ("0.4", "1.1")
    means = [
        check.claims["normalization"].value
        for name, reports in checks.items()
        for check in reports
        if "-digits-" in name or "cifar" in name or "vgg" in name
    ]
    assert round(min(means), 2) >= 0.05
    assert max(means) <= 1.25
    gaps = [c.claims["homogeneity"].value for n, cs in checks.items() for c in cs if "preact" in n]
    assert min(gaps) > 0.8
    for name, claims in last.items():
        assert (claims["homogeneity"].value < 1e-5) == ("bias-free" in name)


def test_what_is_said_of_the_preact_resnets_is_what_their_checks_say():
    folder, text = ROOT / "results" / "check_approx", " ".join(README.split())
    start, *_, end = read_reports(folder / "preact50-digits-mixupe-paper" / "report.json")
    value = {name: claim.value for name, claim in end.claims.items()}
    pearson = end.agreement["value"]["pearson"]
    assert (
        f"at initialisation its error is {start.claims['q_hat'].value:.1f} times q itself, after "
        f"an epoch {value['q_hat']:.2f} times, and by then the two are anti-correlated (−"
        f"{-pearson:.2f})" in text
    )
    assert f"against |q| (cosine −{-value['gradient']:.2f})" in text
    assert f"R_1 is off by {value['first_order']:.0%} of R".replace("%", " %") in text
    found = read_reports(folder / "preact18-digits-mixupe-paper" / "report.json")[-1].orders
    assert found["tangent"] / found["r"] == pytest.approx(0.6, abs=0.05)  # "three fifths"
    further = [k for k, rest in enumerate(found["rest_composite"], 1) if rest > 1]
    assert further == [1, 5, 6]
    assert abs(found["composite"][0]) < 0.05 * found["r"]  # "none of R"


def test_what_is_said_of_the_campaign_is_what_its_record_says():
    runs = read_lines(ROOT / "results" / "campaign" / "small-cifar10" / "runs.jsonl")
    last = {(r["recipe"]["objective"], r["recipe"]["seed"]): r["result"]["last"] for r in runs}
    objectives = {objective for objective, _ in last}
    assert set(last) == {(objective, seed) for objective in objectives for seed in (0, 1, 2)}
    text = " ".join(README.split())
    for objective, said in (
        ("mixupe-exact", "exact |q| lowers Mixup's test error by {}, {} and {} points"),
        ("mixupe-official-v3", "official-v3 by {}, {} and {},"),
        ("mixupe-paper", "|q̂| in the talk's form by {}, {} and {}."),
    ):
        gains = [
            100 * (last["mixup", seed]["test_error"] - last[objective, seed]["test_error"])
            for seed in (0, 1, 2)
        ]
        assert said.format(*(f"{gain:.1f}" for gain in gains)) in text
    for key in ("train_loss", "test_loss"):
        mean = {
            objective: np.mean([line[key] for (name, _), line in last.items() if name == objective])
            for objective in objectives
        }
        assert min(mean, key=mean.get) == "erm"
        assert all(mean[name] < mean["mixup"] for name in objectives if "mixupe" in name)
    late = [c["relative_error"]["value"] for r in runs for c in r["checks"] if c["epoch"] >= 6]
    assert f"from {min(late):.2f} to {max(late):.2f})" in text


def test_what_is_said_of_deformed_images_is_what_the_record_says():
    path = ROOT / "results" / "campaign" / "small-cifar10" / "robustness.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert "+changes" not in record["environment"]["commit"]
    accuracy = {
        group["label"]: {n: 100 * m["accuracy"]["mean"] for n, m in group["measures"].items()}
        for group in record["groups"]
    }
    apart = np.array([accuracy["mixupe-paper"][n] - accuracy["mixup"][n] for n in PUBLISHED])
    text = " ".join(README.split())
    assert f"above Mixup on {(apart > 0).sum()} sets and below on {(apart < 0).sum()}" in text
    assert f"above Mixup on {(apart > 0).sum()} of 8 sets, below on {(apart < 0).sum()} |" in text
    assert f"by {np.abs(apart).max():.1f} points at most either way" in text
    assert len(apart) == 8
    assert f"above on {sum(ours > mixup for mixup, _, ours in PUBLISHED.values())}." in text
    assert max(accuracy[name]["PGD"] for name in accuracy) == 0
