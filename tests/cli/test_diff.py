"""`archir diff`: structure and lineage, not names."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.diag import Source
from archir.ir.graph import Graph, GraphBuilder, Output, Value
from archir.lang import load, print_graph
from archir.ops import installed_ops
from archir.ops.infer import infer
from archir.rewrite import correspond as module
from archir.rewrite.correspond import by_names, correspond
from archir.rewrite.delta import delta
from archir.rewrite.library import installed
from archir.rewrite.sites import Planner
from archir.weights.store import load_weights, save_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
OPS = installed_ops()
LIBRARY = installed(OPS)
SMALL = ("digits", "resnet20", "googlenet", "densenet_bc_40_12", "shufflenet_v2_x1_0", "vit_tiny")
Archir = Callable[..., Any]


def example(name: str) -> Graph:
    text = (EXAMPLES / f"{name}.arch").read_text()
    return load(Source(name, text), OPS, {}).graph


GRAPHS = {name: example(name) for name in SMALL}


def renamed(graph: Graph, seed: int) -> tuple[Graph, dict[str, str]]:
    """The network under other names, its nodes written down in another order."""
    rng = random.Random(seed)
    numbers = list(range(len(graph)))
    rng.shuffle(numbers)
    names = {node.name: f"n{number}" for node, number in zip(graph, numbers, strict=True)}
    paths = {
        path: f"p{i}.w"
        for i, path in enumerate(rng.sample(list(graph.parameters), len(graph.parameters)))
    }
    made = GraphBuilder("copy")
    nodes = list(graph)
    rng.shuffle(nodes)
    for node in nodes:
        inputs = tuple(Value(names[v.node], v.port) for v in node.inputs)
        params = {role: paths[path] for role, path in node.params.items()}
        made.add(replace(node, name=names[node.name], inputs=inputs, params=params))
    made.inputs = [names[name] for name in graph.inputs]
    made.outputs = [Output(o.name, Value(names[o.value.node], o.value.port)) for o in graph.outputs]
    made.parameters = {paths[p]: replace(v, path=paths[p]) for p, v in graph.parameters.items()}
    made.meta = dict(graph.meta)
    return infer(made.build(), OPS), names


@pytest.fixture
def net(archir: Archir, tmp_path: Path) -> Path:
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert archir("weights", "init", file, "--random-statistics").status == 0
    return file


def rewritten(archir: Archir, net: Path, name: str, *words: object) -> Path:
    out = net.with_name(name)
    assert archir("rewrite", net, *words, "-o", out).status == 0
    return out


# ---- which node is which


@pytest.mark.parametrize("name", SMALL)
def test_a_network_and_itself(name: str) -> None:
    graph = GRAPHS[name]
    pairs = correspond(graph, graph, OPS)
    assert pairs == {node.name: node.name for node in graph}
    found = delta(graph, graph, pairs, OPS)
    assert found.same_structure
    assert found.same_names
    assert found.parts == ()


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SMALL), st.integers(0, 2**30))
def test_other_names_are_no_structure(name: str, seed: int) -> None:
    graph = GRAPHS[name]
    copy, names = renamed(graph, seed)
    found = delta(graph, copy, correspond(graph, copy, OPS), OPS)
    assert found.same_structure
    assert len(found.renamed) == len(graph)
    if name != "googlenet":  # alike branches may change places
        assert dict(found.pairs) == names


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SMALL[:4]),
    st.sampled_from(["deepen", "widen", "prune", "deepen.batch_norm"]),
    st.data(),
)
def test_what_a_rewrite_changes_is_what_is_found(name: str, rule: str, data: st.DataObject) -> None:
    """By structure alone: exactly what the rule put in, and the nodes whose shapes it moves."""
    graph = GRAPHS[name]
    planner = Planner(graph, OPS)
    found_rule = LIBRARY.find(rule)
    site = data.draw(st.sampled_from(planner.sites(found_rule)))
    plan = planner.plan(found_rule, site.at, planner.example_arguments(found_rule, site.at))
    pairs = correspond(graph, plan.after, OPS)
    found = delta(graph, plan.after, pairs, OPS)
    new = {n.name for n in plan.after if n.name not in graph}
    inserted = [n for c in found.changes if c.kind == "inserted" for n in c.after]
    assert len(inserted) == len(new)
    if pairs == by_names(graph, plan.after):
        assert set(inserted) == new
    moved = {n for c in found.changes if len(c.before) == len(c.after) == 1 for n in c.after}
    touched = {path.rpartition(".")[0] for path in plan.terms} - new
    assert moved == ({pairs[n] for n in touched} if not new else set())
    assert {c.kind for c in found.changes} <= {"inserted", "widened", "narrowed", "resized"}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**30))
def test_a_renamed_copy_that_was_rewritten(seed: int) -> None:
    graph = GRAPHS["resnet20"]
    rng = random.Random(seed)
    rule = LIBRARY.find("deepen")
    site = rng.choice(Planner(graph, OPS).sites(rule)).at
    copy, _ = renamed(Planner(graph, OPS).plan(rule, site, {"kernel": 5}).after, seed)
    found = delta(graph, copy, correspond(graph, copy, OPS), OPS)
    assert [c.kind for c in found.changes] == ["inserted"]
    assert [copy.node(n).op for n in found.changes[0].after] in (["conv", "relu"], ["relu", "conv"])


def test_rows_too_long_for_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut where they agree and joined by fewest edits, they give what one table gives."""
    graph = GRAPHS["googlenet"]
    rule = LIBRARY.find("deepen")
    after = graph
    for site in ("conv1.relu", "inception4a.branch1.relu", "inception5b.branch4.1.relu"):
        after = Planner(after, OPS).plan(rule, site, {"kernel": 3}).after
    whole = correspond(graph, after, OPS)
    assert whole == by_names(graph, after)
    monkeypatch.setattr(module, "CELLS", 2_000)
    monkeypatch.setattr(module, "MARGIN", 6)
    assert correspond(graph, after, OPS) == whole
    monkeypatch.setattr(module, "MOST_EDITS", 1)  # from both ends and from neighbours alone
    rest = correspond(graph, after, OPS)
    assert len(set(rest.values())) == len(rest) > len(graph) // 2
    assert all(graph.node(x).op == after.node(y).op for x, y in rest.items())


@given(st.lists(st.integers(0, 3), max_size=24), st.lists(st.integers(0, 3), max_size=24))
def test_fewest_edits(a: list[int], b: list[int]) -> None:
    pairs = module._fewest_edits(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x < y and v < w for (x, v), (y, w) in itertools.pairwise(pairs))
    assert len(pairs) == common(a, b)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of a longest common subsequence, by the table."""
    row = [0] * (len(b) + 1)
    for x in a:
        old = row[:]
        for j, y in enumerate(b):
            row[j + 1] = old[j] + 1 if x == y else max(old[j + 1], row[j])
    return row[-1]


def test_a_chain_of_many_nodes() -> None:
    units = 4_000
    text = f"""version 1
    block unit(width) {{
        output input |> conv: conv(width, 3, bias = false) |> bn: batch_norm |> relu
    }}
    arch chain {{
        input image: f32[N, 4, 8, 8]
        body = image |> {units} * unit(4)
        output body
    }}"""
    graph = load(Source("chain", text), OPS, {}).graph
    rule = LIBRARY.find("deepen")
    after = graph
    for place in (7, units // 2, units - 3):
        after = Planner(after, OPS).plan(rule, f"body.{place}.relu", {"kernel": 3}).after
    found = delta(graph, after, correspond(graph, after, OPS), OPS)
    assert [(c.kind, len(c.after)) for c in found.changes] == [("inserted", 2)] * 3
    assert found.pairs == by_names(graph, after)


# ---- edits by hand


def edited(archir: Archir, tmp_path: Path, *replacements: tuple[str, str]) -> Any:
    text = (EXAMPLES / "resnet20.arch").read_text()
    (tmp_path / "a.arch").write_text(text)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "b.arch").write_text(text)
    answer = archir("diff", tmp_path / "a.arch", tmp_path / "b.arch", "--json")
    assert answer.status == int(not answer.document["equal"])
    return answer.document


def test_a_comment_is_no_difference(archir: Archir, tmp_path: Path) -> None:
    found = edited(archir, tmp_path, ("block basic", "# the block\nblock basic"))
    assert found["equal"]
    assert found["changes"] == []


def test_swapped_summands(archir: Archir, tmp_path: Path) -> None:
    assert edited(archir, tmp_path, ("y + shortcut", "shortcut + y"))["same_structure"]


def test_swapped_operands_that_matter(archir: Archir, tmp_path: Path) -> None:
    text = (EXAMPLES / "resnet20.arch").read_text().replace("y + shortcut", "y - shortcut")
    for name, swapped in (("a", text), ("b", text.replace("y - shortcut", "shortcut - y"))):
        (tmp_path / f"{name}.arch").write_text(swapped)
    found = archir("diff", tmp_path / "a.arch", tmp_path / "b.arch", "--json").document
    assert found["counts"] == {"rewired": 9}
    assert found["changes"][0]["operands"] == [
        ["stage1.0.bn2", "stem.relu"],
        ["stem.relu", "stage1.0.bn2"],
    ]


def test_an_attribute(archir: Archir, tmp_path: Path) -> None:
    found = edited(archir, tmp_path, ("conv1: conv(width, 3", "conv1: conv(width, 5"))
    assert found["counts"] == {"changed": 9}
    first = found["changes"][0]
    assert first["attributes"] == {"kernel": [[3, 3], [5, 5]], "padding": [[1, 1], [2, 2]]}
    assert first["parameters"] == {"weight": ["f32[16, 16, 3, 3]", "f32[16, 16, 5, 5]"]}


def test_another_operator_in_its_place(archir: Archir, tmp_path: Path) -> None:
    found = edited(archir, tmp_path, ("output relu(", "output gelu("))
    assert found["counts"]["replaced"] == 9
    assert {(c["before"][0]["op"], c["after"][0]["op"]) for c in found["changes"]} == {
        ("relu", "gelu")
    }


def test_a_repeat_less(archir: Archir, tmp_path: Path) -> None:
    found = edited(archir, tmp_path, ("3 * basic(16)", "2 * basic(16)"))
    (change,) = found["changes"]
    assert change["kind"] == "removed"
    assert {n["path"].rpartition(".")[0] for n in change["before"]} == {"stage1.2"}
    assert found["same_names"]
    assert found["blocks"].keys() == {"stage1"}


def test_another_input(archir: Archir, tmp_path: Path) -> None:
    found = edited(archir, tmp_path, ("f32[N, 3, 32, 32]", "f32[N, 1, 32, 32]"))
    assert found["changes"][0]["attributes"] == {"type": ["f32[N, 3, 32, 32]", "f32[N, 1, 32, 32]"]}


def test_shared_weights(archir: Archir, tmp_path: Path) -> None:
    text = """version 1
    arch t { input x: f32[N, 4]
             a = x |> one: linear(4) |> two: linear(4%s)
             output a }"""
    (tmp_path / "a.arch").write_text(text % "")
    (tmp_path / "b.arch").write_text(text % ", weight = a.one.weight")
    answer = archir("diff", tmp_path / "a.arch", tmp_path / "b.arch")
    assert "a.one.weight is shared: it was a.one.weight, a.two.weight" in answer.out
    back = archir("diff", tmp_path / "b.arch", tmp_path / "a.arch")
    assert "a.one.weight is no longer shared: a.one.weight, a.two.weight" in back.out
    assert (answer.status, back.status) == (1, 1)


def test_outputs_and_their_names(archir: Archir, tmp_path: Path) -> None:
    text = "version 1\narch t { input x: f32[N, 4]  a = x |> relu  b = a |> silu  %s }"
    for name, end in (("a", "output b"), ("b", "output y = b"), ("c", "output a  output b")):
        (tmp_path / f"{name}.arch").write_text(text % end)
    said = [archir("diff", tmp_path / "a.arch", tmp_path / f"{n}.arch").out for n in "bc"]
    assert "output b is called y" in said[0]
    assert "outputs b -> a, b" in said[1]


# ---- lineage


def test_the_steps_between(archir: Archir, net: Path) -> None:
    wider = rewritten(archir, net, "w.arch", "--rule", "widen@stem.conv", "--set", "width=24")
    deeper = rewritten(archir, wider, "d.arch", "--rule", "deepen@stem.relu")
    found = archir("diff", net, deeper, "--json").document
    assert found["relation"] == "down"
    assert [use["rule"] for step in found["steps"] for use in step["uses"]] == ["widen", "deepen"]
    assert found["counts"] == {"widened": 2, "resized": 4, "inserted": 2}
    assert found["weights"] == {"compared": 16, "equal": True, "differ": {}}
    back = archir("diff", deeper, net, "--json").document
    assert back["relation"] == "up"
    assert back["counts"] == {"narrowed": 2, "resized": 4, "removed": 2}
    alone = archir("diff", net, deeper, "--structure", "--json").document
    assert alone["relation"] == "none"
    assert alone["counts"] == found["counts"]


def test_two_children(archir: Archir, net: Path) -> None:
    one = rewritten(archir, net, "one.arch", "--rule", "deepen@stem.relu")
    two = rewritten(archir, net, "two.arch", "--rule", "deepen@tail.relu")
    found = archir("diff", one, two, "--json").document
    assert found["relation"] == "siblings"
    assert [s["uses"][0]["site"] for s in (*found["other_steps"], *found["steps"])] == [
        "stem.relu",
        "tail.relu",
    ]
    assert found["counts"] == {"removed": 2, "inserted": 2}
    assert "both came from one network" in archir("diff", one, two).out


def test_the_parent_under_other_names(archir: Archir, net: Path) -> None:
    child = rewritten(archir, net, "child.arch", "--rule", "deepen.batch_norm@stem.relu")
    other = net.with_name("other.arch")
    other.write_text(net.read_text().replace("body", "corpus").replace("tail", "cauda"))
    found = archir("diff", other, child, "--json").document
    assert found["relation"] == "down"
    assert found["counts"]["inserted"] == 3
    assert set(found["renamed"].items()) >= {
        ("corpus.conv1", "body.conv1"),
        ("cauda.bn", "tail.bn"),
    }
    shutil.rmtree(child.with_suffix(".lineage"))  # without the ancestor, by structure
    assert archir("diff", other, child, "--json").document["relation"] == "none"


def test_a_file_edited_since_is_compared_by_structure(archir: Archir, net: Path) -> None:
    child = rewritten(archir, net, "child.arch", "--rule", "deepen@stem.relu")
    child.write_text(child.read_text().replace("fc1: linear(32)", "fc1: linear(48)"))
    found = archir("diff", net, child, "--no-weights", "--json").document
    assert found["relation"] == "none"
    assert found["counts"] == {"inserted": 2, "widened": 1, "resized": 1}


# ---- weights


def test_weights(archir: Archir, net: Path) -> None:
    other = Path(shutil.copy(net, net.with_name("other.arch")))
    weights = dict(load_weights(net.with_suffix(".safetensors")))
    weights["fc2.bias"] = weights["fc2.bias"] + np.float32(1)
    save_weights(other.with_suffix(".safetensors"), weights)
    found = archir("diff", net, other, "--json")
    assert found.status == 1
    assert found.document["same_structure"]
    assert list(found.document["weights"]["differ"]) == ["fc2.bias"]
    assert "1 of 28 tensors in common differ" in archir("diff", net, other).out
    assert archir("diff", net, other, "--no-weights").status == 0
    other.with_suffix(".safetensors").unlink()
    assert "other.arch has no weights" in archir("diff", net, other).out


def test_weights_of_another_network_are_an_error(archir: Archir, net: Path) -> None:
    other = Path(shutil.copy(EXAMPLES / "lenet_300_100.arch", net.with_name("other.arch")))
    shutil.copy(net.with_suffix(".safetensors"), other.with_suffix(".safetensors"))
    answer = archir("diff", net, other, "--json")
    assert answer.status == 2
    assert answer.document["diagnostics"][0]["code"] == "A612"


# ---- the command


def test_what_it_says(archir: Archir, net: Path) -> None:
    wider = rewritten(archir, net, "w.arch", "--rule", "widen@stem.conv", "--set", "width=24")
    said = archir("diff", net, wider).out
    assert "  ~ conv  conv: out 16 -> 24\n          weight [16, 1, 3, 3] -> [24, 1, 3, 3]\n" in said
    assert "13,978 -> 18,690" in said
    assert "\x1b" not in said
    assert archir("diff", net, net).out.splitlines()[1] == "the networks are the same"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("net.arch",), "A609"),
        (("net.arch", "net.arch", "net.arch"), "A609"),
        (("net.arch", "absent.arch"), "A601"),
        (("--textconv", "net.arch", "net.arch"), "A609"),
        (("--textconv", "absent.arch"), "A601"),
    ],
)
def test_errors(
    archir: Archir, net: Path, words: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(net.parent)
    answer = archir("diff", *words, "--json")
    assert (answer.status, answer.document["diagnostics"][0]["code"]) == (2, code)


def test_no_framework_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from archir.cli.main import run\n"
        f"files = [{str(EXAMPLES / 'resnet20.arch')!r}, {str(EXAMPLES / 'resnet50.arch')!r}]\n"
        "status = run(['diff', *files])\n"
        "assert status == 1\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'egglog', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


# ---- git


def git(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{
            f"GIT_{who}_{what}": "someone@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_shows_structure(tmp_path: Path) -> None:
    """The three lines of docs/diff.md, in a real repository."""
    page = (EXAMPLES.parent / "docs" / "diff.md").read_text()
    assert "*.arch diff=archir" in page
    assert 'git config diff.archir.textconv "archir diff --textconv"' in page
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitattributes").write_text("*.arch diff=archir\n")
    command = f"{sys.executable} -m archir diff --textconv"
    git(tmp_path, "config", "diff.archir.textconv", command)
    file = tmp_path / "net.arch"
    text = (EXAMPLES / "digits.arch").read_text()
    file.write_text(text)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    file.write_text("# a comment alone\n" + text)
    assert not [
        line
        for line in git(tmp_path, "diff").splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    file.write_text(
        text.replace(
            "conv(16, 3, bias = false) |> bn: batch_norm",
            "conv(16, 5, bias = false) |> bn: batch_norm",
        )
    )
    lines = [line for line in git(tmp_path, "diff", "-U0").splitlines() if line[:1] in "+-"][2:]
    assert lines == [
        "-stem.conv: conv(16, 3, bias = false) -> f32[N, 16, 8, 8]",
        "+stem.conv: conv(16, 5, bias = false) -> f32[N, 16, 8, 8]",
    ]
    file.write_text("arch { broken")  # git must be able to show it all the same
    assert "+# cannot be read: A" in git(tmp_path, "diff")


@pytest.mark.parametrize("name", SMALL)
def test_the_canonical_text(archir: Archir, name: str, tmp_path: Path) -> None:
    """Layout, comments and blocks of the text do not show in it; every node has its line."""
    graph = GRAPHS[name]
    plain = tmp_path / "plain.arch"
    plain.write_text(print_graph(graph, OPS))
    said = archir("diff", "--textconv", EXAMPLES / f"{name}.arch").out
    assert archir("diff", "--textconv", plain).out == said
    assert len(said.splitlines()) >= len(graph) + len(graph.outputs) + 1
