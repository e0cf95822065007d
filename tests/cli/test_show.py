"""`archir show`: the table that people read, and the files that pictures go to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from archir.files import read_source
from archir.lang import load
from archir.ops import STANDARD
from archir.ops.cost import cost

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]
NAMES = ("digits", "resnet20", "resnet50", "vgg16_bn", "googlenet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks to show, as the current one."""
    for name in NAMES:
        shutil.copy(EXAMPLES / f"{name}.arch", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def table(text: str) -> list[str]:
    """The lines between the rule below the headers and the totals."""
    lines = text.splitlines()
    assert lines[0].split() == ["path", "op", "shape", "params", "MACs"]
    assert set(lines[1]) == {"─"}
    return lines[2:-1]


def numbers(text: str, column: str) -> list[int]:
    """What a column adds up from; `1.85 G` and the like do not occur in these networks."""
    end = text.splitlines()[0].index(column) + len(column)
    cells = [line[:end] for line in table(text) if len(line) >= end and line[end - 1] != " "]
    return [int(cell.split()[-1].replace(",", "")) for cell in cells]


@pytest.mark.parametrize("flags", [(), ("--all",), ("--depth", "0"), ("--depth", "1")])
@pytest.mark.parametrize("name", ["digits", "resnet20"])
@pytest.mark.usefixtures("here")
def test_the_columns_add_up(archir: Archir, name: str, flags: tuple[str, ...]) -> None:
    total = cost(load(read_source(f"{name}.arch"), STANDARD).graph, STANDARD)
    answer = archir("show", f"{name}.arch", *flags)
    assert answer.status == 0
    assert sum(numbers(answer.out, "params")) == total.params
    assert sum(numbers(answer.out, "MACs")) == total.macs
    assert answer.out.splitlines()[-1] == (
        f"{name}: {total.params:,} parameters, {total.macs:,} MACs (batch 1)"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("columns", "width"), [(80, 80), (100, 100), (40, 80), (400, 120)])
@pytest.mark.usefixtures("here")
def test_it_fits_a_terminal(
    archir: Archir, monkeypatch: pytest.MonkeyPatch, name: str, columns: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for flags in ((), ("--all",)):
        lines = archir("show", f"{name}.arch", *flags).out.splitlines()
        assert max(map(len, lines)) <= width


@pytest.mark.usefixtures("here")
def test_repeats_are_shown_once(archir: Archir) -> None:
    folded = table(archir("show", "resnet20.arch").out)
    paths = [line.split("  f32")[0].strip() for line in folded]
    assert [line.split("   ")[0] for line in paths if "(as " in line] == [
        "stage1.1 .. stage1.2", "stage2.2", "stage3.2",
    ]  # fmt: skip
    assert [line.split("   ")[-1].strip() for line in paths if "(as " in line] == [
        "(as stage1.0)", "(as stage2.1)", "(as stage3.1)",
    ]  # fmt: skip
    (header,) = [line for line in folded if line.strip().startswith("stage1.0 ")]
    assert header.split() == ["stage1.0", "basic"]
    whole = table(archir("show", "resnet20.arch", "--all").out)
    assert not [line for line in whole if "(as " in line]
    assert len(whole) == 73 + 1 + 3 + 9  # layers; the stem, the stages and the blocks


@pytest.mark.usefixtures("here")
def test_depth_of_the_table(archir: Archir) -> None:
    lines = table(archir("show", "resnet20.arch", "--depth", "0").out)
    assert [line.split()[:3] for line in lines][1:5] == [
        ["stem", "3", "layers"],
        ["stage1", "21", "layers"],
        ["stage2", "23", "layers"],
        ["stage3", "23", "layers"],
    ]
    lines = table(archir("show", "resnet20.arch", "--depth", "1").out)
    assert [line.split()[:3] for line in lines][5:8] == [
        ["stage1"],
        ["stage1.0", "basic,", "7"],
        ["stage1.1", "..", "stage1.2"],
    ]


@pytest.mark.usefixtures("here")
def test_json_has_every_layer_whatever_is_shown(archir: Archir) -> None:
    documents = [
        archir("show", "resnet20.arch", "--json", *flags).document
        for flags in ((), ("--all",), ("--depth", "0"))
    ]
    assert documents[0] == documents[1] == documents[2]
    layers = documents[0]["layers"]
    assert len(layers) == 73
    assert set(layers[1]) == {
        "path", "op", "attrs", "inputs", "types", "params", "param_count", "macs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at"),
    [("resnet20", "stage2"), ("resnet20", "stage2.1"), ("digits", "body"), ("resnet20", "fc")],
)
@pytest.mark.usefixtures("here")
def test_one_block(archir: Archir, name: str, at: str) -> None:
    graph = load(read_source(f"{name}.arch"), STANDARD).graph
    whole = archir("show", f"{name}.arch", "--json").document["layers"]
    own = [layer for layer in whole if f"{layer['path']}.".startswith(f"{at}.")]
    document = archir("show", f"{name}.arch", "--at", at, "--json").document
    assert (document["name"], document["at"], document["layers"]) == (graph.name, at, own)
    assert 0 < len(own) < len(whole)
    for flags in ((), ("--all",), ("--depth", "0")):
        out = archir("show", f"{name}.arch", "--at", at, *flags).out
        assert sum(numbers(out, "params")) == sum(layer["param_count"] for layer in own)
        assert sum(numbers(out, "MACs")) == sum(layer["macs"] for layer in own)
        assert out.splitlines()[-1].startswith(f"{name}, {at}")
        lines = table(out)
        assert lines[0].startswith("from ")
        assert lines[-1].startswith("to ")
        (read,) = {v for layer in own for v in layer["inputs"]} - {layer["path"] for layer in own}
        assert lines[0].split()[1] == read


@pytest.mark.usefixtures("here")
def test_a_tensor_shared_with_another_block_counts_in_both(archir: Archir, here: Path) -> None:
    (here / "tied.arch").write_text(
        "arch tied() {\n input x: f32[N, 4]\n a.fc = linear(x, 4)\n"
        " b.fc = linear(a.fc, 4, weight = a.fc.weight, bias = a.fc.bias)\n output y = b.fc\n}\n"
    )
    answers = [archir("show", "tied.arch", *at) for at in ((), ("--at", "a"), ("--at", "b"))]
    assert [a.out.splitlines()[-1] for a in answers] == [
        "tied: 20 parameters, 32 MACs (batch 1)",
        "tied, a: 20 parameters, 16 MACs (batch 1)",
        "tied, b: 20 parameters, 16 MACs (batch 1)",
    ]


@pytest.mark.parametrize(
    ("at", "hint"),
    [
        ("stage2.7", "did you mean stage2.2 or stage2.1 or stage2.0?"),
        ("bn1", "did you mean stage1.0.bn1 or stage1.1.bn1 or stage1.2.bn1?"),
        ("???", "there are stem, stage1, stage2, stage3, image, global_avg_pool, fc"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--format", "dot"), ("-o", "net.svg"), ("--json",)])
def test_no_such_block(
    archir: Archir, here: Path, at: str, hint: str, form: tuple[str, ...]
) -> None:
    answer = archir("show", "resnet20.arch", "--at", at, *form)
    assert answer.status == 2
    assert "A605" in answer.err + answer.out
    assert hint in answer.err + answer.out
    assert not (here / "net.svg").exists()


def test_a_picture_of_one_block(archir: Archir, here: Path) -> None:
    answer = archir("show", "resnet20.arch", "--at", "stage2", "-o", "net.svg")
    assert answer.out == "wrote net.svg: 9 boxes, 10 edges\n"
    assert "from stage1.2.relu2 : 16 x 32 x 32" in (here / "net.svg").read_text()
    words = ("--at", "stage2", "--depth", "0", "--all", "--format", "dot", "--json")
    document = archir("show", "resnet20.arch", *words).document
    assert (document["at"], document["boxes"]) == ("stage2", 5)
    assert document["drawing"].count("basic") == 3


@pytest.mark.parametrize(
    ("output", "flags", "form"),
    [
        ("net.svg", (), "svg"),
        ("net.SVG", (), "svg"),
        ("net.dot", (), "dot"),
        ("net.gv", (), "dot"),
        ("picture", ("--format", "svg"), "svg"),
        ("net.txt", ("--format", "dot"), "dot"),
    ],
)
def test_a_picture_in_a_file(
    archir: Archir, here: Path, output: str, flags: tuple[str, ...], form: str
) -> None:
    answer = archir("show", "resnet20.arch", "-o", output, *flags)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"wrote {output}: 22 boxes, 26 edges\n"
    text = (here / output).read_text(encoding="utf-8")
    printed = archir("show", "resnet20.arch", "--format", form)
    assert printed.out == text
    document = archir("show", "resnet20.arch", "--format", form, "--json").document
    assert document["drawing"] == text
    assert (document["format"], document["boxes"], document["edges"]) == (form, 22, 26)
    if form == "svg":
        assert ElementTree.fromstring(text).tag.endswith("svg")
    else:
        assert text.startswith('digraph "resnet20" {')


def test_files_are_replaced_with_force_alone(archir: Archir, here: Path) -> None:
    target = here / "net.svg"
    target.write_text("mine")
    answer = archir("show", "digits.arch", "-o", "net.svg")
    assert answer.status == 2
    assert "A603" in answer.err
    assert target.read_text() == "mine"
    assert archir("show", "digits.arch", "-o", "net.svg", "--force").status == 0
    assert target.read_text().startswith("<svg")
    document = archir("show", "digits.arch", "-o", "net.svg", "--force", "--json").document
    assert document["output"] == "net.svg"
    assert sorted(p.name for p in here.iterdir()) == sorted(
        [*(f"{n}.arch" for n in NAMES), "net.svg"]
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-o", "net.png"), "A609"),
        (("-o", "net"), "A609"),
        (("-o", "net.txt", "--format", "table"), "A609"),
        (("-o", "digits.arch", "--format", "svg", "--force"), "A602"),
        (("-o", "digits.safetensors", "--format", "dot"), "A602"),
        (("-o", "absent/net.svg"), "A602"),
    ],
)
def test_wrong_outputs(archir: Archir, here: Path, words: tuple[str, ...], code: str) -> None:
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    answer = archir("show", "digits.arch", *words)
    assert answer.status == 2
    assert code in answer.err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    assert json.loads(archir("show", "digits.arch", *words, "--json").out)["status"] == 2


@pytest.mark.usefixtures("here")
def test_unknown_formats_and_odd_depths(archir: Archir) -> None:
    assert archir("show", "digits.arch", "--format", "png").status == 2
    assert archir("show", "digits.arch", "--depth", "-1").status == 2


def test_a_picture_that_is_too_large(archir: Archir, here: Path) -> None:
    lines = ["a0 = x + x", *(f"a{i} = a{i - 1} + a{i - 1}" for i in range(1, 2001))]
    body = "\n".join(lines)
    (here / "long.arch").write_text(
        f"arch long() {{ input x: f32[N, 3]\n{body}\noutput y = a2000 }}"
    )
    answer = archir("show", "long.arch", "-o", "long.svg")
    assert answer.status == 2
    assert "A641" in answer.err
    assert "--depth 1" in answer.err
    assert not (here / "long.svg").exists()
    assert archir("show", "long.arch").status == 0
