import numpy as np
import pytest

from theory.errors import InputError
from toy.data import ToyData, load, planted
from toy.max_margin import max_margin


@pytest.mark.parametrize(("d", "supports"), [(2, 1), (2, 2), (5, 3), (12, 12)])
def test_planted_clouds_have_their_planted_margin_direction_and_support(d, supports):
    data = planted(40, d, 0.7, supports, np.random.default_rng(d))
    answer = max_margin(data.signed)
    assert answer.margin == pytest.approx(0.7, rel=1e-12)
    np.testing.assert_allclose(answer.direction, data.direction, atol=1e-12)
    assert np.flatnonzero(answer.support).tolist() == list(range(supports))


@pytest.mark.parametrize("name", ["skewed", "soudry"])
def test_soudry_sets_have_the_published_direction_and_margin(name):
    for seed in range(5):
        answer = max_margin(load(name, seed).signed)
        assert answer.margin == pytest.approx(np.sqrt(2.0), rel=1e-14)
        np.testing.assert_allclose(answer.direction, np.sqrt([0.5, 0.5]), atol=1e-14)
        assert np.flatnonzero(answer.support).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["moons", "rings", "clouds", "digits", "cancer"])
def test_named_sets_have_two_classes_and_the_seed_fixes_them(name):
    data = load(name, seed=3)
    assert set(data.y) == {-1.0, 1.0}
    np.testing.assert_array_equal(data.x, load(name, seed=3).x)


@pytest.mark.parametrize(
    ("x", "y", "fault"),
    [
        ([[1.0, np.nan], [0.0, 1.0]], [1.0, -1.0], "row"),
        ([[1.0, 2.0], [0.0, 1.0]], [1.0, 0.5], "labels must be"),
        ([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]], [1.0, -1.0, 1.0], "rows 0 and 2 are duplicates"),
        ([[0.0, 1.0], [1.0, 2.0], [1.0, 2.0]], [1.0, -1.0, 1.0], "rows 1 and 2 .* both labels"),
    ],
)
def test_bad_points_are_named(x, y, fault):
    with pytest.raises(InputError, match=fault):
        ToyData("bad", np.array(x), np.array(y))


def test_a_csv_file_is_read_and_its_faults_are_named(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("1.0,2.0,1\n-1.0,0.5,0\n")
    data = load(str(path))
    np.testing.assert_array_equal(data.x, [[1.0, 2.0], [-1.0, 0.5]])
    np.testing.assert_array_equal(data.y, [1.0, -1.0])
    for text, fault in [
        ("1.0,2.0,1\n-1.0,0.5,1\n", "one class"),
        ("1.0,2.0,1\n-1.0,x,0\n", "cannot be read"),
        ("1\n0\n", "feature column"),
        ("", "empty"),
        ("a,b,label\n1,2,1\n", "no header line"),
        ("1,2,1\n-1,-2,2\n", "labels 1, 2; write 0 and 1"),
        ("1e200,2,1\n-1,-2,0\n", "rescale"),
        ("0,0,1\n", "rescale"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=fault):
            load(str(path))
    with pytest.raises(InputError, match="cannot read"):
        load(str(tmp_path / "missing.csv"))


def test_an_intercept_is_added_once():
    data = load("moons", n=6).with_bias()
    np.testing.assert_array_equal(data.x[:, 2], 1.0)
    assert data.with_bias() is data
    # Digits have pixels that are always 0, which are no intercept.
    digits = load("digits")
    assert digits.x.shape == (360, 65)
    assert digits.with_bias() is digits


def test_unknown_names_and_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="unknown data"):
        load("spiral")
    with pytest.raises(InputError, match="clouds: need"):
        load("clouds", d=1)
    with pytest.raises(InputError, match="at least 4"):
        load("moons", n=1)
