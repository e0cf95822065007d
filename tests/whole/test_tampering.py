"""What `archir verify` must find: anything that was changed after a network was written.

An attacker who is *careful* writes every digest of the certificate anew, so that the chain is
in order and nothing but a replay can tell.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.weights.store import load_weights, save_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]
Step = dict[str, Any]
pytestmark = pytest.mark.xdist_group("tampering")  # its networks are trained once


@pytest.fixture(scope="module")
def made(archir: Archir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `grown` (init, two rewrites) and `trained` (two more trainings between)."""
    folder = tmp_path_factory.mktemp("made")

    def run(*words: object) -> None:
        answer = archir(*words)
        assert answer.status == 0, answer.err

    def at(name: str) -> Path:
        return folder / f"{name}.arch"

    train = ("--data", "digits", "--epochs", "1", "--lr", "0.02")
    widen = ("--rule", "widen@stem.conv", "--set", "width=20", "--seed", "3")
    deepen = ("--rule", "deepen.batch_norm@stem.relu", "--calibrate", "digits")
    shutil.copy(EXAMPLES / "digits.arch", at("start"))
    run("weights", "init", at("start"), "--random-statistics", "--seed", "2")
    run("rewrite", at("start"), *widen, "-o", at("wider"))
    run("rewrite", at("wider"), *deepen, "-o", at("grown"))
    run("train", at("wider"), *train, "-o", at("once"))
    run("rewrite", at("once"), *deepen, "-o", at("deeper"))
    run("train", at("deeper"), *train, "-o", at("trained"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of them to spoil."""
    return Path(shutil.copytree(made, tmp_path / "nets"))


def findings(archir: Archir, file: Path) -> tuple[int, dict[str, bool]]:
    """Exit status, and what was found; of the same name, whether all of them hold."""
    answer = archir("verify", file, "--json")
    assert answer.err == ""
    document = answer.document
    assert document["status"] == answer.status
    if "findings" not in document:
        return answer.status, {d["code"]: False for d in document["diagnostics"]}
    assert document["verified"] == (answer.status == 0)
    return answer.status, {f["subject"]: f["holds"] for f in document["findings"]}


def failed(archir: Archir, file: Path) -> set[str]:
    """What does not hold, of a network that must not be verified."""
    status, found = findings(archir, file)
    assert status == 1, found
    return {subject.partition(":")[0] for subject, holds in found.items() if not holds}


def test_untouched_networks_are_verified(archir: Archir, folder: Path) -> None:
    for file in sorted(folder.glob("*.arch")):
        status, found = findings(archir, file)
        assert (status, set(found.values())) == (0, {True}), file.name


def test_a_chain_of_all_kinds_says_how_each_step_is_known(archir: Archir, folder: Path) -> None:
    found = archir("verify", folder / "trained.arch", "--json").document["findings"]
    steps = [(f["subject"].split()[2], f["how"]) for f in found if f["subject"].startswith("step")]
    assert steps == [
        ("init", "replay"),
        ("rewrite", "replay"),
        ("train", "attested"),
        ("rewrite", "replay"),
        ("train", "attested"),
    ]


# ---- weights


def tensors(file: Path) -> tuple[int, dict[str, tuple[int, int]]]:
    """Where the data of a safetensors file begins, and where each tensor lies in it."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__")
    return 8 + size, {name: tuple(facts["data_offsets"]) for name, facts in header.items()}


def flip(file: Path, position: int, bit: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1 << bit
    file.write_bytes(raw)


TENSORS = (
    "stem.conv.weight",
    "stem.bn.running_var",
    "stem.bn.num_batches_tracked",
    "stem.new_bn.running_mean",
    "body.conv2.weight",
    "fc1.weight",
    "fc2.bias",
)


@pytest.mark.parametrize("name", ["grown", "trained"])
@pytest.mark.parametrize("path", TENSORS)
def test_a_flipped_bit_in_a_tensor(archir: Archir, folder: Path, name: str, path: str) -> None:
    file = folder / f"{name}.safetensors"
    start, where = tensors(file)
    first, last = where[path]
    flip(file, start + last - 1, 6)
    assert "weights" in failed(archir, file.with_suffix(".arch"))
    flip(file, start + last - 1, 6)
    flip(file, start + first, 0)
    assert "weights" in failed(archir, file.with_suffix(".arch"))


def test_a_flipped_bit_in_the_first_and_the_last_byte_of_all(archir: Archir, folder: Path) -> None:
    file = folder / "grown.safetensors"
    start, _ = tensors(file)
    for position in (start, file.stat().st_size - 1):
        flip(file, position, 3)
        assert "weights" in failed(archir, folder / "grown.arch")
        flip(file, position, 3)


def test_a_flipped_bit_anywhere_in_the_file(archir: Archir, folder: Path) -> None:
    file = folder / "grown.safetensors"
    start, _ = tensors(file)
    rng = np.random.default_rng(0)
    text = file.read_bytes()
    mark = text.index(b'{\\"version\\"')
    header = [*rng.integers(0, start, 60).tolist(), *range(mark - 12, mark + 20)]
    for position in [*header, *rng.integers(start, len(text), 20).tolist()]:
        flip(file, position, int(rng.integers(8)))
        status, _ = findings(archir, folder / "grown.arch")
        assert status == 1, position
        file.write_bytes(text)


def test_weights_that_are_cut_short_or_gone(archir: Archir, folder: Path) -> None:
    file = folder / "grown.safetensors"
    raw = file.read_bytes()
    for length in (0, 7, 100, len(raw) - 1):
        file.write_bytes(raw[:length])
        assert failed(archir, folder / "grown.arch") == {"network"}
    file.unlink()
    assert "weights" in failed(archir, folder / "grown.arch")


def test_a_tensor_more(archir: Archir, folder: Path) -> None:
    file = folder / "grown.safetensors"
    save_weights(file, {**load_weights(file), "more": np.zeros(3, np.float32)})
    assert "weights" in failed(archir, folder / "grown.arch")


# ---- text


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


EDITS = {
    "a digit of a size": ("linear(32)", "linear(33)", {"network", "weights", "text", "graph"}),
    "a digit that no shape shows": ("max_pool(2)", "max_pool(2, 2, padding = 0)", {"text"}),
    "a digit in a comment": ("13,978", "13,979", {"text"}),
    "a space": ("input image", "input  image", {"text"}),
    "a label": ("fc1: linear", "fc3: linear", {"parameter names", "text", "weights"}),
    "a label without parameters": ("|> pool: max", "|> pond: max", {"text"}),
    "another operator": ("|> relu |> fc2", "|> dropout |> fc2", {"text", "graph"}),
}


@pytest.mark.parametrize("case", EDITS)
def test_changed_text(archir: Archir, folder: Path, case: str) -> None:
    old, new, subjects = EDITS[case]
    file = folder / "grown.arch"
    edit(file, old, new)
    found = failed(archir, file)
    assert found & subjects
    assert found <= subjects | {"step 1", "step 2", "step 3"}


def test_text_that_is_no_network_any_more(archir: Archir, folder: Path) -> None:
    edit(folder / "grown.arch", "max_pool(2)", "max_pool(9)")
    assert failed(archir, folder / "grown.arch") == {"network"}


# ---- names of equal shapes


def swap_in_text(file: Path) -> None:
    """conv1 and conv2 of the block are of one shape: exchange their labels."""
    edit(file, "conv1: conv(", "conv0: conv(")
    edit(file, "conv2: conv(", "conv1: conv(")
    edit(file, "conv0: conv(", "conv2: conv(")


def swap_in_weights(file: Path, a: str, b: str) -> None:
    weights = load_weights(file)
    assert weights[a].shape == weights[b].shape
    weights[a], weights[b] = weights[b], weights[a]
    save_weights(file, weights)


@pytest.fixture
def square(archir: Archir, tmp_path: Path) -> Path:
    """A network two of whose layers have one shape."""
    file = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "square.arch"))
    assert archir("weights", "init", file).status == 0
    return file


def test_names_swapped_in_the_text(archir: Archir, square: Path) -> None:
    swap_in_text(square)
    assert {"text", "parameter names", "weights"} <= failed(archir, square)


def test_names_swapped_in_the_weights(archir: Archir, square: Path) -> None:
    swap_in_weights(square.with_suffix(".safetensors"), "body.conv1.weight", "body.conv2.weight")
    assert failed(archir, square) == {"weights", "step 1"} or failed(archir, square) == {"weights"}


def test_names_swapped_in_both(archir: Archir, square: Path) -> None:
    swap_in_text(square)
    swap_in_weights(square.with_suffix(".safetensors"), "body.conv1.weight", "body.conv2.weight")
    assert {"text", "parameter names"} <= failed(archir, square)


# ---- the certificate


def steps_of(file: Path) -> tuple[dict[str, Any], list[Step]]:
    document = json.loads(file.read_text())
    return document, document["steps"]


def forge(file: Path, change: Callable[[list[Step]], object], *, careful: bool) -> None:
    """Change the steps of a certificate; if careful, with the links and digests that fit."""
    document, steps = steps_of(file)
    change(steps)
    if careful:
        last, state = "", None
        for step in steps:
            step["before"] = state
            body = {k: v for k, v in step.items() if k != "digest"}
            text = json.dumps(body, sort_keys=True, separators=(",", ":"))
            step["digest"] = last = hashlib.sha256(f"{last}\n{text}".encode()).hexdigest()
            state = step["after"]
    file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def put(number: int, *path: str | int, value: Any) -> Callable[[list[Step]], None]:
    """Put a value somewhere into a step."""

    def change(steps: list[Step]) -> None:
        place: Any = steps[number]
        for key in path[:-1]:
            place = place[key]
        old = place.get(path[-1]) if isinstance(place, dict) else place[path[-1]]
        assert old != value
        place[path[-1]] = value

    return change


def rule(number: int, old: str, new: str) -> Callable[[list[Step]], None]:
    """Change the text of a step's rule, and its hash with it."""

    def change(steps: list[Step]) -> None:
        use = steps[number]["uses"][0]
        assert old in use["rule_text"]
        use["rule_text"] = use["rule_text"].replace(old, new)
        use["rule_hash"] = rule_hash(use["rule_text"])

    return change


def rule_hash(text: str) -> str:
    from archir.diag import Source
    from archir.ops import installed_ops
    from archir.rewrite.rulefile import parse_rules

    (found,) = parse_rules(Source("forged.rule", text), installed_ops(), "forged")
    return found.hash


def measured(steps: list[Step]) -> None:
    """Other statistics than those that were measured."""
    import base64

    held = steps[2]["uses"][0]["measured"][0]
    values = np.frombuffer(base64.b64decode(held["values"]), "<f8") + 0.5
    held["values"] = base64.b64encode(values.tobytes()).decode()


USE = ("uses", 0)
FORGED: dict[str, Callable[[list[Step]], object]] = {
    "the seed of the weights": put(0, "seed", value=7),
    "the kind of weights": put(0, "random_statistics", value=False),
    "the site": put(1, *USE, "site", value="tail.conv"),
    "the seed": put(1, *USE, "seed", value=4),
    "the width": put(1, *USE, "arguments", "width", value=21),
    "the rule's name": put(1, *USE, "rule", value="widened"),
    "the rule's hash": put(1, *USE, "rule_hash", value="0" * 64),
    "the rule's text": put(1, *USE, "rule_text", value="rule widen() { }"),
    "the rule, with its hash": rule(1, "consume take(g) / count(g)", "consume take(g)"),
    "the rule's contract": rule(1, "preserves function in eval, train", "preserves shape"),
    "the verdict": put(1, *USE, "verdict", "kind", value="tested"),
    "that a mode is equal": put(1, *USE, "exact", "train", "equal", value=False),
    "how much was compared": put(1, *USE, "exact", "eval", "numbers", value=10**9),
    "the modes": lambda steps: steps[1]["uses"][0]["exact"].pop("train"),
    "that a mode is not claimed": put(1, *USE, "not_claimed", value={"train": "dropout"}),
    "the statistics": measured,
    "that there are statistics": put(2, *USE, "measured", value=[]),
    "the text before": put(1, "after", "text", value="1" * 64),
    "the graph": put(2, "after", "graph", value="1" * 64),
    "the weights": put(2, "after", "weights", value="1" * 64),
    "weights where there are none": put(1, "after", "weights", value=None),
    "a use less": lambda steps: steps[1]["uses"].pop(),
    "a use twice": lambda steps: steps[1]["uses"].append(steps[1]["uses"][0]),
    "another kind": put(1, "kind", value="init"),
    "an unknown kind": put(1, "kind", value="blessed"),
    "the first step gone": lambda steps: steps.pop(0),
    "a step between gone": lambda steps: steps.pop(1),
    "the last step gone": lambda steps: steps.pop(),
    "two steps in another order": lambda steps: steps.insert(1, steps.pop(2)),
    "a step twice": lambda steps: steps.insert(1, copy.deepcopy(steps[1])),
    "no step left": lambda steps: steps.clear(),
}


@pytest.mark.parametrize("careful", [False, True], ids=["clumsy", "careful"])
@pytest.mark.parametrize("case", FORGED)
def test_a_forged_certificate(archir: Archir, folder: Path, case: str, *, careful: bool) -> None:
    forge(folder / "grown.cert.json", FORGED[case], careful=careful)
    found = failed(archir, folder / "grown.arch")
    if not careful:
        assert ("chain of digests" in found) != (case == "the last step gone")
    elif case not in ("an unknown kind", "no step left"):
        assert "chain of digests" not in found


ATTESTED: dict[str, tuple[str, Callable[[list[Step]], object]]] = {
    "drift": ("grown", put(1, "drift", "value", value=0.5)),
    "the data that statistics come from": ("grown", put(2, *USE, "calibration", "data", value="x")),
    "an accuracy": ("trained", put(2, "validation", "accuracy", value=1.0)),
    "a recipe": ("trained", put(4, "config", "epochs", value=1000)),
}


@pytest.mark.parametrize("case", ATTESTED)
def test_what_is_attested_only(archir: Archir, folder: Path, case: str) -> None:
    """Facts that a replay does not produce: nothing but the digests guards them."""
    name, change = ATTESTED[case]
    forge(folder / f"{name}.cert.json", change, careful=False)
    assert failed(archir, folder / f"{name}.arch") == {"chain of digests"}
    forge(folder / f"{name}.cert.json", lambda steps: None, careful=True)
    assert findings(archir, folder / f"{name}.arch")[0] == 0


def test_a_training_that_is_left_out(archir: Archir, folder: Path) -> None:
    forge(folder / "trained.cert.json", lambda steps: steps.pop(2), careful=True)
    assert "step 3" in failed(archir, folder / "trained.arch")


@pytest.mark.parametrize("key", ["params", "parameters"])
def test_the_head_of_a_certificate(archir: Archir, folder: Path, key: str) -> None:
    file = folder / "grown.cert.json"
    document, _ = steps_of(file)
    document[key] = {"classes": 7} if key == "params" else document[key][::-1]
    file.write_text(json.dumps(document))
    assert failed(archir, folder / "grown.arch")


def test_a_flipped_bit_anywhere_in_a_certificate(archir: Archir, folder: Path) -> None:
    file = folder / "grown.cert.json"
    raw = file.read_bytes()
    rng = np.random.default_rng(1)
    drift = raw.index(b'"drift"')
    for position in [*rng.integers(0, len(raw), 120).tolist(), drift + 30, 0, len(raw) - 2]:
        flip(file, position, int(rng.integers(8)))
        status, _ = findings(archir, folder / "grown.arch")
        assert status == 1, position
        file.write_bytes(raw)


# ---- the lineage


@pytest.mark.parametrize("name", ["grown", "trained"])
def test_every_parent_is_looked_at(archir: Archir, folder: Path, name: str) -> None:
    parents = sorted((folder / f"{name}.lineage").iterdir())
    kinds = [p.suffix for p in parents]
    assert kinds.count(".arch") == {"grown": 2, "trained": 3}[name]
    assert kinds.count(".safetensors") == {"grown": 0, "trained": 1}[name]
    for parent in parents:
        raw = parent.read_bytes()
        flip(parent, len(raw) - 3, 0)
        assert failed(archir, folder / f"{name}.arch"), parent.name
        parent.unlink()
        assert failed(archir, folder / f"{name}.arch"), parent.name
        parent.write_bytes(raw)
    assert findings(archir, folder / f"{name}.arch")[0] == 0


def test_a_network_that_moves_without_its_lineage(archir: Archir, folder: Path) -> None:
    shutil.rmtree(folder / "grown.lineage")
    answer = archir("verify", folder / "grown.arch")
    assert answer.status == 1
    assert "missing" in answer.out
    assert answer.out.rstrip().endswith("NOT verified")


def test_a_hash_is_no_path(archir: Archir, folder: Path) -> None:
    """Hashes name files of the lineage; one that leaves the folder must not be followed."""
    forge(folder / "once.cert.json", put(0, "after", "weights", value="../../x"), careful=True)
    assert failed(archir, folder / "once.arch") == {"A402"}


def test_a_certificate_of_another_network(archir: Archir, folder: Path) -> None:
    shutil.copy(folder / "wider.cert.json", folder / "grown.cert.json")
    assert {"text", "graph", "weights"} <= failed(archir, folder / "grown.arch")


def test_no_certificate(archir: Archir, folder: Path) -> None:
    (folder / "grown.cert.json").unlink()
    assert failed(archir, folder / "grown.arch") == {"A402"}


def test_an_edited_network_goes_on_with_a_new_chain(archir: Archir, folder: Path) -> None:
    """Editing is no crime: the next step says that the chain begins anew there."""
    edit(folder / "grown.arch", "13,978", "13,979")
    answer = archir(
        *("rewrite", folder / "grown.arch", "--rule", "deepen@tail.relu"),
        *("-o", folder / "next.arch", "--json"),
    )
    assert answer.status == 0
    _, steps = steps_of(folder / "next.cert.json")
    assert [step["kind"] for step in steps] == ["given", "rewrite"]
    assert steps[0]["note"] == "edited since its certificate was written"
    assert findings(archir, folder / "next.arch")[0] == 0
