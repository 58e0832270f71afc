"""Readers of image sets against miniatures made here, pixel by pixel, and against real files."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from deep.data.examples import in_proportion
from deep.data.images import IMAGE_SETS, load_images
from theory.errors import InputError

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CIFAR_MEMBERS = {
    "cifar10": ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch"),
    "cifar100": ("cifar-100-binary", ["train.bin"], "test"),
}


def random_part(n, num_classes, seed):
    """Images as height × width × channel bytes, the plain layout, and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, num_classes, n)


def pixels(x, data):
    """Undo the normalisation: n × 32 × 32 × 3 bytes."""
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return (x.movedim(1, -1) * std + mean).mul(255).round().to(torch.uint8).numpy()


def assert_holds(data, train, test):
    """The data are exactly these images and labels, normalised by the training part's moments."""
    for x, y, (images, labels) in (
        (data.x_train, data.y_train, train),
        (data.x_test, data.y_test, test),
    ):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        np.testing.assert_array_equal(pixels(x, data), images)
        np.testing.assert_array_equal(y.numpy(), labels)
    np.testing.assert_allclose(data.mean, train[0].mean(axis=(0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.std, train[0].std(axis=(0, 1, 2)) / 255, rtol=1e-6)


def refusal(name, folder):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load_images(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- CIFAR's binary form ------------------------------------------------------------------------


def record(name, image, label):
    """One record written byte by byte: label(s), then all red, all green, all blue, row by row."""
    coarse = [label // 5] if name == "cifar100" else []
    colours = [
        int(image[row, column, channel])
        for channel in range(3)
        for row in range(32)
        for column in range(32)
    ]
    return bytes([*coarse, int(label), *colours])


def cifar_files(name, per_file=2):
    """Names and contents of the members, and the parts they hold."""
    num_classes = 10 if name == "cifar10" else 100
    _, train_names, test_name = CIFAR_MEMBERS[name]
    train = random_part(per_file * len(train_names), num_classes, seed=0)
    test = random_part(3, num_classes, seed=1)
    files = {f"{test_name}.bin": b"".join(record(name, *row) for row in zip(*test, strict=True))}
    for i, member in enumerate(train_names):
        rows = zip(*(part[per_file * i : per_file * (i + 1)] for part in train), strict=True)
        files[member] = b"".join(record(name, *row) for row in rows)
    return files, train, test


def write_archive(path, name, files):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(f"{CIFAR_MEMBERS[name][0]}/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def archive_path(folder, name):
    return folder / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"


@pytest.mark.parametrize("name", CIFAR_MEMBERS)
def test_cifar_archive_gives_back_every_pixel_and_label_in_order(name, tmp_path):
    files, train, test = cifar_files(name)
    # Members in an order of their own: the reader must go by name.
    write_archive(archive_path(tmp_path, name), name, dict(sorted(files.items(), reverse=True)))
    data = load_images(name, tmp_path)
    assert_holds(data, train, test)
    assert data.num_classes == (10 if name == "cifar10" else 100)
    assert archive_path(tmp_path, name).name in data.source


@pytest.mark.parametrize("name", CIFAR_MEMBERS)
@pytest.mark.parametrize("place", [".", "published", "set", "set/published"])
def test_cifar_unpacked_folder_is_found_by_itself_or_by_its_parent(name, place, tmp_path):
    files, train, test = cifar_files(name)
    folder = tmp_path / place.replace("set", name).replace("published", CIFAR_MEMBERS[name][0])
    folder.mkdir(parents=True, exist_ok=True)
    for member, content in files.items():
        (folder / member).write_bytes(content)
    assert_holds(load_images(name, tmp_path), train, test)
    assert_holds(load_images(name, str(folder)), train, test)


def test_archive_missing_a_member_is_refused_by_its_name(tmp_path):
    files, _, _ = cifar_files("cifar10")
    del files["data_batch_3.bin"]
    write_archive(archive_path(tmp_path, "cifar10"), "cifar10", files)
    assert "lacks data_batch_3.bin" in refusal("cifar10", tmp_path)


def test_folder_missing_a_file_is_refused_by_its_name(tmp_path):
    files, _, _ = cifar_files("cifar100")
    (tmp_path / "train.bin").write_bytes(files["train.bin"])
    assert "test.bin is missing" in refusal("cifar100", tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_archive_is_refused(kept, tmp_path):
    files, _, _ = cifar_files("cifar10")
    path = archive_path(tmp_path, "cifar10")
    write_archive(path, "cifar10", files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert str(path) in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("position", [0, 4, 5000])
def test_archive_with_damaged_bytes_is_refused(position, tmp_path):
    """At the start the file is no gzip; later on the stream breaks or its check sum fails."""
    files, _, _ = cifar_files("cifar10")
    path = archive_path(tmp_path, "cifar10")
    write_archive(path, "cifar10", files)
    content = bytearray(path.read_bytes())
    content[position : position + 40] = b"\xff" * 40
    path.write_bytes(content)
    assert str(path) in refusal("cifar10", tmp_path)


def test_archive_with_one_wrong_pixel_is_refused_by_its_check_sum(tmp_path):
    """Without compression a changed byte breaks nothing but the sum at the end of the stream."""
    files, _, _ = cifar_files("cifar10")
    path = archive_path(tmp_path, "cifar10")
    write_archive(path, "cifar10", files)
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[content.index(files["data_batch_2.bin"][:50]) + 20] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3073 * 2 - 1)])
def test_part_of_a_record_is_refused(content, tmp_path):
    files, _, _ = cifar_files("cifar10")
    write_archive(
        archive_path(tmp_path, "cifar10"), "cifar10", files | {"data_batch_2.bin": content}
    )
    message = refusal("cifar10", tmp_path)
    assert "data_batch_2.bin" in message
    assert f"{len(content)} bytes" in message


@pytest.mark.parametrize("member", ["data_batch_5.bin", "test_batch.bin"])
def test_labels_out_of_range_are_refused(member, tmp_path):
    files, _, _ = cifar_files("cifar10")
    files[member] = b"\x0a" + files[member][1:]
    write_archive(archive_path(tmp_path, "cifar10"), "cifar10", files)
    assert "labels" in refusal("cifar10", tmp_path)
    assert "to 10" in refusal("cifar10", tmp_path)


def test_constant_channel_is_refused_and_not_divided_by_zero(tmp_path):
    files, _, _ = cifar_files("cifar100")
    files["train.bin"] = bytes(3074 * 2)
    write_archive(archive_path(tmp_path, "cifar100"), "cifar100", files)
    assert "constant" in refusal("cifar100", tmp_path)


# --- SVHN ---------------------------------------------------------------------------------------


def write_svhn(folder):
    """Both files, as published: height × width × channel × n, and labels 1 to 10."""
    parts = []
    for name, n, seed in (("train", 12, 0), ("test", 4, 1)):
        images, digits = random_part(n, 10, seed)
        digits[:2] = (0, 9)
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels}
        savemat(folder / f"{name}_32x32.mat", content, do_compression=True)
        parts.append((images, digits))
    return parts


@pytest.mark.parametrize("place", [".", "svhn"])
def test_svhn_gives_back_every_pixel_and_label_ten_means_zero(place, tmp_path):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    train, test = write_svhn(folder)
    data = load_images("svhn", tmp_path)
    assert_holds(data, train, test)
    assert data.num_classes == 10


@pytest.mark.parametrize("kept", [0, 100, 140, 5000, -1])
def test_truncated_mat_file_is_refused(kept, tmp_path):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refusal("svhn", tmp_path)


def test_svhn_without_its_test_part_is_refused(tmp_path):
    write_svhn(tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    assert "test_32x32.mat is missing" in refusal("svhn", tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"y": np.array([1, 0, 2])}, "labels outside 1 to 10"),
        ({"y": np.array([1, 11, 2])}, "labels outside 1 to 10"),
        ({"y": np.array([1.0, 1.5, np.nan])}, "labels outside 1 to 10"),
        ({"y": np.array([1, 2])}, "beside 2 labels"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8)}, "shape (3, 32, 32, 3)"),
        ({"X": np.zeros((32, 32, 3, 3))}, "type float64"),
        ({"X": np.zeros((32, 32, 3, 0), np.uint8), "y": np.array([])}, "beside 0 labels"),
        ({"y": None}, "lacks X or y"),
    ],
)
def test_mat_file_of_another_content_is_refused(change, fault, tmp_path):
    write_svhn(tmp_path)
    content = {"X": np.zeros((32, 32, 3, 3), np.uint8), "y": np.array([1, 2, 3])} | change
    content = {key: value for key, value in content.items() if value is not None}
    savemat(tmp_path / "train_32x32.mat", content)
    assert fault in refusal("svhn", tmp_path)


# --- CIFAR-10 as PNG sprites ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sprite_batches():
    """Batches 3, 41, 47 and 50, each 1,000 images, and the labels of all 51 batches."""
    batches = {i: random_part(1000, 10, seed=i)[0] for i in (3, 41, 47, 50)}
    return batches, np.random.default_rng(9).integers(0, 10, 51_000)


def write_sprites(folder, sprite_batches):
    batches, labels = sprite_batches
    for i, images in batches.items():
        Image.fromarray(images.reshape(1000, 1024, 3)).save(
            folder / f"cifar10_batch_{i}.png", compress_level=0
        )
    (folder / "cifar10_labels.json").write_text(json.dumps(labels.tolist()))


def sprite_part(sprite_batches, *chosen):
    batches, labels = sprite_batches
    return (
        np.concatenate([batches[i] for i in chosen]),
        np.concatenate([labels[1000 * i : 1000 * (i + 1)] for i in chosen]),
    )


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_sprites_give_back_every_pixel_and_leave_batch_47_out(place, tmp_path, sprite_batches):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    write_sprites(folder, sprite_batches)
    data = load_images("cifar10", tmp_path)
    assert_holds(data, sprite_part(sprite_batches, 3, 41), sprite_part(sprite_batches, 50))


def spoil(folder, what):
    """Spoil a folder of sprites in a named way."""
    png, labels = folder / "cifar10_batch_41.png", folder / "cifar10_labels.json"
    match what:
        case "wrong size":
            Image.new("RGB", (1000, 1024)).save(png)
        case "wrong mode":
            Image.new("L", (1024, 1000)).save(png)
        case "cut PNG":
            png.write_bytes(png.read_bytes()[:2000])
        case "no PNG":
            png.write_bytes(b"not a picture")
        case "no test batch":
            (folder / "cifar10_batch_50.png").unlink()
        case "no training batch":
            png.unlink()
            (folder / "cifar10_batch_3.png").unlink()
        case "no labels":
            labels.unlink()
        case "few labels":
            labels.write_text(json.dumps([0] * 41_999))
        case "wrong labels":
            labels.write_text(json.dumps([10] * 51_000))
        case "cut labels":
            labels.write_text(labels.read_text()[:-1])
        case "labels by name":
            labels.write_text('{"cat": 3}')


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("wrong size", "cifar10_batch_41.png is 1000 × 1024"),
        ("wrong mode", "mode L"),
        ("cut PNG", "cifar10_batch_41.png cannot be read"),
        ("no PNG", "cifar10_batch_41.png cannot be read"),
        ("no test batch", "cifar10_batch_50.png is missing"),
        ("no training batch", "i from 0 to 44"),
        ("no labels", "cifar10_labels.json is missing"),
        ("few labels", "41999 labels"),
        ("wrong labels", "whole numbers 0 to 9"),
        ("cut labels", "cifar10_labels.json is no JSON"),
        ("labels by name", "whole numbers 0 to 9"),
    ],
)
def test_spoilt_sprites_are_refused(what, fault, tmp_path, sprite_batches):
    write_sprites(tmp_path, sprite_batches)
    spoil(tmp_path, what)
    assert fault in refusal("cifar10", tmp_path)


@pytest.mark.skipif(
    not (REAL_DATA / "cifar10").is_dir(),
    reason="needs the real CIFAR-10 sprites, which are not part of the repository",
)
def test_real_cifar10_sprites_have_the_known_counts_and_moments():
    """Class counts of the first two official training batches and of 1,000 test images."""
    data = load_images("cifar10", REAL_DATA)
    assert data.x_train.shape == (20_000, 3, 32, 32)
    assert data.x_test.shape == (1_000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [
        *(1989, 1981, 2042, 2011, 2009, 1925, 2038, 2027, 2012, 1966)
    ]
    assert data.y_test.bincount().tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    # The whole training set's published moments; 20,000 of its 50,000 images come close.
    np.testing.assert_allclose(data.mean, (0.49140, 0.48216, 0.44653), atol=3e-3)
    np.testing.assert_allclose(data.std, (0.24703, 0.24349, 0.26159), atol=3e-3)
    with Image.open(REAL_DATA / "cifar10" / "cifar10_batch_12.png") as sprite:
        for row in (0, 999):
            expected = np.asarray(sprite.crop((0, row, 1024, row + 1))).reshape(1, 32, 32, 3)
            image = data.x_train[12_000 + row : 12_001 + row]
            np.testing.assert_array_equal(pixels(image, data), expected)


# --- digits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_a_draw_splits_classes_in_proportion_but_where_one_of_them_has_a_single_member(alone):
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * alone)
    chosen, rest = in_proportion(labels, 10 + alone, seed=0)
    assert (len(chosen), len(rest)) == (10 + alone, 30)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(40 + alone))
    if alone != 1:  # each class has its share to within one example
        off = labels[rest].bincount(minlength=3) - labels.bincount(minlength=3) * 30 / len(labels)
        assert (off.abs() < 1).all()


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_digits_have_the_stated_shapes_and_split(digits):
    assert digits.x_train.shape == (1437, 3, 32, 32)
    assert digits.x_test.shape == (360, 3, 32, 32)
    assert digits.num_classes == 10
    assert digits.source.startswith("scikit-learn digits")


def test_digits_split_keeps_each_class_in_proportion(digits):
    """Each class has its share of the test part to within one image."""
    counts = np.bincount(load_digits().target)
    np.testing.assert_array_less(abs(digits.y_test.bincount().numpy() - counts * 360 / 1797), 1)
    np.testing.assert_array_equal((digits.y_train.bincount() + digits.y_test.bincount()), counts)


def test_digits_train_channels_have_mean_zero_and_deviation_one(digits):
    std, mean = torch.std_mean(digits.x_train.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(std, torch.ones(3).double(), atol=1e-6, rtol=0)


def test_digits_mean_image_is_not_zero(digits):
    """What the docstring of `ImageData` warns of: pixels keep means far from zero."""
    assert digits.x_train.mean(dim=0).abs().max() > 1


def test_digits_are_the_scans_split_into_disjoint_parts_and_upsampled_bilinearly(digits):
    """Each scan occurs once, with its label, and is what NumPy's one-dimensional interp makes."""
    scans = load_digits()
    # Output pixel i has its centre at (i + ½) / 4 in input pixels; the rim is held constant.
    centres = (np.arange(32) + 0.5) / 4
    weights = np.stack([np.interp(centres, np.arange(8) + 0.5, unit) for unit in np.eye(8)], axis=1)
    expected = weights @ (scans.images / 16) @ weights.T
    # The mean of a scan's 8 × 8 pixels under fixed random weights tells all scans apart.
    key = np.random.default_rng(0).random((32, 32))
    seen = []
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        x = x.double() * digits.std[0] + digits.mean[0]
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], x[:, 2])
        gaps = np.abs((x[:, 0].numpy() * key).sum((1, 2))[:, None] - (expected * key).sum((1, 2)))
        scan = gaps.argmin(axis=1)
        np.testing.assert_allclose(x[:, 0].numpy(), expected[scan], atol=1e-6)
        np.testing.assert_array_equal(y.numpy(), scans.target[scan])
        seen.extend(scan)
    assert sorted(seen) == list(range(1797))


def test_digits_are_the_same_each_time(digits):
    assert torch.equal(load_images("digits").x_test, digits.x_test)


# --- requests that name nothing usable ------------------------------------------------------------


def test_unknown_set_is_refused_with_the_known_names():
    message = refusal("mnist", None)
    assert all(name in message for name in IMAGE_SETS)


def test_digits_from_a_folder_are_refused_for_they_are_embedded(tmp_path):
    assert "scikit-learn" in refusal("digits", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_folder_without_the_set_is_refused_with_what_was_looked_for(name, tmp_path):
    wanted = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "train.bin", "svhn": "train_32x32"}
    assert wanted[name] in refusal(name, tmp_path)
    assert "is not a folder" in refusal(name, tmp_path / "nowhere")


def test_folder_name_that_the_system_refuses_is_bad_input(tmp_path):
    assert "cannot read" in refusal("svhn", tmp_path / ("x" * 5000))
