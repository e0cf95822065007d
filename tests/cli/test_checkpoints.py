"""Checkpoints that are cut short, of another kind, or made to do harm: refused, and nothing is run.

None of them reaches torch: each is refused by what its directory or its opcodes say. A pass of
each through a process of its own is held to three seconds and one gigabyte.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.loading import read_checkpoint
from archir.weights.store import save_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS, BYTES = 3.0, 2**30
TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."
"""How a stream of torch.save begins: magic number, version, machine."""


class Harm:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def harm(folder: Path, protocol: int) -> bytes:
    return pickle.dumps({"model": Harm(folder / "harm")}, protocol)


def archive(pickled: bytes, *, method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A zip archive as torch.save lays it out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.writestr("net/data.pkl", pickled)
        for name, content in records.items():
            made.writestr(f"net/{name.replace('_', '/')}", content)
    return stream.getvalue()


def doubling() -> bytes:
    """Calls that double a text thirty times: a gigabyte of a few hundred bytes."""
    call = b"c_codecs\nencode\nq\x00"
    return b"\x80\x02" + call + b"X\x04\x00\x00\x00aaaaX\x03\x00\x00\x00hex\x86R" + b"."


def overlapping() -> bytes:
    """An archive whose records all claim the same bytes."""
    content = bytearray(archive(b"\x80\x02}.", data_0=b"\0" * 4096, data_1=b"\0" * 4096))
    at = content.rfind(b"PK\x01\x02")
    struct.pack_into("<II", content, at + 20, 2**31 - 1, 2**31 - 1)
    return bytes(content)


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        info = tarfile.TarInfo("storages")
        info.size = 4
        made.addfile(info, io.BytesIO(b"abcd"))
    return stream.getvalue()


def header(text: bytes, size: int | None = None) -> bytes:
    """A safetensors file of a header alone."""
    return struct.pack("<Q", len(text) if size is None else size) + text


ENORMOUS = b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
WHOLE = archive(b"\x80\x02}q\x00.", data_0=b"\0" * 64)
LENGTH = b"\x80\x02X\xff\xff\xff\xff"
"""A text that claims four gigabytes."""

HOSTILE: dict[str, tuple[str, bytes | Callable[[Path], bytes], str]] = {
    "empty": ("a.pth", b"", "A626"),
    "noise": ("a.pth", bytes(range(256)) * 8, "A626"),
    "text": ("a.pth", b"404: Not Found\n", "A626"),
    "lfs pointer": ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "A626"),
    "tar": ("a.pth.tar", tar(), "A626"),
    "cut archive": ("a.pth", WHOLE[:-40], "A626"),
    "head of an archive": ("a.pth", b"PK\x03\x04", "A626"),
    "cut stream": ("a.pth", TORCH[:30], "A626"),
    "stream without the object": ("a.pth", TORCH, "A626"),
    "other zip": ("a.pth", archive(b"").replace(b"data.pkl", b"dato.pkl"), "A626"),
    "empty pickle": ("a.pth", archive(b""), "A626"),
    "noise for a pickle": ("a.pth", archive(b"\xff" * 99), "A626"),
    "other pickle": ("a.pth", pickle.dumps({"a": 1}, 2), "A626"),
    "torchscript": ("a.pt", archive(b"\x80\x02}.", **{"constants.pkl": b""}), "A626"),
    "exported program": ("a.pt2", archive(b"\x80\x02}.", archive_format=b"pt2"), "A626"),
    "zip bomb": (
        "a.pth",
        archive(b"\x80\x02}.", method=zipfile.ZIP_DEFLATED, data_0=b"\0" * 300_000_000),
        "A626",
    ),
    "overlapping records": ("a.pth", overlapping(), "A626"),
    "long text": ("a.pth", archive(LENGTH), "A626"),
    "long text in a stream": ("a.pth", TORCH + LENGTH, "A626"),
    "code": ("a.pth", lambda folder: archive(harm(folder, 2)), "A627"),
    "code, new names": ("a.pth", lambda folder: archive(harm(folder, 4)), "A627"),
    "code in a stream": ("a.pth", lambda folder: TORCH + harm(folder, 2), "A627"),
    "code in a plain pickle": ("a.bin", lambda folder: harm(folder, 2), "A627"),
    "code in a plain pickle, new": ("a.bin", lambda folder: harm(folder, 5), "A627"),
    "code, old": ("a.bin", b"\x80\x02(Vrm -rf x\nios\nsystem\n.", "A627"),
    "bytes of any length": ("a.pth", archive(b"\x80\x02c__builtin__\nbytearray\n."), "A627"),
    "doubling": ("a.pth", archive(doubling()), "A627"),
    "a module": ("a.pth", archive(b"\x80\x02cmynet.model\nNet\n)\x81."), "A627"),
    "pickle named safetensors": ("a.safetensors", lambda folder: harm(folder, 4), "A610"),
    "archive named safetensors": ("a.safetensors", WHOLE, "A610"),
    "huge header": ("a.safetensors", header(b"{}", 2**62), "A610"),
    "header beyond the end": ("a.safetensors", header(b"{}", 90_000_000), "A610"),
    "enormous tensor": ("a.safetensors", header(ENORMOUS), "A610"),
    "header of nothing": ("a.safetensors", header(b"[[[[[["), "A610"),
    "no tensors": ("a.safetensors", header(b"{}"), "A626"),
}


def written(folder: Path, case: str) -> tuple[Path, str]:
    name, content, code = HOSTILE[case]
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content(folder))
    return file, code


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case: str, net: Path, archir: Callable[..., Any]) -> None:
    file, code = written(net.parent, case)
    before = set(net.parent.iterdir())
    start = time.process_time()
    answer = archir("weights", "load", net, "--from", file)
    assert answer.status == 2
    assert answer.err.splitlines()[0].startswith(f"error[{code}]: ")
    assert time.process_time() - start < SECONDS
    assert set(net.parent.iterdir()) == before  # nothing was written, and nothing was run


def test_the_harm_is_real(tmp_path: Path) -> None:
    pickle.loads(harm(tmp_path, 4))
    assert (tmp_path / "harm").is_dir()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
from archir.cli.main import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("case", ["zip bomb", "code", "long text in a stream", "huge header"])
def test_within_a_gigabyte(case: str, net: Path) -> None:
    file, code = written(net.parent, case)
    words = ["weights", "load", str(net), "--from", str(file), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(bytes=BYTES), *words],
        capture_output=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert json.loads(done.stdout)["diagnostics"][0]["code"] == code
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS


# ---- what is looked through is what torch writes


def test_what_torch_writes_is_let_through(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    kinds = [torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    more = OrderedDict((str(kind), torch.ones(2).to(kind)) for kind in kinds)
    content = {"model": layer.state_dict(), "weight": layer.weight, "more": more, "lr": 0.1,
               "names": ["a", "b"], "seen": {1, 2}, "size": torch.Size([2]), "dtype": torch.half,
               "nested": {"deep": {"er": {"w": torch.zeros(1)}}}}  # fmt: skip
    for zipped in (True, False):
        file = tmp_path / "a.pth"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        found = read_checkpoint(file).entries
        assert list(found) == ["", "model", "more", "nested.deep.er"]
        assert [held.dtype for held in found["more"].values()] == [
            "f16", "bf16", "i64", "u8", "bool"
        ]  # fmt: skip
        weight = found["model"]["weight"]
        assert weight.shape == (2, 3)
        assert np.array_equal(weight.read(), layer.weight.detach().numpy())
        assert np.array_equal(found[""]["weight"].read(), layer.weight.detach().numpy())


def test_what_only_torch_notices(tmp_path: Path) -> None:
    """A pickle of allowed names that makes no sense."""
    pytest.importorskip("torch")
    (tmp_path / "a.pth").write_bytes(archive(b"\x80\x02ccollections\nOrderedDict\nR."))
    with pytest.raises(ArchirError) as failure:
        read_checkpoint(tmp_path / "a.pth")
    assert failure.value.diagnostics[0].code == "A626"


def test_a_cycle_ends(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content: dict[str, object] = {"w": torch.zeros(2)}
    content["self"] = content
    torch.save(content, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").entries) == [""]


def test_many_paths_to_one_mapping(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content: dict[str, object] = {"w": torch.zeros(2)}
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ArchirError) as failure:  # deeper than is searched
        read_checkpoint(tmp_path / "a.pth")
    assert failure.value.diagnostics[0].code == "A626"


@pytest.mark.parametrize("name", ["absent.pth", "folder"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchirError) as failure:
        read_checkpoint(tmp_path / name)
    assert failure.value.diagnostics[0].code == "A601"


def test_safetensors_by_any_name(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    found = read_checkpoint(tmp_path / "model.bin")
    assert (found.format, list(found.entries[""])) == ("safetensors", ["a"])
