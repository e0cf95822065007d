"""Certificates and lineage: chains, edits, hostile files, missing and changed parents."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archir.diag import ArchirError
from archir.ir.graph import GraphBuilder
from archir.ir.hash import graph_hash, numbering
from archir.ops import STANDARD
from archir.ops.arithmetic import Array
from archir.ops.closeness import distance
from archir.proof import certificate as module
from archir.proof.certificate import (
    Certificate,
    State,
    broken_link,
    read_certificate,
    state_of,
    text_hash,
    weights_hash,
)
from archir.proof.drift import LIMIT, Drift, measure
from archir.proof.lineage import Lineage, folder_of, needed
from archir.proof.uses import decode, encode
from archir.weights.init import init_weights
from archir.weights.store import save_weights

from .nets import HEAD, IMAGE, net

GRAPH = net(
    IMAGE + "a = x |> conv(4, 3)\nb = a |> batch_norm |> relu\nend = b |> conv(4, 3)" + HEAD
)
WEIGHTS = init_weights(GRAPH, STANDARD, 1)
TEXTS = ("first", "second\r\nwith another line end", "third")


def state(text: str, weights: bool = True) -> State:
    return state_of(text, GRAPH, WEIGHTS if weights else None)


def chain() -> Certificate:
    made = Certificate(params={"classes": 5, "widths": [1, 2]})
    made = made.then("given", state(TEXTS[0]), GRAPH, {"note": "no certificate"})
    made = made.then("rewrite", state(TEXTS[1]), GRAPH, {"uses": [{"rule": "widen", "seed": 3}]})
    return made.then("train", state(TEXTS[2]), GRAPH, {"epochs": 2})


def document() -> Any:
    return json.loads(chain().to_json())


def read(tmp_path: Path, value: object) -> Certificate:
    path = tmp_path / "net.cert.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_certificate(path)


def test_a_chain_survives_its_file(tmp_path: Path) -> None:
    made = chain()
    assert broken_link(made) is None
    again = read(tmp_path, made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()
    assert again.parameters == numbering(GRAPH).parameters
    assert [s.kind for s in again.steps] == ["given", "rewrite", "train"]
    assert again.steps[1].before == made.steps[0].after
    longer = again.then("train", state("fourth"), GRAPH, {})
    assert broken_link(longer) is None
    assert longer.steps[:3] == made.steps


def test_an_empty_chain() -> None:
    assert broken_link(Certificate()) == "the certificate has no steps"


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to(value.get(path[-1])) if callable(to) else to

    return apply


def other(digest: str) -> str:
    return digest[:-1] + ("0" if digest[-1] != "0" else "1")


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a fact": (change("steps", 1, "uses", to=[{"rule": "widen", "seed": 4}]), "step 2 (rewrite)"),
    "a fact more": (change("steps", 0, "extra", to=1), "step 1 (given)"),
    "a number's type": (change("steps", 2, "epochs", to=2.0), "step 3 (train)"),
    "a kind": (change("steps", 1, "kind", to="train"), "step 2 (train)"),
    "an unknown kind": (change("steps", 1, "kind", to="wish"), "unknown kind 'wish'"),
    "a weights hash": (change("steps", 1, "after", "weights", to=other), "step 2"),
    "a text hash": (change("steps", 0, "after", "text", to=other), "step 1"),
    "a graph hash": (change("steps", 2, "before", "graph", to=other), "step 3"),
    "no weights": (change("steps", 2, "after", "weights", to=None), "step 3"),
    "a digest": (change("steps", 0, "digest", to=other), "step 1"),
    "a step left out": (lambda d: d["steps"].pop(1), "step 2 (train)"),
    "the first left out": (lambda d: d["steps"].pop(0), "step 1 (rewrite)"),
    "steps in another order": (lambda d: d["steps"].reverse(), "step 1 (train)"),
    "a step twice": (lambda d: d["steps"].append(d["steps"][2]), "step 4 (train)"),
    "no steps": (lambda d: d["steps"].clear(), "no steps"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_break_the_chain(name: str, tmp_path: Path) -> None:
    value = document()
    EDITS[name][0](value)
    assert json.dumps(value) != json.dumps(document())
    wrong = broken_link(read(tmp_path, value))
    assert wrong is not None
    assert EDITS[name][1] in wrong


def test_a_forged_chain_has_no_gap() -> None:
    """Digests made anew do not help where the states do not follow."""
    gap = Certificate().then("given", state("a"), GRAPH, {})
    elsewhere = Certificate().then("given", state("b"), GRAPH, {})
    made = elsewhere.then("train", state("c"), GRAPH, {})
    forged = module.replace(made.steps[1], digest="")
    forged = module.replace(forged, digest=module._digest(gap.steps[0].digest, forged))
    wrong = broken_link(module.replace(gap, steps=(gap.steps[0], forged)))
    assert wrong == "step 2 (train) does not start where the one before it ended"


HOSTILE: dict[str, Any] = {
    "nothing": "",
    "no JSON": "{",
    "a list": [],
    "a number": 3,
    "null": None,
    "deep": "[" * 100_000,
    "a long integer": '{"version": ' + "9" * 5000 + "}",
    "another format": change("format", to="pickle"),
    "another version": change("version", to=2),
    "no version": lambda d: d.pop("version"),
    "no steps": lambda d: d.pop("steps"),
    "steps of another kind": change("steps", to=5),
    "a step that is a list": lambda d: d["steps"].append([]),
    "no digest": lambda d: d["steps"][0].pop("digest"),
    "no state": lambda d: d["steps"][0].pop("after"),
    "no text in a state": lambda d: d["steps"][0]["after"].pop("text"),
    "more in a state": change("steps", 0, "after", "note", to="hello"),
    "more in the document": change("note", to="hello"),
    "a path for a hash": change("steps", 0, "after", "text", to="../../etc/passwd"),
    "a short hash": change("steps", 0, "after", "weights", to="00"),
    "a hash with a line end": change("steps", 0, "digest", to=lambda d: d[:-1] + "\n"),
    "a number for a hash": change("steps", 0, "after", "graph", to=0),
    "text for parameters": change("parameters", to="abc"),
    "numbers for parameters": change("parameters", to=[1, 2]),
    "a list for params": change("params", to=[1]),
    "a mapping in params": change("params", to={"classes": {"a": 1}}),
    "deep facts": change("steps", 0, "note", to=json.loads("[" * 60 + "]" * 60)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    value = HOSTILE[name]
    if callable(value):
        edit, value = value, document()
        edit(value)
    with pytest.raises(ArchirError) as caught:
        read(tmp_path, value)
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.status) == ("A402", 1)
    assert "net.cert.json" in found.message
    assert len(found.message) < 400


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "bytes.cert.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.cert.json", tmp_path, tmp_path / "bytes.cert.json"):
        with pytest.raises(ArchirError) as caught:
            read_certificate(path)
        assert caught.value.diagnostics[0].code == "A402"


def test_the_weights_hash_follows_the_canonical_order() -> None:
    digest = weights_hash(GRAPH, WEIGHTS)
    assert digest == weights_hash(GRAPH, dict(reversed(WEIGHTS.items())))
    assert digest == weights_hash(GRAPH, {**WEIGHTS, "of something else": np.zeros(3)})
    assert digest == weights_hash(GRAPH, {p: np.asfortranarray(a) for p, a in WEIGHTS.items()})
    swapped = {**WEIGHTS, "a.bias": WEIGHTS["end.bias"], "end.bias": WEIGHTS["a.bias"]}
    assert (swapped["a.bias"] == swapped["end.bias"]).all(), "all zeros at first"
    assert weights_hash(GRAPH, swapped) == digest
    swapped = {**WEIGHTS, "a.bias": WEIGHTS["b.batch_norm.weight"]}
    assert weights_hash(GRAPH, swapped) != digest
    wide = {**WEIGHTS, "a.bias": WEIGHTS["a.bias"].astype(np.float64)}
    assert weights_hash(GRAPH, wide) != digest
    with pytest.raises(KeyError):
        weights_hash(GRAPH, {})


def test_names_do_not_count_for_hashes_of_weights() -> None:
    text = IMAGE + "p = x |> conv(4, 3)\nq = p |> batch_norm |> relu\nend = q |> conv(4, 3)" + HEAD
    renamed = net(text)
    paths = dict(zip(numbering(GRAPH).parameters, numbering(renamed).parameters, strict=True))
    assert graph_hash(renamed) == graph_hash(GRAPH)
    assert weights_hash(renamed, {paths[p]: a for p, a in WEIGHTS.items()}) == weights_hash(
        GRAPH, WEIGHTS
    )


def test_one_flipped_bit_changes_the_hash() -> None:
    digest = weights_hash(GRAPH, WEIGHTS)
    for path in WEIGHTS:
        flipped = WEIGHTS[path].copy()
        flipped.reshape(-1).view(np.uint8)[0] ^= 1
        assert weights_hash(GRAPH, {**WEIGHTS, path: flipped}) != digest


def frozen() -> dict[str, Array]:
    made = {path: array.copy() for path, array in WEIGHTS.items()}
    for array in made.values():
        array.flags.writeable = False
    return made


def test_digests_of_frozen_tensors_are_kept_as_long_as_the_tensors() -> None:
    gc.collect()  # what other tests left
    held = frozen()
    digest = weights_hash(GRAPH, held)
    assert {id(a) for a in held.values()} <= module._digests.keys()
    assert weights_hash(GRAPH, held) == digest == weights_hash(GRAPH, WEIGHTS)
    keys = {id(a) for a in held.values()}
    before = len(module._digests)
    del held
    gc.collect()
    assert len(module._digests) == before - len(keys)


def test_a_tensor_that_can_change_is_hashed_again() -> None:
    held = {path: array.copy() for path, array in WEIGHTS.items()}
    digest = weights_hash(GRAPH, held)
    held["a.bias"][0] = 7
    assert weights_hash(GRAPH, held) != digest


def saved(folder: Path) -> tuple[Certificate, Lineage]:
    lineage = Lineage()
    for text in TEXTS[:2]:
        lineage = lineage.with_parent(text, WEIGHTS, weights_hash(GRAPH, WEIGHTS))
    made = chain()
    lineage.save(made, folder)
    return made, Lineage(folders=(folder,))


def test_lineage_survives_its_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "net.arch")
    assert folder.name == "net.lineage"
    made, lineage = saved(folder)
    texts, tensors = needed(made)
    assert texts == [text_hash(t) for t in TEXTS[:2]]
    assert tensors == [weights_hash(GRAPH, WEIGHTS)]
    assert len(list(folder.iterdir())) == 3
    assert [lineage.text(d) for d in texts] == list(TEXTS[:2])
    found = lineage.tensors(tensors[0], GRAPH)
    assert all((found[p] == a).all() for p, a in WEIGHTS.items())
    second = tmp_path / "second.lineage"
    lineage.save(made, second)
    assert {f.name: f.read_bytes() for f in second.iterdir()} == {
        f.name: f.read_bytes() for f in folder.iterdir()
    }


def test_a_parent_that_is_missing_or_changed(tmp_path: Path) -> None:
    made, lineage = saved(tmp_path / "net.lineage")
    (text, _), (weights,) = needed(made)
    arch = tmp_path / "net.lineage" / f"{text}.arch"
    tensors = tmp_path / "net.lineage" / f"{weights}.safetensors"
    arch.write_text("First")
    flipped = {p: a.copy() for p, a in WEIGHTS.items()}
    flipped["a.bias"][2] += 1
    save_weights(tensors, flipped, {})
    for ask in (lambda: lineage.text(text), lambda: lineage.tensors(weights, GRAPH)):
        with pytest.raises(ArchirError, match="was changed") as caught:
            ask()
        assert caught.value.diagnostics[0].code == "A404"
        assert caught.value.status == 1
    save_weights(tensors, {"a.bias": WEIGHTS["a.bias"]}, {})
    with pytest.raises(ArchirError, match="was changed"):
        lineage.tensors(weights, GRAPH)
    tensors.write_bytes(b"damaged")
    with pytest.raises(ArchirError, match="A404: a parent's weights were changed"):
        lineage.tensors(weights, GRAPH)
    arch.unlink()
    tensors.unlink()
    for ask in (lambda: lineage.text(text), lambda: lineage.tensors(weights, GRAPH)):
        with pytest.raises(ArchirError, match="is missing") as caught:
            ask()
        assert "copy it along" in caught.value.diagnostics[0].hint
    with pytest.raises(ArchirError, match="is missing"):
        lineage.save(made, tmp_path / "other.lineage")


def test_vectors_in_facts() -> None:
    vector = np.array([1e-300, -0.0, np.pi, 2.0**52 + 1])
    assert decode(encode(vector)).tobytes() == vector.tobytes()


def test_distance() -> None:
    a = np.array([1.0, -4.0], np.float32)
    assert distance(a, a) == 0
    assert distance(a, a + np.float32(1)) == 0.25
    assert distance(np.zeros(2), np.zeros(2)) == 0
    assert distance(np.zeros(2), a) == float("inf")
    assert Drift(LIMIT, "numpy", "float32", 1, finite=True).fine
    assert not Drift(LIMIT * 1.01, "numpy", "float32", 1, finite=True).fine


def test_drift_is_that_of_both_networks() -> None:
    same = measure((GRAPH, WEIGHTS), (GRAPH, WEIGHTS), STANDARD, None)
    assert (same.value, same.finite, same.engine) == (0, True, "numpy")
    moved = {**WEIGHTS, "fc.bias": WEIGHTS["fc.bias"] + 1}
    found = measure((GRAPH, WEIGHTS), (GRAPH, moved), STANDARD, None)
    assert found.value > LIMIT
    assert not found.fine
    broken = {**WEIGHTS, "fc.bias": np.full(5, np.nan, np.float32)}
    found = measure((GRAPH, WEIGHTS), (GRAPH, broken), STANDARD, None)
    assert not found.finite
    assert not found.fine


def test_a_state_without_weights() -> None:
    assert state("a", weights=False).weights is None
    assert state("a") != state("a", weights=False)
    empty = GraphBuilder("empty").build()
    assert weights_hash(empty, {}) == weights_hash(empty, WEIGHTS)
