"""Hostile ONNX files: one clear line, the right exit status, little time and little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from archir.backends.onnx.raising import import_onnx, raise_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archir.diag import BAD_INPUT, UNSUPPORTED, ArchirError
from archir.target import ImportOptions
from tests.backends.hostile_onnx import HOSTILE, relu

_SECONDS = 3.0
_BYTES = 1_000_000_000


def _refused(path: Path) -> ArchirError:
    with pytest.raises(ArchirError) as caught:
        import_onnx(str(path), ImportOptions())
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    code, write = HOSTILE[name]
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    write(path)
    found = _refused(path)
    assert [d.code for d in found.diagnostics] == [code], str(found)
    assert found.status in (BAD_INPUT, UNSUPPORTED)
    message = found.diagnostics[0].message
    assert "\n" not in message
    assert message.isprintable()
    assert 20 < len(message) < 400, message


_MEASURED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from hostile_onnx import HOSTILE
from archir.diag import ArchirError
from archir.backends.onnx.raising import import_onnx
from archir.target import ImportOptions
folder = Path(sys.argv[1])
slowest = ("", 0.0)
for number, (name, (code, write)) in enumerate(HOSTILE.items()):
    path = folder / str(number) / "in" / "model.onnx"
    path.parent.mkdir(parents=True)
    write(path)
    start = time.process_time()
    try:
        import_onnx(str(path), ImportOptions())
    except ArchirError:
        pass
    slowest = max(slowest, (name, time.process_time() - start), key=lambda pair: pair[1])
status = Path("/proc/self/status").read_text()  # getrusage counts the parent's peak as well
peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
print(slowest[1], int(peak.split()[1]) * 1024, slowest[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_hostile_files_take_little_time_and_memory(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", _MEASURED, str(tmp_path), here]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, most, name = done.stdout.strip().split(" ", 2)
    assert float(seconds) < _SECONDS, name
    assert float(most) < _BYTES


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    """A good file with bytes changed is read, or refused with an error of archir's."""
    good = bytearray(relu().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(good))
    try:
        raise_file(path)
    except ArchirError as reason:
        assert reason.status in (BAD_INPUT, UNSUPPORTED)  # noqa: PT017 - or no error at all


@pytest.mark.parametrize("what", ["graph", "producer", "domain", "tensor"])
def test_texts_that_are_none(what: str, tmp_path: Path) -> None:
    model = relu()
    mark = f"mark_of_{what}"
    if what == "tensor":
        model.graph.initializer.add(name=mark, data_type=1, dims=[1], raw_data=bytes(4))
    else:
        field = {"graph": "name", "producer": "producer_name", "domain": "domain"}[what]
        setattr(model.graph if what == "graph" else model, field, mark)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"mark_of", b"m\xffrk_of"))
    found = _refused(path)
    assert found.status == BAD_INPUT
    assert "UTF-8" in str(found)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = _refused(tmp_path / "none.onnx")
    assert found.diagnostics[0].code == "A601"
    assert _refused(tmp_path).diagnostics[0].code == "A601"
