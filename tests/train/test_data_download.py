"""What is fetched: by torchvision itself, from a server of this machine with files of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.train.data import load_data
from archir.train.published import CACHE_FOLDER, DATA_FOLDER, STALE

from .test_data import refused
from .test_data_published import pixels, write_idx, write_svhn

datasets = pytest.importorskip("torchvision.datasets")
pytest.importorskip("scipy.io")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that went away is part of these tests; the server's own words are not."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which its files are fetched."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data belongs; it does not exist yet."""
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path / "root"))
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv("http_proxy", raising=False)
    return tmp_path / "root"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Python2(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes bytes as the strings of Python 2, in which the published batches are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, held: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(held)) + held)

    dispatch[bytes] = save_bytes


def old(stored: object) -> bytes:
    stream = io.BytesIO()
    Python2(stream, 2).dump(stored)
    return stream.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def serve_cifar(kind: str, folder: Path, address: str, patch: pytest.MonkeyPatch) -> None:
    """An archive of few images in place of the published one, and its MD5s."""
    theirs, hundred = getattr(datasets, kind), kind == "CIFAR100"
    parts = (
        ["train", "test"] if hundred else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    )
    files = {}
    for number, part in enumerate(parts):
        labels = [i % 10 for i in range(12)]
        stored = {
            "data": pixels(12, 3072, seed=number),
            "fine_labels" if hundred else "labels": labels,
        }
        files[part] = old({k.encode(): v for k, v in stored.items()})
    meta = theirs.meta["filename"]
    files[meta] = old({theirs.meta["key"].encode(): [b"x%d" % n for n in range(100)]})
    content = packed({f"{theirs.base_folder}/{name}": held for name, held in files.items()})
    (folder / theirs.filename).write_bytes(content)
    patch.setattr(theirs, "url", address + theirs.filename)
    patch.setattr(theirs, "tgz_md5", md5(content))
    patch.setattr(theirs, "train_list", [[part, md5(files[part])] for part in parts[:-1]])
    patch.setattr(theirs, "test_list", [[parts[-1], md5(files[parts[-1]])]])
    patch.setattr(theirs, "meta", {**theirs.meta, "md5": md5(files[meta])})


def serve_idx(kind: str, folder: Path, address: str, patch: pytest.MonkeyPatch) -> None:
    write_idx(folder / "raw")
    resources = []
    for file in sorted((folder / "raw").iterdir()):
        content = gzip.compress(file.read_bytes())
        (folder / f"{file.name}.gz").write_bytes(content)
        resources.append((f"{file.name}.gz", md5(content)))
    patch.setattr(getattr(datasets, kind), "mirrors", [address])
    patch.setattr(getattr(datasets, kind), "resources", resources)


def serve_svhn(kind: str, folder: Path, address: str, patch: pytest.MonkeyPatch) -> None:
    write_svhn(folder)
    split = {}
    for part in ("train", "test"):
        name = f"{part}_32x32.mat"
        split[part] = [address + name, name, md5((folder / name).read_bytes())]
    patch.setattr(getattr(datasets, kind), "split_list", split)


Serve = Callable[[str, Path, str, pytest.MonkeyPatch], None]
SETS: list[tuple[str, str, Serve, str]] = [
    ("cifar10", "CIFAR10", serve_cifar, "cifar-10-batches-py/data_batch_1"),
    ("cifar100", "CIFAR100", serve_cifar, "cifar-100-python/train"),
    ("svhn", "SVHN", serve_svhn, "train_32x32.mat"),
    ("mnist", "MNIST", serve_idx, "MNIST/raw/train-images-idx3-ubyte"),
    ("fashion_mnist", "FashionMNIST", serve_idx, "FashionMNIST/raw/train-images-idx3-ubyte"),
]


@pytest.mark.parametrize(("name", "kind", "serve", "file"), SETS, ids=[row[0] for row in SETS])
def test_a_set_is_fetched_once(
    name: str,
    kind: str,
    serve: Serve,
    file: str,
    served: tuple[Path, str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    serve(kind, *served, monkeypatch)
    assert refused(lambda: load_data(name)).code == "A660"  # nothing is fetched unasked
    assert not root.exists()
    told: list[str] = []
    first = load_data(name, download=True, report=told.append)
    assert len(first.test) >= 10
    assert told
    assert all(line.startswith("fetching ") for line in told)
    assert (root / file).is_file()
    left = [str(p) for p in root.rglob("*") if p.name.startswith(".") or p.suffix == ".gz"]
    assert left == []  # neither archives nor what was half written
    assert capfd.readouterr() == ("", "")
    for path in served[0].glob("*"):  # no second time: the server has nothing any more
        if path.is_file():
            path.unlink()
    assert load_data(name, download=True).sha256 == load_data(name).sha256 == first.sha256


@pytest.mark.parametrize(("name", "kind", "serve", "_"), SETS, ids=[row[0] for row in SETS])
def test_torchvision_reads_the_same(
    name: str,
    kind: str,
    serve: Serve,
    _: str,
    served: tuple[Path, str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(kind, *served, monkeypatch)
    data = load_data(name, download=True)
    # from the files that were put in place; of CIFAR and SVHN it checks the MD5 of each
    part: dict[str, Any] = {"split": "test"} if name == "svhn" else {"train": False}
    theirs = getattr(datasets, kind)(root, **part)
    x = np.asarray(theirs.data)
    x = x.transpose(0, 3, 1, 2) if name.startswith("cifar") else x.reshape(data.test.x.shape)
    np.testing.assert_array_equal(data.test.x[:], x)
    labels = theirs.labels if name == "svhn" else theirs.targets
    assert data.test.y.tolist() == np.asarray(labels).tolist()
    if name == "fashion_mnist":
        assert data.classes == tuple(theirs.classes)


def test_missing_files_are_fetched_beside_those_there(
    served: tuple[Path, str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar("CIFAR10", *served, monkeypatch)
    first = load_data("cifar10", download=True)
    gone = root / "cifar-10-batches-py" / "data_batch_3"
    gone.unlink()
    found = refused(lambda: load_data("cifar10"))
    assert found.code == "A621"
    assert "--data cifar10 --download" in found.hint
    assert load_data("cifar10", download=True).sha256 == first.sha256
    assert gone.is_file()


def nothing_left(root: Path, *kept: str) -> bool:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*")) == sorted(kept)


@pytest.mark.parametrize(("name", "kind", "serve", "_"), SETS, ids=[row[0] for row in SETS])
def test_damaged_on_the_way(
    name: str,
    kind: str,
    serve: Serve,
    _: str,
    served: tuple[Path, str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(kind, *served, monkeypatch)
    victim = max((p for p in served[0].iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    found = refused(lambda: load_data(name, download=True))
    assert found.code == "A661"
    assert "corrupted" in found.message
    assert "\n" not in found.message
    assert nothing_left(root)


@pytest.mark.parametrize(("name", "kind", "serve", "_"), SETS, ids=[row[0] for row in SETS])
def test_without_a_connection(
    name: str,
    kind: str,
    serve: Serve,
    _: str,
    served: tuple[Path, str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        serve(kind, served[0], f"http://127.0.0.1:{free.getsockname()[1]}/", monkeypatch)
        before = socket.getdefaulttimeout()
        found = refused(lambda: load_data(name, download=True))
        assert socket.getdefaulttimeout() == before
    assert found.code == "A661"
    assert "refused" in found.message
    assert "connection" in found.hint
    assert nothing_left(root)


def test_a_server_that_does_not_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archir.train.download.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        found = refused(lambda: load_data("mnist", download=True))
    assert found.code == "A661"
    assert "timed out" in found.message
    assert nothing_left(root)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path / "file" / "inside"))
    assert refused(lambda: load_data("mnist", download=True)).code == "A602"


def test_interrupted(served: tuple[Path, str], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_cifar("CIFAR10", *served, monkeypatch)

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_data("cifar10", download=True, report=stop)
    assert nothing_left(root)


def test_what_other_threads_say_is_not_reported(
    served: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve_cifar("CIFAR10", *served, monkeypatch)
    told: list[str] = []

    def report(line: str) -> None:
        speaker = threading.Thread(target=lambda: print("of another thread", file=sys.stderr))
        speaker.start()
        speaker.join()
        told.append(line)

    load_data("cifar10", download=True, report=report)
    assert told
    assert not [line for line in told if "another" in line]
    assert "of another thread" in capsys.readouterr().err


def test_what_a_killed_process_left_is_removed(
    served: tuple[Path, str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_svhn("SVHN", *served, monkeypatch)
    old, new = (root / f".download-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "part").touch()
    day_before = time.time() - STALE - 60
    os.utime(old, (day_before, day_before))
    load_data("svhn", download=True)
    assert (old.exists(), new.exists()) == (False, True)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = refused(lambda: load_data("mnist", download=True))
    assert found.code == "A622"
    assert "archir[data]" in found.hint


def test_only_what_has_a_name_is_fetched(tmp_path: Path) -> None:
    for name in ("imagenet", str(tmp_path / "nowhere.npz")):
        with pytest.raises(ArchirError) as caught:
            load_data(name, download=True)
        assert caught.value.diagnostics[0].code == "A620"
    assert len(load_data("digits", download=True).test) == 359
