"""Tables: readers against miniatures and the real files, splits, and what preparation may know."""

import gzip
import hashlib
import json
import struct
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets._openml
import torch
from scipy.io.arff import loadarff

import deep.data.tabular as tabular
from deep.data.arff import read_arff
from deep.data.idx import read_idx
from deep.data.load import DATA_SETS, load_examples
from deep.data.tabular import TABLES, Table, load_table, load_table_examples, prepare, split
from theory.errors import InputError

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
real = pytest.mark.skipif(
    not (REAL_DATA / "tabular").is_dir(),
    reason="needs the real tables, which are not part of the repository",
)

ARFF = """% A comment, with an @data in it
@RELATION small

@Attribute 'a number' REAL
@attribute kind {red, 'dark blue' , green}
@attribute count\tINTEGER
@ATTRIBUTE class {x, y, z}
@DATA
% another comment
1.5, red,  3, x
 -2e1,'dark blue',?, z

?, ?, 4,x
%
"""


def declare(monkeypatch, name, rows, features, classes):
    """The table is known to be of this size."""
    known = tabular._SETS[name]
    monkeypatch.setitem(
        tabular._SETS, name, known._replace(rows=rows, features=features, classes=classes)
    )


def refusal(load, *arguments):
    with pytest.raises(InputError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- ARFF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_arff_gives_numbers_categories_and_missing_values(newline, tmp_path):
    path = tmp_path / "small.arff"
    path.write_bytes(ARFF.replace("\n", newline).encode())
    frame = read_arff(path)
    assert list(frame) == ["a number", "kind", "count", "class"]
    np.testing.assert_array_equal(frame["a number"], [1.5, -20.0, np.nan])
    np.testing.assert_array_equal(frame["count"], [3, np.nan, 4])
    assert frame["kind"].cat.categories.tolist() == ["red", "dark blue", "green"]
    assert frame["kind"].cat.codes.tolist() == [0, 1, -1]
    assert frame["class"].cat.codes.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("1.5, red,  3, x", "1.5, red,  3", "line 10 has 3 values, not 4"),
        ("1.5, red,  3, x", "1.5, red,  3, x, 4", "line 10 has 5 values, not 4"),
        ("4,x", "4,w", "class has the value w"),
        ("1.5", "1.5m", "1.5m"),
        ("@DATA", "@DAT", "line 8 is no @attribute line"),
        ("REAL", "STRING", "line 4 declares values of type STRING"),
        ("count", "kind", "line 6 declares kind once more"),
        (ARFF[ARFF.index("@DATA") :], "", "no @data line"),
        (ARFF[ARFF.index("% another") :], "", "no examples"),
        ("{x, y, z}", "{x, x, z}", "unique"),
        ("red,  3", "r" * 200_000 + ",  3", "field larger than field limit"),
    ],
)
def test_arff_faults_are_named(old, new, told, tmp_path):
    path = tmp_path / "small.arff"
    assert old in ARFF
    path.write_text(ARFF.replace(old, new, 1))
    message = refusal(read_arff, path)
    assert told in message
    assert str(path) in message


@real
@pytest.mark.parametrize(
    "name", ["arrhythmia", "balance.scale", "cmc", "iris", "letter", "optdigits"]
)
def test_arff_agrees_with_scipy_on_real_files(name):
    """Pendigits is the one that scipy cannot read."""
    path = REAL_DATA / "tabular" / f"{name}.arff"
    frame = read_arff(path)
    records, meta = loadarff(path)
    assert list(frame) == meta.names()
    for column, kind in zip(meta.names(), meta.types(), strict=True):
        if kind == "numeric":
            np.testing.assert_array_equal(frame[column], records[column])
        else:
            assert frame[column].tolist() == [value.decode() for value in records[column]]


# --- IDX ----------------------------------------------------------------------------------------


def idx(array, header=None):
    if header is None:
        header = b"\0\0\x08" + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_idx_gives_back_every_byte(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    (tmp_path / "a.gz").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x0d\x01" + bytes(4), "no IDX file"),
        (b"\x01\0\x08\x01" + bytes(4), "no IDX file"),
        (b"\0\0\x08\0", "header is cut short"),
        (b"\0\0\x08\x09" + bytes(8), "header is cut short"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "header claims 79228162458924105385300197375 bytes"),
        (b"\0\0\x08\x01" + struct.pack(">I", 13), "13 bytes, it holds only 12"),
        (b"\0\0\x08\x01" + struct.pack(">I", 11), "11 bytes, it holds more"),
    ],
)
def test_idx_faults_are_named(header, told, tmp_path):
    (tmp_path / "a.gz").write_bytes(idx(np.zeros(12), header))
    assert told in refusal(read_idx, tmp_path / "a.gz")


def test_cut_or_unpacked_idx_is_refused(tmp_path):
    whole = idx(np.arange(200))
    for content in (whole[:-20], gzip.decompress(whole)):
        (tmp_path / "a.gz").write_bytes(content)
        assert "cannot be read" in refusal(read_idx, tmp_path / "a.gz")


# --- tables by name -----------------------------------------------------------------------------


def test_every_table_is_a_data_set():
    assert len(TABLES) == 15
    assert set(TABLES) <= set(DATA_SETS)


@pytest.mark.parametrize("place", [".", "tabular"])
def test_arff_table_is_found_in_the_folder_or_below(place, tmp_path, monkeypatch):
    declare(monkeypatch, "cmc", 3, 3, 2)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "cmc.arff").write_text(ARFF)
    table = load_table("cmc", tmp_path)
    assert table.classes == ("x", "z")  # no row belongs to y
    assert table.labels.tolist() == [0, 1, 0]
    assert list(table.features) == ["a number", "kind", "count"]
    assert hashlib.sha256(ARFF.encode()).hexdigest() in table.source


def test_volkert_has_its_class_first(tmp_path, monkeypatch):
    declare(monkeypatch, "volkert", 2, 2, 2)
    lines = ["@relation v", "@attribute class {0,1}", "@attribute a real", "@attribute b real"]
    (tmp_path / "volkert.arff").write_text("\n".join([*lines, "@data", "1,5,6", "0,7,8"]))
    table = load_table("volkert", tmp_path)
    assert table.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(table.features, [[5, 6], [7, 8]])


def test_csv_table(tmp_path, monkeypatch):
    declare(monkeypatch, "mfeat-morph", 3, 2, 2)
    path = tmp_path / "mfeat-morphological.csv"
    path.write_text("att1,att2,class\n1,2.5,10\n3,4,9\n5,6,10\n")
    table = load_table("mfeat-morph", str(tmp_path))
    assert table.classes == ("9", "10")
    assert table.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(table.features, [[1, 2.5], [3, 4], [5, 6]])


def test_abalone_in_three_classes(tmp_path, monkeypatch):
    rings = [1, 8, 9, 10, 11, 29]
    declare(monkeypatch, "abalone", len(rings), 8, 3)
    lines = [f"{'MFI'[k % 3]},.1,.2,.3,.4,.5,.6,.7,{count}" for k, count in enumerate(rings)]
    (tmp_path / "abalone.csv").write_text("\n".join(lines))
    table = load_table("abalone", tmp_path)
    assert table.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.features["sex"].tolist() == list("MFIMFI")
    numbers = table.features.drop(columns="sex").iloc[0]
    assert numbers.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def mnist_files(folder, rng):
    parts = []
    for part, count in (("train", 6), ("t10k", 4)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 3
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        parts.append((images, labels))
    return parts


@pytest.mark.parametrize("place", [".", "mnist"])
def test_mnist_is_training_then_test_images(place, tmp_path, monkeypatch):
    declare(monkeypatch, "mnist", 10, 784, 3)
    (tmp_path / place).mkdir(exist_ok=True)
    train, test = mnist_files(tmp_path / place, np.random.default_rng(0))
    table = load_table("mnist", tmp_path)
    pixels = np.concatenate([train[0], test[0]]).reshape(10, 784)
    np.testing.assert_array_equal(table.features, pixels)
    assert table.labels.tolist() == [*train[1], *test[1]]
    (tmp_path / place / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(5)))
    assert "train-images-idx3-ubyte.gz holds bytes of shape (6, 28, 28)" in refusal(
        load_table, "mnist", tmp_path
    )
    (tmp_path / place / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte.gz is missing" in refusal(load_table, "mnist", tmp_path)


MORPH, ABALONE = "mfeat-morphological.csv", "abalone.csv"
FISH = "M,.1,.2,.3,.4,.5,.6,.7,9\n"


@pytest.mark.parametrize(
    ("name", "file", "content", "told"),
    [
        ("mfeat-morph", MORPH, "", "No columns"),
        ("mfeat-morph", MORPH, "a,b,class\n", "column a does not hold numbers"),
        ("mfeat-morph", MORPH, "a,b\n1,2\n", "no column named class"),
        ("mfeat-morph", MORPH, "a,b,class\n1,x,1\n", "column b does not hold numbers"),
        ("mfeat-morph", MORPH, "a,b,class\n1,2,1\n1,2\n", "labels are missing"),
        ("mfeat-morph", MORPH, "a,b,class\n1,,1\n", "values are missing"),
        ("mfeat-morph", MORPH, "a,b,class\n1,2,3,1\n", "more values in a line than columns"),
        ("mfeat-morph", MORPH, "a,b,class\n1,2,1\n1,2,3,1\n", "Expected 3 fields in line 3, saw 4"),
        ("mfeat-morph", MORPH, "a,b,class\n1,inf,1\n1,2,2\n", "values infinite"),
        ("mfeat-morph", MORPH, "a,b,class\n1,2,1\n", "has 1 rows, 2 features and 1 classes, not 2"),
        ("mfeat-morph", MORPH, b"\xff\xfe\x00", "cannot be read"),
        ("abalone", ABALONE, FISH + "X" + FISH[1:], "sex has the value X"),
        ("abalone", ABALONE, FISH.replace("M,", ""), "there are 8 columns, not 9"),
        ("abalone", ABALONE, FISH.replace("9\n", "many\n"), "column rings does not hold numbers"),
        ("abalone", ABALONE, FISH + FISH[:8], "values are missing"),
        ("iris", "iris.arff", ARFF.replace("?, ?, 4,x", "1, red, 4, ?"), "labels are missing"),
    ],
)
def test_faults_of_tables_are_named(name, file, content, told, tmp_path, monkeypatch):
    declare(monkeypatch, name, 2, 2, 2)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(load_table, name, tmp_path)
    assert told in message
    assert file in message


def test_missing_files_are_named(tmp_path):
    assert "letter.arff" in refusal(load_table, "letter", tmp_path)
    assert "is not a folder" in refusal(load_table, "letter", tmp_path / "nowhere")
    assert "unknown table" in refusal(load_table, "letters", tmp_path)


# --- OpenML -------------------------------------------------------------------------------------


@pytest.fixture
def openml(monkeypatch, tmp_path):
    """OpenML's answers about a miniature, in place of the network; returns a dict to change."""
    content = {
        "arff": b"@relation a\n@attribute Sex {M,F,I}\n@attribute L numeric\n"
        b"@attribute Class_number_of_rings {8,9,12}\n@data\nM,0.5,9\nI,?,12\nM,1.5,8\n",
        "requests": [],
    }

    def answer(request, *_, **__):
        url = request if isinstance(request, str) else request.full_url
        content["requests"].append(url)
        if content["arff"] is None:
            raise urllib.request.URLError("no route to host")
        return BytesIOResponse(openml_answer(url, content))

    monkeypatch.setattr(sklearn.datasets._openml, "urlopen", answer)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(sklearn.datasets._openml.time, "sleep", lambda _: None)
    return content


class BytesIOResponse(BytesIO):
    """What urlopen returns, as far as scikit-learn looks."""

    def info(self):
        return {}


def openml_answer(url, content):
    names = {"Sex": "nominal", "L": "numeric", "Class_number_of_rings": "nominal"}
    if "/features/" in url:
        return json.dumps({"data_features": {"feature": [
            {"index": str(k), "name": name, "data_type": kind, "is_ignore": "false",
             "number_of_missing_values": str(k % 2),
             "is_target": str(k == 2).lower(), "is_row_identifier": "false"}
            for k, (name, kind) in enumerate(names.items())
        ]}}).encode()  # fmt: skip
    if "/qualities/" in url:
        quality = {"name": "NumberOfInstances", "value": "3"}
        return json.dumps({"data_qualities": {"quality": [quality]}}).encode()
    if "/json/data/" in url:
        return json.dumps({"data_set_description": {
            "id": "183", "name": "abalone", "version": "1", "format": "ARFF", "description": "",
            "status": "active", "file_id": "3620",
            "default_target_attribute": "Class_number_of_rings",
            "md5_checksum": content.get("md5", hashlib.md5(content["arff"]).hexdigest()),
            "url": "https://www.openml.org/data/v1/download/3620/abalone.arff",
        }}).encode()  # fmt: skip
    return content["arff"]


def test_openml_is_asked_once_by_its_number(openml, monkeypatch):
    declare(monkeypatch, "abalone", 3, 2, 3)
    for _ in range(2):
        table = load_table("abalone")
    assert table.labels.tolist() == [1, 2, 0]
    assert table.features["Sex"].tolist() == list("MIM")
    np.testing.assert_array_equal(table.features["L"], [0.5, np.nan, 1.5])
    assert table.source == f"OpenML 183; MD5 {hashlib.md5(openml['arff']).hexdigest()}"
    assert any(url.endswith("/data/183") for url in openml["requests"])
    assert len(openml["requests"]) == len(set(openml["requests"]))


@pytest.mark.parametrize(
    ("change", "told"), [({"arff": None}, "no route to host"), ({"md5": "0" * 32}, "md5 checksum")]
)
def test_failed_downloads_are_one_line_with_the_remedy(change, told, openml, monkeypatch):
    declare(monkeypatch, "abalone", 3, 2, 3)
    openml.update(change)
    message = refusal(load_table, "abalone")
    assert told in message
    assert "place abalone.csv in a folder and pass it with --data-dir" in message


def test_another_table_than_asked_for_is_refused(openml):
    assert "has 3 rows, 2 features and 3 classes, not 4177, 8 and 3" in refusal(
        load_table, "abalone"
    )


# --- splits and preparation ---------------------------------------------------------------------


def small_table(seed=0, rows=40):
    """Numbers with gaps, a constant column, an empty one, and categories one of which is unused."""
    rng = np.random.default_rng(seed)
    a = rng.normal(3, 2, rows)
    a[::7] = np.nan
    kinds = pd.Categorical.from_codes(rng.integers(-1, 2, rows), categories=["r", "s", "t"])
    constant = np.full(rows, 4.0)
    features = pd.DataFrame(
        {"a": a, "kind": kinds, "constant": constant, "empty": np.nan, "b": rng.normal(size=rows)}
    )
    return Table("iris", features, np.arange(rows) % 2, ("x", "y"), "here")


def test_prepared_columns_by_hand():
    table = small_table()
    train = torch.arange(5, 33)
    x = prepare(table, train).numpy()
    assert x.dtype == np.float32
    for column, name in enumerate("ab"):
        raw = table.features[name].to_numpy()
        known = raw[5:33][~np.isnan(raw[5:33])]
        filled = np.where(np.isnan(raw), known.mean(), raw)
        expected = (filled - known.mean()) / np.std(filled[5:33])
        np.testing.assert_allclose(x[:, {0: 0, 1: 3}[column]], expected, atol=1e-6)
    assert not x[:, 1:3].any()  # the constant and the empty column
    codes = table.features["kind"].cat.codes.to_numpy()
    np.testing.assert_array_equal(x[:, 4:], codes[:, None] == np.arange(3))


def test_a_column_constant_in_training_says_nothing_elsewhere():
    table = small_table()
    table.features.loc[39, "constant"] = 1e6
    table.features.loc[38, "b"] = 1e6
    x = prepare(table, torch.arange(30))
    assert not x[:, 1].any()
    assert x[38, 3] == 10  # cut off


def test_other_rows_never_enter_the_training_inputs():
    """Whatever validation and test rows hold, training inputs stay as they are, bit for bit."""
    table = small_table()
    parts = split(table.labels, 0)
    before = prepare(table, parts.train)[parts.train]
    for rows in (parts.validation, parts.test):
        changed = table.features.copy()
        for name in ("a", "constant", "empty", "b"):
            changed.loc[rows.numpy(), name] = 1e5 * np.arange(len(rows))
        changed.loc[rows.numpy(), "kind"] = "t"
        other = Table("iris", changed, table.labels, table.classes, "here")
        prepared = prepare(other, parts.train)
        assert torch.equal(prepared[parts.train], before)
        assert not torch.equal(prepared[rows], prepare(table, parts.train)[rows])


def test_splits_keep_proportions_and_share_no_row():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    for seed in range(3):
        parts = split(labels, seed)
        assert sorted(torch.cat(parts).tolist()) == list(range(100))
        counts = [np.bincount(labels[part]).tolist() for part in parts]
        assert counts == [[30, 18, 12], [10, 6, 4], [10, 6, 4]]
    again = split(labels, 0)
    assert all(torch.equal(a, b) for a, b in zip(again, split(labels, 0), strict=True))
    assert not torch.equal(again.test, split(labels, 1).test)


def test_rare_classes_are_dealt_out_with_the_smallest_common_one():
    labels = np.repeat([0, 1, 2, 3, 4], [60, 2, 20, 1, 17])
    for seed in range(5):
        for part, share in zip(split(labels, seed), (0.6, 0.2, 0.2), strict=True):
            counts = np.bincount(labels[part], minlength=5)
            assert counts[0] == 60 * share
            assert counts[2] == 20 * share
            assert counts[1] + counts[3] + counts[4] == 20 * share


def test_splits_of_nothing_but_rare_classes_are_made_all_the_same():
    parts = split(np.arange(10), 0)
    assert [len(part) for part in parts] == [6, 2, 2]


# --- real tables --------------------------------------------------------------------------------

# Rows of each class, from the data's own index; for the three largest from UCI's descriptions.
REAL_COUNTS = {
    "arrhythmia": [245, 44, 15, 15, 13, 25, 3, 2, 9, 50, 4, 5, 22],
    "letter": [789, 766, 736, 805, 768, 775, 773, 734, 755, 747, 739, 761, 792, 783, 753, 803, 783,
               758, 748, 796, 813, 764, 752, 787, 786, 734],
    "balance-scale": [288, 49, 288],
    **dict.fromkeys([n for n in TABLES if n.startswith("mfeat")], [200] * 10),
    "cmc": [629, 333, 511],
    "optdigits": [554, 571, 557, 572, 568, 558, 558, 566, 554, 562],
    "pendigits": [1143, 1143, 1144, 1055, 1144, 1055, 1056, 1142, 1055, 1055],
    "iris": [50] * 3,
    "abalone": [1407, 1323, 1447],
}  # fmt: skip
REAL_SIZES = {
    "arrhythmia": (452, 279, 13), "letter": (20_000, 16, 26), "balance-scale": (625, 4, 3),
    "mfeat-factors": (2000, 216, 10), "mfeat-fourier": (2000, 76, 10),
    "mfeat-karhunen": (2000, 64, 10), "mfeat-morph": (2000, 6, 10),
    "mfeat-zernike": (2000, 47, 10), "cmc": (1473, 9, 3), "optdigits": (5620, 64, 10),
    "pendigits": (10_992, 16, 10), "iris": (150, 4, 3), "abalone": (4177, 8, 3),
}  # fmt: skip


@real
@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_tables_have_the_known_counts(name):
    table = load_table(name, REAL_DATA)
    assert (*table.features.shape, len(table.classes)) == REAL_SIZES[name]
    assert np.bincount(table.labels).tolist() == REAL_COUNTS[name]
    assert table.features.isna().sum().sum() == (408 if name == "arrhythmia" else 0)
    listed = (REAL_DATA / "INDEX.md").read_text()
    assert table.source.rpartition(" ")[2] in listed  # the file's SHA-256
    inputs = prepare(table, split(table.labels, 0).train)
    assert inputs.isfinite().all()


@real
def test_real_cmc_has_its_seven_nominal_columns_as_categories():
    data = load_examples("cmc", REAL_DATA)
    # 2 numbers, 4 columns of 4 categories and 3 of 2.
    assert data.x_train.shape == (1178, 2 + 16 + 6)
    assert data.x_test.shape == (295, 24)
    assert data.y_test.bincount().tolist() == [126, 67, 102]


@real
def test_real_examples_are_standardised_by_the_training_rows():
    data = load_table_examples("mfeat-zernike", REAL_DATA)
    assert data.num_classes == 10
    assert data.y_train.bincount().tolist() == [160] * 10
    torch.testing.assert_close(data.x_train.mean(0), torch.zeros(47), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.x_train.std(0, correction=0), torch.ones(47))
    assert data.x_test.mean(0).abs().max() > 0.01


@real
def test_real_mnist_files_hold_the_known_counts():
    """The whole table takes seconds to prepare; its files are what matters."""
    for part, count, first in (("train", 60_000, [5, 0, 4, 1, 9]), ("t10k", 10_000, [7, 2, 1, 0])):
        labels = read_idx(REAL_DATA / "mnist" / f"{part}-labels-idx1-ubyte.gz")
        assert labels[: len(first)].tolist() == first
        assert len(labels) == count
    images = read_idx(REAL_DATA / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert images.shape == (10_000, 28, 28)
