"""Files made to do harm, and thousands damaged at random: one line, no code run, nothing bursts."""

import gzip
import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from readers import READERS, small_model, write_small_cifar, write_svhn, write_weights
from test_deep_graphs import tu_files
from test_deep_tabular import ARFF, idx
from torch import nn

from deep.checkpoint import load_weights
from deep.data.arff import read_arff
from deep.data.download import RemoteFile, fetch
from deep.data.graphs import load_graphs
from deep.data.idx import read_idx
from deep.data.images import load_images
from deep.data.published import read_cifar10
from deep.data.speech import read_wav
from deep.grid import read_sweep
from deep.models import build_model
from deep.recipes import recipe_settings
from deep.resume import Checkpoints
from deep.run_folder import read_lines, read_object
from deep.train import config_of_recipe
from deep.train import main as train_main
from figures import deformations, studies
from figures.__main__ import main as figures_main
from theory import read_reports
from theory.errors import InputError
from theory.record import json_line
from toy.data import load as load_toy

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("theory", "toy", "deep", "figures", "benchmarks")


@pytest.fixture(autouse=True)
def bounds():
    """Each test ends in a minute, and its memory is bounded."""

    def hang(number, frame):
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, hard))
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert peak < 2**27


def refusal(read, *arguments):
    with pytest.raises(InputError) as caught:
        read(*arguments)
    line = str(caught.value)
    assert line.isprintable()
    return line


# --- at random ------------------------------------------------------------------------------------


def test_damaged_files_give_a_sound_result_or_one_line():
    """By tests/fuzz.py in a process of its own, whose memory is bounded; see there."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--inputs", "3000"]
    signal.alarm(500)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=480,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == [*READERS, "all"]
    assert all(int(read) + int(refused) == int(inputs) for _, inputs, read, refused, _ in lines)
    assert int(lines[-1][1]) >= 3000


# --- something else in a file's place -------------------------------------------------------------

STANDS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "nothing at all": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x80\n" * 9),
}


@pytest.mark.parametrize("what", STANDS)
def test_something_else_than_the_file_is_refused(what, tmp_path):
    for name, reader in READERS.items():
        folder = tmp_path / name
        folder.mkdir()
        reader.write(folder)
        path = folder / reader.files[0]
        path.unlink()
        STANDS[what](path)
        if name == "campaign" and not path.exists():
            continue  # without a plan a campaign makes one
        if name == "run-folder" and not path.exists():
            continue  # without settings a folder is no run's
        if name == "recipe" and what == "nothing at all":
            continue  # which leaves every setting as it is
        line = refusal(reader.read, folder)
        assert path.name in line or name in line


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{}")
    path.chmod(0)
    assert "Permission denied" in refusal(read_reports, path)


def test_names_that_the_system_refuses_are_bad_input(tmp_path):
    for read in (read_reports, read_object, read_arff, read_idx, deformations.read):
        for name in ("x" * 5000, "a\0b", "a\nb\x1b[31m"):
            refusal(read, tmp_path / name)


# --- bombs ----------------------------------------------------------------------------------------


def test_idx_of_a_million_million_bytes(tmp_path):
    header = b"\0\0\x08\3" + struct.pack(">3I", 10_000, 10_000, 10_000)
    (tmp_path / "a.gz").write_bytes(idx(np.zeros(0), header))
    assert "claims 1000000000000 bytes" in refusal(read_idx, tmp_path / "a.gz")


def test_idx_that_unpacks_to_more_than_it_says(tmp_path):
    with gzip.open(tmp_path / "a.gz", "wb", 1) as stream:
        stream.write(b"\0\0\x08\1" + struct.pack(">I", 12))
        for _ in range(256):
            stream.write(bytes(2**20))
    assert "12 bytes, it holds more" in refusal(read_idx, tmp_path / "a.gz")


@pytest.mark.parametrize("honest", [True, False])
def test_zip_bomb_in_a_graph_set(honest, tmp_path):
    path, files = tmp_path / "MUTAG.zip", tu_files("MUTAG", [])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            with archive.open(f"MUTAG/{name}", "w") as stream:
                for _ in range(64):
                    stream.write(b"1\n" * 2**19)
    if not honest:  # the sizes of the unpacked members in both their places: 100 bytes
        content = path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 100))
        path.write_bytes(content)
    assert "MUTAG.zip" in refusal(load_graphs, "MUTAG", tmp_path)


def test_graphs_whose_tags_all_differ(tmp_path):
    """One-hot codes of 20,000 tags would take 1.6 GB."""
    lines = [f"1 {k % 2}\n{k} 0" for k in range(20_000)]
    (tmp_path / "MUTAG.txt").write_text("\n".join(["20000", *lines]))
    assert "too many to code one-hot" in refusal(load_graphs, "MUTAG", tmp_path)


def tar_of(path, *members):
    """A .tar.gz of (TarInfo, content) as they are."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def info_of(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_tar_with_links_devices_and_ways_out_writes_and_follows_nothing(tmp_path):
    """The members that are looked for are there, but as links and devices: they do not count."""
    wanted = [f"data_batch_{k}.bin" for k in range(1, 6)]
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    members = [(info_of(f"x/{name}", kind, "/etc/passwd"), b"")
               for name, kind in zip(wanted, kinds, strict=True)]  # fmt: skip
    ways_out = ("../../out.bin", "/out.bin", f"{tmp_path}/out.bin")
    members += [(info_of(name), b"written") for name in ways_out]
    folder = tmp_path / "data"
    folder.mkdir()
    tar_of(folder / "cifar-10-binary.tar.gz", *members)
    assert f"lacks {', '.join(wanted)}" in refusal(read_cifar10, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "cifar-10-binary.tar.gz"]


def zeros(path, header, mebibytes):
    """A .tar.gz of a header and so many zeros."""
    with gzip.open(path, "wb", 1) as stream:
        stream.write(header)
        for _ in range(mebibytes):
            stream.write(bytes(2**20))


def header_of(size, kind=tarfile.REGTYPE, name="data_batch_1.bin"):
    info = info_of(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                                  tarfile.GNUTYPE_SPARSE])  # fmt: skip
@pytest.mark.parametrize("size", [2**29, 2**60, -512])
def test_gzip_bomb_and_false_sizes_in_a_tar(kind, size, tmp_path):
    """Python's tarfile alone goes round for ever on a size below zero."""
    zeros(tmp_path / "cifar-10-binary.tar.gz", header_of(size, kind), 300 if size == 2**29 else 1)
    assert "cifar-10-binary.tar.gz" in refusal(read_cifar10, tmp_path)


def test_tar_that_unpacks_without_end(tmp_path):
    """Nothing in it is wanted, but its check sum stands at the end."""
    write_small_cifar(tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    whole = path.read_bytes()
    zeros(path, b"", 260)
    path.write_bytes(whole + path.read_bytes())
    assert "unpacks to more than" in refusal(read_cifar10, tmp_path)


def png_of(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ends = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + ends + struct.pack(">I", 0) + b"IEND\xaeB`\x82"


@pytest.mark.parametrize(
    "content",
    [png_of(2**31 - 1, 2**31 - 1), png_of(12_000, 9000), png_of(0, 0),
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1024 1000\n(x) (w) file\n%%EOF\n"],
    ids=["giant", "large", "none", "PostScript"],
)  # fmt: skip
def test_pictures_of_giant_size_and_other_kinds(content, tmp_path, monkeypatch):
    """For the second Pillow would warn, for the last it would run Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", None)
    for batch in (3, 50):
        (tmp_path / f"cifar10_batch_{batch}.png").write_bytes(content)
    (tmp_path / "cifar10_labels.json").write_text(json.dumps([0] * 4000))
    assert "cifar10_batch_3.png" in refusal(read_cifar10, tmp_path)


def test_wav_that_claims_more_than_it_has(tmp_path):
    for size in (1_000_000, 2**32 - 2):
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
        content = b"RIFF\xff\xff\xff\xffWAVE" + form + b"data" + struct.pack("<I", size) + bytes(50)
        assert "declares" in refusal(read_wav, content, tmp_path / "a.wav")


@pytest.mark.parametrize("shape", [(2**31 - 1,) * 4, (0, 2**31 - 1, 2**31 - 1, 2**31 - 1)])
def test_mat_file_of_a_giant_array(shape, tmp_path):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    content = path.read_bytes()
    real = struct.pack("<4i", 32, 32, 3, 3)
    assert real in content
    path.write_bytes(content.replace(real, struct.pack("<4i", *shape)))
    assert "test_32x32.mat" in refusal(load_images, "svhn", tmp_path)


def test_mat_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    """The bound is 256 MiB; a smaller one is tried here."""
    monkeypatch.setattr("deep.data.matlab._MOST_BYTES", 2**20)
    write_svhn(tmp_path)
    stream = zlib.compressobj(1)
    packed = b"".join(stream.compress(bytes(2**20)) for _ in range(200)) + stream.flush()
    path = tmp_path / "train_32x32.mat"
    head = path.read_bytes()[:128]
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    assert "more than 1048576 bytes" in refusal(load_images, "svhn", tmp_path)


def test_arff_with_a_long_word_and_with_many_categories(tmp_path):
    path = tmp_path / "a.arff"
    path.write_text(ARFF.replace("@DATA", f"@attribute {'a' * 10**6} b c\n@DATA"))
    assert "no @attribute line" in refusal(read_arff, path)
    names = ",".join(f"n{k}" for k in range(20_000))
    path.write_text(ARFF.replace("@DATA", f"@attribute many {{{names}}}\n@DATA"))
    assert "more than 1000 categories" in refusal(read_arff, path)


def test_sweep_of_more_cells_than_there_is_time_for(tmp_path):
    keys = ("alpha", "beta", "eta", "tau", "lr", "momentum", "weight_decay", "crop_padding")
    values = list(range(10))
    grid = "\n".join(f"{key} = {values}" for key in keys)
    (tmp_path / "s.toml").write_text(f"[grid]\n{grid}\n[rows.a]\n")
    assert "has 100000000 cells" in refusal(read_sweep, tmp_path / "s.toml")


# --- text that is too deep, too long, or no number ------------------------------------------------

JSON_READERS = {
    "report.json": read_reports,
    "result.json": read_object,
    "runs.jsonl": read_lines,
    "robustness.json": deformations.read,
    "bias.json": studies.read,
}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' + "9" * 10**6 + "}",
        '{"a": ' + "9" * 25 + "}",
        '{"a": NaN}',
        '{"a": [Infinity]}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        "null",
        "3",
        '"{}"',
    ],
    ids=lambda text: text[:16],
)
@pytest.mark.parametrize("name", JSON_READERS)
def test_json_beyond_bounds(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text + "\n")
    assert name in refusal(JSON_READERS[name], path)


@pytest.mark.parametrize(
    "text",
    [
        f"alpha = {'[' * 100_000}{']' * 100_000}",
        f"alpha = {'{a = ' * 100_000}1{'}' * 100_000}",
        f"alpha.{'a.' * 50_000}b = 1",
        f"alpha.{'a.' * 2000}b = 1",
        f"alpha = {'9' * 10**6}",
        'model = "--help"',
        'model = "a\\u0000b"',
        "base = []",
        "base = 1979-05-27",
        "milestones = [[1]]",
    ],
    ids=lambda text: text[:16],
)
def test_toml_beyond_bounds(text, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(text)
    assert "r.toml" in refusal(config_of_recipe, str(path))
    path.write_text(f"[rows.x]\n{text}")
    assert "r.toml" in refusal(read_sweep, path)


def test_rows_of_a_sweep_cannot_lead_out_of_its_folder(tmp_path):
    path = tmp_path / "s.toml"
    rows = "".join(f'[rows."{name}"]\nseed = {k}\n' for k, name in enumerate(
        ("../../out", "/tmp/out", "a\\u0000b", "..", "λ" * 300, "a\\nb")))  # fmt: skip
    path.write_text(rows.replace("seed", "epochs = 3\nlog_samples").replace("= 0\n", "= 9\n"))
    cells = read_sweep(path)
    assert len(cells) == 6
    for cell in cells:
        (tmp_path / "grid" / cell.name).mkdir(parents=True)
    assert {path.name for path in tmp_path.iterdir()} == {"s.toml", "grid"}
    assert len(list((tmp_path / "grid").iterdir())) == 6


def test_messages_are_one_line_whatever_they_quote():
    assert str(InputError("a\nb\x1b[31m\u2028c\ud800")) == "a b [31m c"
    assert len(str(InputError("x" * 10**6))) < 2100


def test_a_recipe_that_is_unknown_is_named_whatever_it_is():
    assert "unknown recipe" in refusal(recipe_settings, "\0\n")


def test_toy_file_of_comments_alone(tmp_path):
    (tmp_path / "t.csv").write_text("# nothing\n#\n")
    assert "empty" in refusal(load_toy, str(tmp_path / "t.csv"))


# --- weights and states ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1, 10**8])
def test_safetensors_header_of_any_claimed_size(size, tmp_path):
    (tmp_path / "w").write_bytes(struct.pack("<Q", size) + b'{"a": 1}')
    assert "truncated or corrupt" in refusal(load_weights, small_model(), tmp_path / "w")


def test_safetensors_of_a_giant_tensor(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}}
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "truncated or corrupt" in refusal(load_weights, small_model(), tmp_path / "w")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_weights_or_a_state_is_not_run(zipped, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "w.pt"
    torch.save({"a": Bomb(ran)}, path, _use_new_zipfile_serialization=zipped)
    assert "could run code" in refusal(load_weights, small_model(), path)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, small_model(), {"a": Bomb(ran)})
    refusal(checkpoints.load, small_model(), lambda line: None)
    assert not ran.exists()


def test_weights_that_unpack_to_more_than_the_file_are_refused(tmp_path):
    write_weights(tmp_path)
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(2**24) * ("/data/0" in name))
    assert "truncated or corrupt" in refusal(load_weights, small_model(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"training": 3, "watch": {}},
        {"training": {"index": "x", "optimizer": [], "order": None}, "watch": {}},
        {"training": {"index": 1, "optimizer": {}, "order": torch.zeros(3)}, "watch": {}},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_shape_ends_resuming_with_one_line(state, tmp_path, capsys):
    model = build_model("mlp", width=4, num_classes=10, in_channels=3, image_size=(32, 32))
    Checkpoints(tmp_path / "checkpoints").save(1, model, state)
    flags = ["--recipe", "quick-digits", "--model", "mlp", "--width", "4", "--epochs", "1"]
    code = train_main([*flags, "--check-every", "0", "--out", str(tmp_path), "--resume"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert error.startswith("error: ")
    assert str(tmp_path) in error


def test_weights_of_unusual_types_are_refused_or_converted(tmp_path):
    """Types that torch cannot test for NaN, or cannot convert."""
    for kind in (torch.float8_e4m3fn, torch.bool, torch.complex64, torch.float16):
        state = {name: t.to(kind) for name, t in nn.Linear(3, 2).state_dict().items()}
        (tmp_path / "w").write_bytes(safetensors.torch.save(state))
        if kind == torch.complex64:
            assert "does not convert" in refusal(load_weights, nn.Linear(3, 2), tmp_path / "w")
        else:
            load_weights(nn.Linear(3, 2), tmp_path / "w")


# --- records of another shape, in the commands ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", {"schema_version": 1, "environment": {}, "checks": [{}]}),
        ("robustness.json", {"groups": [{"label": 1, "seeds": [], "measures": {"a": 3}}],
                             "runs": 3, "published": [], "data": {}, "samples": None}),
        ("record.jsonl", {"table": 9, "row": [], "results": {}, "resplit": 1}),
        ("runs.jsonl", {"recipe": [], "log": {}, "checks": 3}),
        ("bias.json", {"study": "bias", "settings": {}}),
    ],
)  # fmt: skip
def test_figures_of_a_record_of_another_shape_are_one_line(name, content, tmp_path, capsys):
    (tmp_path / name).write_text(json_line(content))
    assert figures_main([str(tmp_path / name), "--out", str(tmp_path / "drawn")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert name in error


@pytest.mark.parametrize("text", ["[]", "{}", '{"sha256": []}', "[" * 10_000, "\xff"])
def test_a_damaged_record_of_a_download_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXUP_THEORY_MIRROR", "http://127.0.0.1:9")
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "a.zip.json").write_text(text, encoding="latin-1")
    refusal(fetch, RemoteFile("http://127.0.0.1:9/a.zip", None), tmp_path)


# --- never ----------------------------------------------------------------------------------------


def test_data_are_never_unpickled_nor_evaluated():
    never = re.compile(
        r"pickle\.loads?\(|Unpickler\(|weights_only\s*=\s*False|allow_pickle\s*=\s*True|\beval\(|"
        r"\bexec\(|extractall\(|\.extract\(|yaml\.load\(|joblib\.load\(|loadmat\(|read_pickle\("
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if never.search(line) and "model.eval()" not in line
    ]
    loads = [line for line in found if ".eval(" not in line]
    assert not loads, "\n".join(loads)
