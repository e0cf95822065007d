"""Files that are absent, broken, in the way, or cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archir as package
from archir.api import certificate_path, weights_path
from archir.diag import ArchirError

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]


@pytest.fixture
def net(archir: Archir, tmp_path: Path) -> Path:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert archir("weights", "init", file).status == 0
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what is in it."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def code(answer: Any) -> tuple[int, str]:
    """Exit status and the first code, of an answer in JSON."""
    return answer.status, answer.document["diagnostics"][0]["code"]


DEEPEN = ("--rule", "deepen@stem.relu")


# ---- output that exists


@pytest.mark.parametrize("suffix", [".arch", ".safetensors", ".cert.json"])
@pytest.mark.parametrize("verb", [("rewrite", *DEEPEN), ("train", "--epochs", "1")])
def test_nothing_is_replaced(archir: Archir, net: Path, verb: tuple[str, ...], suffix: str) -> None:
    net.with_name("out" + suffix).write_text("mine")
    before = contents(net.parent)
    words = (verb[0], net, *verb[1:], "-o", net.with_name("out.arch"), "--json")
    assert code(archir(*words)) == (2, "A603")
    assert contents(net.parent) == before
    assert archir(*words, "--force").status == 0
    assert archir("verify", net.with_name("out.arch")).status == 0


def test_output_over_the_input(archir: Archir, net: Path) -> None:
    words = ("rewrite", net, *DEEPEN, "-o", net, "--json")
    before = contents(net.parent)
    assert code(archir(*words)) == (2, "A603")
    assert contents(net.parent) == before
    assert archir(*words, "--force").status == 0
    assert archir("verify", net).status == 0
    assert archir("rewrite", net, "--rule", "deepen@tail.relu", "-o", net, "--force").status == 0
    assert archir("verify", net).status == 0


def test_a_network_without_weights_is_not_put_beside_others(archir: Archir, net: Path) -> None:
    bare = Path(shutil.copy(EXAMPLES / "digits.arch", net.with_name("bare.arch")))
    words = ("rewrite", bare, *DEEPEN, "-o", net, "--json")
    assert code(archir(*words)) == (2, "A603")
    assert archir(*words, "--force").status == 0
    assert not weights_path(net).exists()
    assert archir("verify", net).status == 0


@pytest.mark.parametrize("name", ["net.safetensors", "out.onnx", "out", "out.v2", "out.cert.json"])
def test_names_that_no_network_has(archir: Archir, net: Path, name: str) -> None:
    before = contents(net.parent)
    answer = archir("rewrite", net, *DEEPEN, "-o", net.with_name(name), "--force", "--json")
    assert code(answer) == (2, "A602")
    assert contents(net.parent) == before


@pytest.mark.parametrize("name", ["net.arch", "net.safetensors", "net.cert.json"])
def test_an_onnx_file_does_not_take_a_network_s_place(archir: Archir, net: Path, name: str) -> None:
    before = contents(net.parent)
    assert code(archir("export", net, "-o", net.with_name(name), "--force", "--json")) == (
        2,
        "A602",
    )
    assert contents(net.parent) == before


def test_export_and_new_replace_nothing(archir: Archir, net: Path) -> None:
    target = net.with_name("net.onnx")
    target.write_text("mine")
    assert code(archir("export", net, "-o", target, "--json")) == (2, "A603")
    assert code(archir("new", "digits", "-o", net, "--json")) == (2, "A603")
    assert target.read_text() == "mine"
    assert archir("export", net, "-o", target, "--force").status == 0
    assert target.stat().st_size > 50_000


def test_a_dry_run_writes_nothing(archir: Archir, net: Path) -> None:
    before = contents(net.parent)
    answer = archir("rewrite", net, *DEEPEN, "--dry-run", "-o", net.with_name("out.arch"))
    assert answer.status == 0
    assert "+    stem = image |> conv: conv(16, 3" in answer.out
    assert "wrote" not in answer.out
    assert contents(net.parent) == before


# ---- places that cannot be written


@pytest.mark.parametrize("place", ["absent/out.arch", "net.arch/out.arch", "folder.arch"])
def test_impossible_places(archir: Archir, net: Path, place: str) -> None:
    (net.parent / "folder.arch").mkdir()
    before = contents(net.parent)
    for verb in (("rewrite", net, *DEEPEN), ("train", net, "--epochs", "1")):
        answer = archir(*verb, "-o", net.parent / place, "--force", "--json")
        assert answer.status == 2
        assert answer.document["diagnostics"][0]["code"] in ("A602", "A609")
    assert contents(net.parent) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which nobody can write")
@pytest.mark.parametrize("verb", [("rewrite", *DEEPEN), ("export",), ("new",)])
def test_a_folder_that_refuses(archir: Archir, net: Path, verb: tuple[str, ...]) -> None:
    name = "/proc/out.onnx" if verb == ("export",) else "/proc/out.arch"
    file = "digits" if verb == ("new",) else net
    assert code(archir(verb[0], file, *verb[1:], "-o", name, "--json")) == (2, "A602")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(archir: Archir, net: Path) -> None:
    locked = net.parent / "locked"
    locked.mkdir(mode=0o500)
    assert code(archir("rewrite", net, *DEEPEN, "-o", locked / "out.arch", "--json")) == (2, "A602")


def limited(words: tuple[object, ...], bytes_: int) -> subprocess.CompletedProcess[str]:
    """A command that cannot write files beyond a size, as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))

    command = [sys.executable, "-m", "archir", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=120
    )


@pytest.mark.parametrize("room", [0, 2_000, 40_000])
def test_a_full_disk_leaves_the_old_files_whole(archir: Archir, net: Path, room: int) -> None:
    out = net.with_name("out.arch")
    assert archir("rewrite", net, "--rule", "deepen@tail.relu", "-o", out).status == 0
    before = contents(net.parent)
    done = limited(("rewrite", net, *DEEPEN, "-o", out, "--force"), room)
    assert done.returncode == 2
    assert done.stderr.startswith("error[A6")
    assert "Traceback" not in done.stderr
    after = contents(net.parent)
    assert before.items() <= after.items()
    assert not [name for name in after if name.endswith(".tmp")]
    assert archir("verify", out).status == 0


def test_a_full_disk_at_export(net: Path) -> None:
    done = limited(("export", net, "-o", net.with_name("net.onnx")), 10_000)
    assert done.returncode == 2
    assert done.stderr.startswith("error[A602]")
    assert not list(net.parent.glob("*.onnx*"))
    assert not list(net.parent.glob(".*.tmp"))


@pytest.mark.parametrize("crash", [0, 1, 2])
def test_a_crash_between_two_files_is_noticed(
    archir: Archir, net: Path, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    """The files move one after the other; whatever has moved by then, nothing lies silently."""
    out = net.with_name("out.arch")
    assert archir("rewrite", net, "--rule", "deepen@tail.relu", "-o", out).status == 0
    after = package.load(net).rewrite("widen", "fc1", width=40)
    moves = 0
    move = Path.replace

    def failing(self: Path, target: Path) -> Path:
        nonlocal moves
        if target.name.startswith("out."):
            moves += 1
            if moves > crash:
                raise MemoryError("the machine stops here")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(MemoryError):
        after.save(out, force=True)
    monkeypatch.undo()
    assert moves == crash + 1
    assert not list(net.parent.glob(".*.tmp"))
    assert archir("verify", out).status == (0 if crash == 0 else 1)


def test_files_are_put_in_place_together(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written stops all of them before the first has moved."""
    out = net.with_name("out.arch")
    network = package.load(net).rewrite("deepen", "stem.relu")
    written = Path.write_text

    def full(self: Path, *words: Any, **named: Any) -> int:
        if self.name.startswith(".out.arch"):
            raise OSError(28, "No space left on device")
        return written(self, *words, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArchirError) as caught:
        network.save(out)
    assert caught.value.diagnostics[0].code == "A602"
    assert not [p for p in net.parent.iterdir() if p.is_file() and "out" in p.name]


# ---- input of every wrong kind


def garbage(length: int) -> bytes:
    return np.random.default_rng(0).bytes(length)


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "NUL bytes": b"arch net { \0\0 }",
    "garbage": garbage(5000),
    "UTF-16": "arch net { }".encode("utf-16"),
    "a byte-order mark alone": b"\xef\xbb\xbf",
    "a very long line": b"arch net { input x: f32[N, " + b"3, " * 20_000 + b"3] output x }",
    "deep brackets": b"arch net { let k = " + b"(" * 100_000,
    "a large number": b"arch net { input x: f32[N, " + b"9" * 5000 + b"] output x }",
    "an archive": b"PK\x03\x04" + garbage(500),
}


@pytest.mark.parametrize("verb", ["check", "show", "cost", "rules", "fmt"])
@pytest.mark.parametrize("kind", TEXTS)
def test_texts(archir: Archir, tmp_path: Path, kind: str, verb: str) -> None:
    file = tmp_path / "net.arch"
    file.write_bytes(TEXTS[kind])
    answer = archir(verb, file, "--json")
    assert answer.status == (0 if verb == "fmt" and kind in FORMATTED else 2)
    if answer.status:
        assert all(d["code"] < "A690" for d in answer.document["diagnostics"])
    assert file.read_bytes() == TEXTS[kind] or answer.status == 0


FORMATTED = ("a very long line", "empty")
"""What is wrong as a network may still be laid out."""


@pytest.mark.parametrize(
    "verb", ["check", "show", "cost", "rules", "fmt", "verify", "train", "export"]
)
def test_absent_files_and_folders(archir: Archir, tmp_path: Path, verb: str) -> None:
    (tmp_path / "folder.arch").mkdir()
    output = {"train": ("-o", tmp_path / "t.arch"), "export": ("-o", tmp_path / "t.onnx")}
    for name in ("absent.arch", "folder.arch"):
        answer = archir(verb, tmp_path / name, *output.get(verb, ()), "--json")
        assert answer.status == 2
        assert answer.document["diagnostics"][0]["code"] in ("A601", "A609")


def test_a_huge_file(archir: Archir, tmp_path: Path) -> None:
    file = tmp_path / "net.arch"
    with file.open("wb") as stream:
        stream.truncate(3_000_000_000)  # a hole: it takes no room
    assert code(archir("check", file, "--json")) == (2, "A601")


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "a few bytes": lambda raw: raw[:5],
    "half a header": lambda raw: raw[:500],
    "half the data": lambda raw: raw[: len(raw) // 2],
    "one byte less": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"\0",
    "garbage": lambda raw: garbage(len(raw)),
    "a header of 2**63 bytes": lambda raw: b"\xff" * 7 + b"\x7f" + raw[8:],
    "a pickle": lambda raw: b"\x80\x04" + raw,
    "an archive": lambda raw: b"PK\x03\x04" + raw,
    "text": lambda raw: b"arch net { }\n" * 50,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(archir: Archir, net: Path, kind: str) -> None:
    file = weights_path(net)
    file.write_bytes(WEIGHTS[kind](file.read_bytes()))
    for words in (("rewrite", net, *DEEPEN, "--dry-run"), ("eval", net)):
        assert code(archir(*words, "--json")) == (2, "A610")
    assert archir("verify", net).status == 1
    assert archir("check", net).status == 0  # the text is well


CERTIFICATES: Mapping[str, bytes] = {
    "empty": b"",
    "garbage": garbage(500),
    "a list": b"[]",
    "null": b"null",
    "another format": b'{"format": "x", "version": 1}',
    "a newer version": b'{"format": "archir-certificate", "version": 2}',
    "deep": b"[" * 100_000,
    "a step of nothing": (
        b'{"format": "archir-certificate", "version": 1, "params": {}, "parameters": [], '
        b'"steps": [{}]}'
    ),
    "params that are no mapping": (
        b'{"format": "archir-certificate", "version": 1, "params": 3, "parameters": [], '
        b'"steps": []}'
    ),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_certificates(archir: Archir, net: Path, kind: str) -> None:
    certificate_path(net).write_bytes(CERTIFICATES[kind])
    for words in (("verify", net), ("rewrite", net, *DEEPEN, "--dry-run")):
        assert code(archir(*words, "--json")) == (1, "A402")


def test_a_certificate_that_is_a_folder(archir: Archir, net: Path) -> None:
    certificate_path(net).unlink()
    certificate_path(net).mkdir()
    assert code(archir("verify", net, "--json")) == (1, "A402")


def test_weights_of_another_network(archir: Archir, net: Path) -> None:
    other = Path(shutil.copy(EXAMPLES / "nash_start.arch", net.with_name("other.arch")))
    assert archir("weights", "init", other).status == 0
    answer = archir("eval", net, "--weights", weights_path(other), "--json")
    assert answer.status == 2
    codes = {d["code"] for d in answer.document["diagnostics"]}
    assert codes == {"A611"}
    assert len(answer.document["diagnostics"]) <= 21
