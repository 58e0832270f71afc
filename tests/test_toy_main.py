import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures import implicit_bias, relu_margin, soft_minimiser
from toy.__main__ import Reporter, main
from toy.data import load
from toy.descent import Recipe, descend
from toy.flow import gaps
from toy.max_margin import max_margin
from toy.objective import Objective
from toy.studies import (
    Bias,
    Descent,
    Relu,
    Soft,
    Sweep,
    measure_bias,
    measure_descent,
    measure_relu,
    measure_soft,
    measure_sweep,
)

SMALL = {
    "bias": ["--log10-t", "12", "--times", "30"],
    "descent": ["--steps", "200"],
    "soft": ["--alphas", "0.1", "1", "--margins", "1", "2"],
    "sweep": ["--seeds", "3", "--alphas", "0.5", "2", "--steps", "100"],
    "relu": ["--steps", "400", "--points", "12"],
    "boundary": ["--steps", "30", "--side", "12"],
}


@pytest.mark.parametrize("study", SMALL)
def test_each_study_writes_its_record_and_its_figures(study, tmp_path, capsys):
    assert main([study, *SMALL[study], "--out", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{study}.json", f"{study}.png", f"{study}.pdf"}
    record = json.loads((tmp_path / f"{study}.json").read_text())
    assert record["study"] == study
    assert "toy" in record["command"]
    assert record["environment"]["versions"]["numpy"]
    output = capsys.readouterr().out
    assert f"{study}.json" in output


def test_the_record_holds_the_figures_numbers():
    """Norms grow, losses fall, soft labels stop; the figure draws these columns and no others."""
    record = json.loads(json.dumps(measure_bias(Bias(log10_t=20.0, times=40))))
    erm, signed, soft = implicit_bias.rows(record)
    for row in (erm, signed):
        assert row["log10_loss"][-1] == pytest.approx(-20.3, abs=0.6)
        assert (np.diff(row["norm"]) > 0).all()
    assert soft["norm"][-1] == pytest.approx(record["soft_minimiser"]["norm"], rel=1e-9)
    figure = implicit_bias.plot(record)
    assert isinstance(figure, Figure)
    norm, _, angle, _ = figure.axes
    np.testing.assert_allclose(norm.lines[0].get_ydata(), erm["norm"] / erm["norm"][-1])
    np.testing.assert_allclose(angle.lines[1].get_ydata(), signed["angle_gap"])
    assert [len(rates) for rates in record["rates"].values()] == [4, 5]


def text_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_the_figure_says_where_two_lines_are_one_and_hides_no_plateau():
    """On the symmetric set ERM's angle gap falls below 1e-17 and is drawn all the way."""
    record = measure_bias(Bias(data="soudry", log10_t=30.0, times=40, rates=False))
    figure = implicit_bias.plot(record)
    assert "lie on each other" in text_of(figure)
    drawn = figure.axes[2].lines[0].get_ydata()
    assert drawn[-1] < 1e-19
    assert (np.diff(np.log(drawn[20:])) < 0).all()


def test_what_rounding_decides_is_not_drawn():
    record = measure_bias(Bias(data="soudry", log10_t=60.0, times=60, rates=False))
    figure = implicit_bias.plot(record)
    assert text_of(figure).count("rounding decides") == 2
    for ax, floor in zip(figure.axes[2:], (1e-24, 1.4e-12), strict=True):
        drawn = ax.lines[0].get_ydata()
        assert np.isnan(drawn[-1])
        assert np.nanmin(drawn) > floor


def test_empty_panels_say_why(tmp_path):
    path = tmp_path / "colinear.csv"
    path.write_text("1,1,1\n2,2,1\n-1,-1,-1\n-3,-3,-1\n")
    record = measure_bias(Bias(data=str(path), log10_t=10.0, times=10, rates=False))
    text = text_of(implicit_bias.plot(record))
    assert text.count("no gap above rounding") == 2
    assert "colinear.csv" in text
    assert str(tmp_path) not in text
    soft = measure_soft(Soft(data=str(path), alphas=(0.1, 1.0), margins=(1.0, 2.0)))
    figure = soft_minimiser.plot(soft)
    assert text_of(figure).count("0° to rounding") == 2
    assert not figure.axes[2].lines[1].get_ydata().any()


def test_only_the_chosen_algorithms_run_and_the_title_says_how():
    record = measure_descent(Descent(algorithms=("gd", "adam"), steps=30, sampled=False))
    assert [series["label"] for series in record["series"]] == ["gd", "adam"]
    text = text_of(implicit_bias.plot(record))
    assert "labels absorbed (signed) on skewed" in text
    assert "exact over λ and pairs" in text


def test_an_exact_sweep_draws_nothing():
    """Two seeds of the draws, one data set each: only data set the results apart."""
    flags = {"seeds": 2, "alphas": (1.0,), "steps": 20, "algorithm": "momentum"}
    record = measure_sweep(Sweep(sampled=False, **flags))
    data = load("clouds", seed=1, n=40)
    path = descend(
        [Objective(data, "mixup-signed")], Recipe("momentum", 20, records=60), seeds=[99]
    )
    alone = gaps(path.w[:, 0], data.signed, max_margin(data.signed))[1]
    other = load("clouds", seed=0, n=40)
    path = descend([Objective(other, "mixup-signed")], Recipe("momentum", 20, records=60))
    alone = (alone + gaps(path.w[:, 0], other.signed, max_margin(other.signed))[1]) / 2
    np.testing.assert_allclose(record["series"][1]["angle_gap"], alone, rtol=1e-9)


def test_the_seed_of_a_sweep_moves_data_and_draws():
    """Seeds 5 and 6 of both, against one run after the other; other draws do not give it."""
    record = measure_sweep(Sweep(seed=5, seeds=2, alphas=(1.0,), steps=20))
    sets = [load("clouds", seed=seed, n=40) for seed in (5, 6)]

    def gap(first):
        recipe, found = Recipe("gd", 20, sampled=True, records=60), 0.0
        for k, data in enumerate(sets):
            path = descend([Objective(data, "mixup-signed")], recipe, seeds=[first + k])
            found += gaps(path.w[:, 0], data.signed, max_margin(data.signed))[1] / 2
        return found

    np.testing.assert_allclose(record["series"][1]["angle_gap"], gap(5), rtol=1e-9)
    assert not np.allclose(record["series"][1]["angle_gap"], gap(0), rtol=1e-3)


def test_the_angle_has_a_sign_in_the_plane_only():
    soft = measure_soft(Soft(alphas=(1.0,), margins=(0.1, 10.0)))
    low, high = (row["signed_angle_degrees"] for row in soft["by_margin"])
    assert low > 20
    assert high < -20
    assert soft["by_alpha"][0]["angle_degrees"] == pytest.approx(
        abs(soft["by_alpha"][0]["signed_angle_degrees"])
    )
    solid = measure_soft(Soft(data="clouds", dimension=3, alphas=(1.0,), margins=(1.0,)))
    assert solid["by_alpha"][0]["signed_angle_degrees"] is None
    assert "signed" not in text_of(soft_minimiser.plot(solid))


def test_the_relu_figure_says_why_mixup_ends():
    record = measure_relu(Relu(steps=400, points=12))
    assert "its steps are used up" in text_of(relu_margin.plot(record))


def test_symmetric_data_are_drawn_with_a_note_instead_of_rates():
    record = measure_bias(Bias(data="soudry", log10_t=30.0, times=30))
    assert record["rates"].keys() == {"mixup-signed"} or record["notes"]
    assert any("symmetric" in note for note in record["notes"])


def test_separable_names_and_writes_its_certificate(tmp_path, capsys):
    assert main(["separable", "--data", "cancer", "--out", str(tmp_path)]) == 0
    assert "cancer: separable" in capsys.readouterr().out
    record = json.loads((tmp_path / "separable.json").read_text())
    z = load("cancer").signed
    assert (z @ record["direction"]).min() > 0
    assert main(["separable", "--data", "rings", "--out", str(tmp_path)]) == 0
    assert "not separable" in capsys.readouterr().out
    record = json.loads((tmp_path / "separable.json").read_text())
    assert min(record["weights"]) >= 0
    assert sum(record["weights"]) == pytest.approx(1.0)
    np.testing.assert_allclose(record["weights"] @ load("rings").signed, 0, atol=1e-12)


def test_an_intercept_separates_what_a_line_through_the_origin_does_not(tmp_path, capsys):
    path = tmp_path / "off.csv"
    path.write_text("1,1,1\n2,3,1\n0,0.5,0\n0.5,-1,0\n")
    flags = ["separable", "--data", str(path), "--out", str(tmp_path)]
    assert main(flags) == 0
    assert "not separable" in capsys.readouterr().out
    assert main([*flags, "--intercept"]) == 0
    assert "csv: separable" in capsys.readouterr().out


def test_flags_without_a_command_are_those_of_the_talk(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("toy.__main__.run", lambda flags: asked.append(flags.command) or 0)
    assert main([]) == main(["--out", str(tmp_path)]) == 0
    assert [type(command).__name__ for command in asked] == ["Talk", "Talk"]
    assert asked[1].out == tmp_path


def test_a_refused_run_leaves_no_folder_behind(tmp_path):
    assert main(["bias", "--data", "moons", "--out", str(tmp_path / "new" / "deep")]) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    assert main(["bias", "--data", "moons", "--out", str(tmp_path / "old")]) == 2
    assert (tmp_path / "old").exists()


def test_progress_is_plain_lines_where_there_is_no_terminal(monkeypatch, capsys):
    now = iter([0.0, 3.0, 11.0, 12.0, 25.0])
    monkeypatch.setattr("toy.__main__.time.monotonic", lambda: next(now))
    report = Reporter()
    for step in (1, 2, 3, 4):
        report(f"step {step}")
    report.close()
    assert capsys.readouterr().err == "step 2 (11 s)\nstep 4 (25 s)\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["bias", "--data", "moons"], "not linearly separable"),
        (["bias", "--data", "nowhere"], "unknown data"),
        (["bias", "--log10-t", "1000"], "final time"),
        (["bias", "--alpha", "-1"], "alpha"),
        (["bias", "--data", "one.csv"], "only one class"),
        (["bias", "--data", "nan.csv"], "NaN"),
        (["bias", "--data", "twice.csv"], "duplicates"),
        (["bias", "--data", "both.csv"], "both labels"),
        (["bias", "--data", "huge.csv"], "rescale"),
        (["bias", "--data", "empty.csv"], "empty"),
        (["descent", "--batch", "100000000000"], "choose at most"),
        (["boundary", "--side", "10000000", "--steps", "1"], "memory"),
        (["descent", "--step", "100"], "stability limit 2/L"),
        (["descent", "--protocol", "mixup"], "protocol"),
        (["sweep", "--seeds", "1"], "at least 2 seeds"),
        (["soft", "--margins", "-1"], "not separable"),
        (["boundary", "--data", "digits"], "invalid choice 'digits'"),
        (["boundary", "--eta", "inf"], "eta finite"),
        (["bias", "--seed", "-1"], "seed -1 would be used"),
        (["relu", "--seed", "-3"], "at least 0 and below 2^32"),
        (["bias", "--data", "moons", "--seed", str(2**32)], "below 2^32"),
        (["boundary", "--seed", str(2**32 - 1)], "the seeds counted on from it"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("1,2,1\n3,1,1\n")
    (tmp_path / "nan.csv").write_text("1,nan,1\n3,1,0\n")
    (tmp_path / "twice.csv").write_text("1,2,1\n3,1,0\n1,2,1\n")
    (tmp_path / "huge.csv").write_text("1e200,2,1\n3,1,0\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "both.csv").write_text("1,2,1\n3,1,0\n1,2,0\n")
    # A machine that needs more than ten seconds sees how far it is first.
    monkeypatch.setattr("toy.__main__.Reporter.__call__", lambda self, text: None)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert not list(tmp_path.rglob("*.json"))


def test_clouds_keep_their_flags():
    data = load("clouds", seed=1, n=9, d=4, margin=2.0)
    assert data.x.shape == (9, 4)


def test_help_names_every_study(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for study in (*SMALL, "talk", "separable"):
        assert study in text


def test_a_suggested_step_is_accepted(tmp_path, capsys):
    """The tightest algorithm is judged first, before any has run."""
    flags = ["descent", "--steps", "20", "--out", str(tmp_path)]
    assert main([*flags, "--step", "1000"]) == 2
    message = capsys.readouterr().err
    suggested = message.split("; ")[1].split()[0]
    assert main([*flags, "--step", suggested]) == 0


def test_colinear_points_are_said_to_leave_the_minimiser_undetermined(tmp_path, capsys):
    path = tmp_path / "colinear.csv"
    path.write_text("1,1,1\n2,2,1\n-1,-1,-1\n-3,-3,-1\n")
    flags = ["soft", "--data", str(path), "--alphas", "1", "--margins", "1"]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    assert "not unique" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["bias", "--alpha", "1e6", "--no-rates"], "too concentrated for a quadrature rule"),
        (["soft", "--alphas"], "at least one value"),
        (["descent", "--algorithms"], "at least one of gd"),
        (["descent", "--algorithms", "newton"], "newton"),
        (["boundary", "--data", "clouds"], "--data"),
        (["sweep", "--data", "digits"], "--data"),
    ],
)
def test_settings_without_a_meaning_are_refused_in_one_line(flags, message, tmp_path, capsys):
    assert main([*flags, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())
