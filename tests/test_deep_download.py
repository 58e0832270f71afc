"""Downloads from a server on this machine that also lies, breaks off and is not there."""

import hashlib
import io
import json
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from deep.data.download import MIRROR_VARIABLE, REMOTE_FILES, RemoteFile, fetch
from deep.data.graphs import load_graphs
from deep.data.images import load_images
from deep.data.load import load_examples
from theory.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Behaves as the first part of the path says: /right/…, /lie/…, /break/…, /move/…, else 404."""

    content = CONTENT
    served: list[str]

    def do_GET(self):
        self.served.append(self.path)
        match self.path.split("/")[1]:
            case "right":
                self.answer(self.content, len(self.content))
            case "lie":
                self.answer(b"x" * len(self.content), len(self.content))
            case "break":
                self.answer(self.content[:100_000], len(self.content))
            case "move":
                self.send_response(302)
                self.send_header("Location", self.path.replace("/move/", "/right/"))
                self.end_headers()
            case "circle":
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
            case _:
                self.send_error(404)

    def answer(self, body, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server: its address, what it serves as right, and the paths asked of it."""
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("OwnHandler", (Handler,), {"served": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        httpd.address = f"http://127.0.0.1:{httpd.server_port}"
        httpd.handler = handler
        yield httpd
        httpd.shutdown()
        thread.join()


def zip_of(*texts, **files):
    """A zip with these files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in [*((f"{k}.txt", text) for k, text in enumerate(texts)), *files.items()]:
            archive.writestr(name, text)
    return content.getvalue()


def refusal(file, cache_dir):
    """The one line with which a failed download ends; the cache holds nothing afterwards."""
    with pytest.raises(InputError) as caught:
        fetch(file, cache_dir)
    assert not cache_dir.is_dir() or not list(cache_dir.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    assert "--data-dir" in message
    return message


def test_right_file_arrives_once_and_comes_from_the_cache_afterwards(server, tmp_path, capfd):
    file = RemoteFile(f"{server.address}/right/a.bin", SUM)
    path = fetch(file, tmp_path / "new" / "cache")
    assert path == tmp_path / "new" / "cache" / "a.bin"
    assert path.read_bytes() == CONTENT
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err  # the progress bar
    assert fetch(file, path.parent) == path
    assert server.handler.served == ["/right/a.bin"]


def test_redirect_is_followed(server, tmp_path):
    file = RemoteFile(f"{server.address}/move/a.bin", SUM)
    assert fetch(file, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("lie/a.bin", "does not match"),
        ("break/a.bin", "broke off"),
        ("missing/a.bin", "404"),
        ("circle/a.bin", "redirects"),
    ],
)
def test_bad_answer_is_one_line_with_the_address_and_leaves_nothing(server, path, reason, tmp_path):
    address = f"{server.address}/{path}"
    message = refusal(RemoteFile(address, SUM), tmp_path)
    assert address in message
    assert reason in message
    assert "place a.bin in a folder" in message


def test_server_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
        message = refusal(RemoteFile(address, SUM), tmp_path)
    assert address in message
    assert "no connection" in message


@pytest.mark.parametrize("address", ["nonsense", "ftp://127.0.0.1/a.bin", "http://[/a.bin"])
def test_address_that_is_none_is_bad_input(address, tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    assert address in refusal(RemoteFile(address, SUM), tmp_path)


def test_cache_that_cannot_be_written_is_bad_input(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--data-dir"):
        fetch(RemoteFile(f"{server.address}/right/a.bin", SUM), tmp_path / "file" / "cache")


def test_cached_file_with_a_wrong_sum_is_reported_and_fetched_again(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.warns(UserWarning, match="fetched again"):
        path = fetch(RemoteFile(f"{server.address}/right/a.bin", SUM), tmp_path)
    assert path.read_bytes() == CONTENT


def test_cached_file_with_a_wrong_sum_is_not_kept_when_fetching_fails(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.warns(UserWarning, match="deleted"):
        refusal(RemoteFile(f"{server.address}/lie/a.bin", SUM), tmp_path)


@pytest.mark.parametrize("end", ["", "/"])
def test_mirror_takes_the_place_of_the_site_and_is_verified_all_the_same(
    server, end, tmp_path, monkeypatch
):
    file = RemoteFile("http://unreachable.invalid/some/where/a.bin", SUM)
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address}/right{end}")
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    (tmp_path / "a.bin").unlink()
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address}/lie{end}")
    assert f"{server.address}/lie/a.bin" in refusal(file, tmp_path)


def test_load_images_without_a_folder_reads_what_it_downloads(server, tmp_path, monkeypatch):
    """End to end with a miniature CIFAR-100 archive in the place of the published one."""
    records = {
        "train": bytes([7, 42, *([255] * 1536), *([0] * 1536), 8, 99, *range(256)] + [9] * 2816),
        "test": bytes([1, 3, *([100] * 3072)]),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for part, content in records.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{part}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    server.handler.content = archive.getvalue()
    file = RemoteFile(
        f"{server.address}/right/cifar-100-binary.tar.gz",
        hashlib.sha256(server.handler.content).hexdigest(),
    )
    monkeypatch.setitem(REMOTE_FILES, "cifar100", (file,))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    data = load_images("cifar100")
    assert data.y_train.tolist() == [42, 99]
    assert data.y_test.tolist() == [3]
    assert data.source == f"cifar-100-binary.tar.gz; SHA-256 {file.sha256}"
    assert (tmp_path / "mixup-theory" / "cifar-100-binary.tar.gz").is_file()


def test_file_without_a_published_sum_is_recorded_at_first_and_verified_from_then_on(
    server, tmp_path
):
    server.handler.content = content = zip_of("some text")
    file = RemoteFile(f"{server.address}/right/a.zip", None)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.warns(UserWarning, match=digest):
        path = fetch(file, tmp_path)
    assert path.read_bytes() == content
    record = json.loads((tmp_path / "a.zip.json").read_text())
    assert record == {"bytes": len(content), "sha256": digest}

    assert fetch(file, tmp_path) == path
    assert server.handler.served == ["/right/a.zip"]
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="fetched again"):
        fetch(file, tmp_path)
    assert path.read_bytes() == content

    path.unlink()
    server.handler.content = zip_of("another text")
    with pytest.raises(InputError, match="does not match"):
        fetch(file, tmp_path)
    assert [left.name for left in tmp_path.iterdir()] == ["a.zip.json"]


@pytest.mark.parametrize("path", ["right/page.zip", "break/page.zip", "missing/page.zip"])
def test_what_is_no_zip_is_neither_kept_nor_recorded(server, path, tmp_path):
    """A page that says sorry, with status 200, would else be verified for ever."""
    refusal(RemoteFile(f"{server.address}/{path}", None), tmp_path)


def test_graph_set_without_a_folder_is_downloaded_once(server, tmp_path, monkeypatch):
    graphs = 10
    tables = {
        "A": "".join(f"{2 * i + 1}, {2 * i + 2}\n" for i in range(graphs)),
        "graph_indicator": "".join(f"{i}\n{i}\n" for i in range(1, graphs + 1)),
        "graph_labels": "1\n2\n" * 5,
        "node_labels": "0\n1\n" * graphs,
    }
    server.handler.content = zip_of(**{f"NCI1/NCI1_{k}.txt": text for k, text in tables.items()})
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address}/right")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    with pytest.warns(UserWarning, match="no published sum"):
        found, labels, source = load_graphs("nci1")
    assert len(found) == graphs
    assert labels.tolist() == [0, 1] * 5
    assert source.startswith("NCI1.zip; SHA-256 ")
    load_graphs("NCI1")
    assert server.handler.served == ["/right/NCI1.zip"]


@pytest.mark.parametrize("name", REMOTE_FILES)
def test_a_lying_mirror_of_a_published_set_is_refused(name, server, tmp_path, monkeypatch):
    """The published sums themselves are in force, whatever a mirror sends."""
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address}/lie")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    with pytest.raises(InputError, match="does not match"):
        load_examples(name)
    assert not list((tmp_path / "mixup-theory").iterdir())


def test_published_sums_are_whole_and_all_different():
    sums = [file.sha256 for files in REMOTE_FILES.values() for file in files]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in sums)
    assert len(set(sums)) == len(sums)
