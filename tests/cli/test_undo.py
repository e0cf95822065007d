"""`archir undo` and `archir lineage`: rewrites taken back, ancestors brought back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archir as package
from archir.api import Application, Network, rewrite
from archir.diag import ArchirError
from archir.ops.arithmetic import Array
from archir.proof.certificate import _digest
from archir.proof.history import redone
from archir.rewrite.plan import apply_terms

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("digits", "resnet20", "lenet_300_100", "shufflenet_v2_x1_0")
Archir = Callable[..., Any]

SHAPE = """
rule halve() {
    "A kernel of half its weights, to see what cannot be taken back."
    source "none"
    preserves shape
    params kept
    match   { y = x |> a: linear(bias = true) }
    replace { y = x |> a: linear(bias = true) }
    weights { a.weight = scale(a.weight, 1, 2)  a.bias = a.bias }
}
"""


@cache
def network(name: str) -> Network:
    text = package.load(EXAMPLES / f"{name}.arch", ignore_weights=True)
    return text.init(5, random_statistics=True)


def same(a: Network, b: Network) -> bool:
    assert a.weights is not None
    assert b.weights is not None
    equal = all(np.array_equal(a.weights[p], b.weights[p]) for p in a.weights)
    return a.text == b.text and a.weights.keys() == b.weights.keys() and equal


def verified(net: Network) -> bool:
    return all(finding.holds for finding in net.verify())


def retrained(net: Network, weights: Mapping[str, Array]) -> Network:
    """The network with other weights, as after training."""
    return net.with_weights({p: np.array(w) for p, w in weights.items()}, "train", {})


def noisy(net: Network, seed: int, size: float = 0.2) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    assert net.weights is not None
    return {
        p: (w * np.exp(size * rng.standard_normal(w.shape))).astype(w.dtype)
        if w.dtype.kind == "f"
        else w
        for p, w in net.weights.items()
    }


def image(child: Network, parent: Network, weights: Mapping[str, Array]) -> dict[str, Array]:
    """What the last rewrite's map makes of other weights of the parent."""
    held: Mapping[str, Array] = weights
    steps = redone(child.certificate.steps[-1], parent.graph, parent.weights, parent.ops)
    for use in steps:
        held = apply_terms(use.plan.terms, use.plan.after, held, use.measured)
    return dict(held)


def kept_rules() -> list[str]:
    """The rules of the library that keep the function and apply to one of the small networks."""
    library = network("digits").library
    found = []
    for rule in library.values():
        fits = any(network(name).sites(rule.name) for name in SMALL)
        if rule.contract.function and fits and not rule.contract.unread:
            found.append(rule.name)
    return found


def applied(rule: str) -> tuple[Network, Network]:
    """The first small network that a rule applies to, and what it makes of it."""
    net = next(n for n in map(network, SMALL) if n.sites(rule))
    sites = net.sites(rule)
    at = sites[len(sites) // 2].at
    arguments = net.planner.example_arguments(net.library.find(rule), at)
    return net, rewrite(net, [Application(rule, at, arguments)], approximate=True).network


# ---- where nothing happened since


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SMALL[:2]), st.data())
def test_undo_is_the_way_back(name: str, data: st.DataObject) -> None:
    """Whatever rule, whatever site: text and weights bit for bit."""
    net = network(name)
    names = ("deepen", "widen", "prune", "pad", "permute", "deepen.batch_norm")
    rule = data.draw(st.sampled_from(names))
    site = data.draw(st.sampled_from(net.sites(rule))).at
    arguments = net.planner.example_arguments(net.library.find(rule), site)
    child = rewrite(net, [Application(rule, site, arguments)]).network
    back = child.undo()
    assert same(back.network, net)
    assert [part.how for part in back.undone.parts] == ["lineage"]
    assert back.network.certificate.steps[-1].after == net.certificate.steps[-1].after
    assert verified(back.network)


def test_one_after_the_other() -> None:
    net = network("digits")
    one = net.rewrite("widen", "stem.conv", width=24)
    two = one.rewrite("deepen", "tail.relu")
    three = two.rewrite("pad", "fc1", width=40)
    back = three.undo()
    assert same(back.network, two)
    assert same(back.network.undo().network, one)
    assert same(back.network.undo(steps=2).network, net)
    assert same(three.undo(steps=3).network, net)
    again = back.network.rewrite("deepen", "stem.relu").undo()  # a rewrite after an undo
    assert same(again.network, two)
    assert verified(again.network.undo().network)
    with pytest.raises(ArchirError, match="only 3 rewrites"):
        three.undo(steps=4)


def test_several_rules_in_one_step() -> None:
    net = network("digits")
    uses = [Application("deepen", "tail.relu"), Application("widen", "tail.new", {"width": 40})]
    child = rewrite(net, uses).network
    assert same(child.undo().network, net)
    found = retrained(child, image(child, net, noisy(net, 1))).undo()
    assert found.undone.exact
    assert found.undone.parts[0].how == "inverse"


def test_without_weights() -> None:
    net = package.load(EXAMPLES / "digits.arch", ignore_weights=True)
    child = net.rewrite("deepen", "tail.relu")
    back = child.undo()
    assert back.network.text == net.text
    assert back.network.weights is None
    assert back.drift is None
    assert verified(back.network)


# ---- by the inverse


@pytest.mark.parametrize("rule", kept_rules())
def test_the_image_of_another_parent_is_taken_back_exactly(rule: str) -> None:
    """Weights that the map could have made: the function is the same, and the parent is found."""
    net, child = applied(rule)
    weights = noisy(net, 7)
    moved = retrained(child, image(child, net, weights))
    found = moved.undo()
    (part,) = found.undone.parts
    assert part.how == "inverse"
    assert part.exact, part.parameters
    assert part.residual < 1e-6
    assert found.drift is not None
    assert found.drift.fine
    assert verified(found.network)


def test_what_the_map_determines_comes_back() -> None:
    """Copies and their shares give the very weights; what a rule drops stays as it was."""
    net = network("digits")
    weights = noisy(net, 3)
    for rule, site, arguments in (
        ("widen", "stem.conv", {"width": 32}),
        ("pad", "tail.conv", {"width": 40}),
        ("permute", "fc1", {}),
        ("deepen", "stem.relu", {"kernel": 5}),
    ):
        child = net.rewrite(rule, site, **arguments)
        found = retrained(child, image(child, net, weights)).undo()
        assert found.network.weights is not None
        for path, wanted in weights.items():
            assert np.array_equal(found.network.weights[path], wanted), (rule, path)


def test_it_is_the_least_squares_parent() -> None:
    """Of a noisy child: copies are averaged, shared-out columns added up."""
    net = network("digits")
    child = net.rewrite("widen", "fc1", width=64)  # each unit twice
    changed = noisy(child, 11, 0.05)
    found = retrained(child, changed).undo(approximate=True)
    assert found.network.weights is not None
    (use,) = redone(child.certificate.steps[-1], net.graph, net.weights, net.ops)
    entries = child_map(net, child)
    rows = np.stack([changed["fc1.weight"][entries == i].mean(axis=0) for i in range(32)])
    columns = np.stack([changed["fc2.weight"][:, entries == i].sum(axis=1) for i in range(32)], 1)
    assert use.plan.terms.keys() == {"fc1.weight", "fc1.bias", "fc2.weight"}
    assert np.abs(found.network.weights["fc1.weight"] - rows).max() < 1e-7
    assert np.abs(found.network.weights["fc2.weight"] - columns).max() < 1e-7
    assert not found.undone.exact


def child_map(net: Network, child: Network) -> Array:
    """Which unit of the parent each unit of the child copies."""
    assert net.weights is not None
    assert child.weights is not None
    old, new = net.weights["fc1.weight"], child.weights["fc1.weight"]
    return np.array([int(np.flatnonzero((old == row).all(axis=1))[0]) for row in new])


def test_how_far_it_is_from_exact() -> None:
    """The residual is |C - T(P)| / |C|, by parameter and over all that the rewrite made."""
    net = network("digits")
    child = net.rewrite("deepen", "tail.relu")
    assert child.weights is not None
    changed = dict(child.weights)
    changed["tail.new.weight"] = changed["tail.new.weight"] * np.float32(1.25)
    changed["tail.new.bias"] = changed["tail.new.bias"] + np.float32(0.5)
    found = retrained(child, changed).undo(approximate=True)
    (part,) = found.undone.parts
    off = math.hypot(0.25 * math.sqrt(32), 0.5 * math.sqrt(32))
    whole = math.hypot(1.25 * math.sqrt(32), 0.5 * math.sqrt(32))
    assert part.residual == pytest.approx(off / whole, rel=1e-5)
    assert part.parameters == {"tail.new.weight": pytest.approx(0.2), "tail.new.bias": 1.0}
    assert found.drift is not None
    assert found.drift.value > 0.01
    assert verified(found.network)


def test_what_is_not_exact_is_refused() -> None:
    net = network("digits")
    child = net.rewrite("deepen", "tail.relu")
    changed = retrained(child, noisy(child, 2))
    with pytest.raises(ArchirError, match=r"A420.*tail\.new\.weight"):
        changed.undo()
    found = changed.undo(approximate=True).network
    facts = found.certificate.steps[-1].facts
    assert facts["approximate"]
    assert not facts["parts"][0]["exact"]
    assert verified(found)


def test_an_assumption_that_does_not_hold_is_not_exact() -> None:
    """What was pruned would be read again: the network computed something else since."""
    net = network("digits")
    child = net.rewrite("prune", "fc1", width=20)
    moved = retrained(child, noisy(child, 2))
    with pytest.raises(ArchirError, match=r"A420.*assumes"):
        moved.undo()


def test_training_that_keeps_the_symmetry_can_be_undone() -> None:
    """Copies that read the same and are read the same stay copies, however long they train."""
    torch = pytest.importorskip("torch")
    net = network("digits")
    child = net.rewrite("widen", "fc1", width=64)
    module = child.to_torch().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        out = module(torch.randn((4, 1, 8, 8), generator=generator))
        out.square().mean().backward()
        optimizer.step()
    weights = {p: t.detach().numpy().copy() for p, t in module.state_dict().items()}
    found = retrained(child, weights).undo(approximate=True)
    assert found.undone.parts[0].residual < 1e-5
    assert found.drift is not None
    assert found.drift.value < 1e-4


# ---- what cannot be inverted


def test_a_rule_that_keeps_the_shape(tmp_path: Path) -> None:
    (tmp_path / "halve.rule").write_text(SHAPE)
    net = package.load(
        EXAMPLES / "digits.arch", ignore_weights=True, rules=[tmp_path / "halve.rule"]
    ).init(1)
    name = next(n for n in net.library if n.endswith("halve"))
    child = rewrite(net, [Application(name, "fc1")], unproved=True).network
    assert same(child.undo().network, net)  # nothing happened since
    changed = retrained(child, noisy(child, 4))
    for approximate in (False, True):
        with pytest.raises(ArchirError, match=r"A422.*keeps the shape"):
            changed.undo(approximate=approximate)
    back = changed.undo(to_parent=True)
    assert same(back.network, net)
    assert back.drift is not None
    assert [step.kind for _, step in back.undone.since] == ["train"]
    assert verified(back.network)


def test_a_rule_without_a_verdict() -> None:
    """Taken back exactly by its map, but nobody proved or tested what that means."""
    net, child = applied("deepen")
    steps = child.certificate.steps
    (use,) = steps[-1].facts["uses"]
    facts = {**steps[-1].facts, "uses": [{**use, "verdict": {"kind": "unknown"}}]}
    chain = replace(child.certificate, steps=(*steps[:-1], replace(steps[-1], facts=facts)))
    unproved = replace(child, certificate=chain)
    moved = retrained(unproved, image(child, net, noisy(net, 1)))
    with pytest.raises(ArchirError, match=r"A420.*`deepen` has no verdict"):
        moved.undo()
    assert moved.undo(approximate=True).undone.parts[0].parameters == {}


def test_nothing_to_take_back() -> None:
    bare = package.load(EXAMPLES / "digits.arch", ignore_weights=True)
    for net in (bare, network("digits")):
        with pytest.raises(ArchirError, match="A421"):
            net.undo()
    child = network("digits").rewrite("deepen", "tail.relu")
    assert child.weights is not None
    with pytest.raises(ArchirError, match=r"A421.*edited"):
        replace(child, weights={p: np.array(w + 1) for p, w in child.weights.items()}).undo()


# ---- the commands


@pytest.fixture
def grown(archir: Archir, tmp_path: Path) -> Path:
    net = Path(shutil.copy(EXAMPLES / "digits.arch", tmp_path / "net.arch"))
    assert archir("weights", "init", net, "--random-statistics").status == 0
    one, two = tmp_path / "one.arch", tmp_path / "two.arch"
    words = ("--rule", "widen@stem.conv", "--set", "width=24")
    assert archir("rewrite", net, *words, "-o", one).status == 0
    assert archir("rewrite", one, "--rule", "deepen@tail.relu", "-o", two).status == 0
    return two


@pytest.fixture
def trained(archir: Archir, grown: Path) -> Path:
    out = grown.with_name("trained.arch")
    assert archir("train", grown, "--epochs", "1", "-o", out).status == 0
    return out


def files(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".safetensors").read_bytes()


def test_the_files_come_back(archir: Archir, grown: Path) -> None:
    out = grown.with_name("back.arch")
    answer = archir("undo", grown, "-o", out)
    assert answer.status == 0
    assert "nothing happened since: its parent, bit for bit" in answer.out
    assert files(out) == files(grown.with_name("one.arch"))
    assert archir("verify", out).status == 0
    far = grown.with_name("far.arch")
    found = archir("undo", out, "-o", far, "--json").document
    assert files(far) == files(grown.with_name("net.arch"))
    assert found["exact"]
    assert [(p["step"], p["how"]) for p in found["undone"]] == [(2, "lineage")]
    assert archir("undo", far, "-o", grown.with_name("x.arch"), "--json").status == 1


def test_after_training(archir: Archir, trained: Path) -> None:
    out = trained.with_name("back.arch")
    dry = archir("undo", trained, "--dry-run")
    assert dry.status == 1
    assert "tail.new.weight" in dry.out
    assert "step 4: train, kept" in dry.out
    assert "it would be refused without --approximate" in dry.out
    refused = archir("undo", trained, "-o", out, "--json")
    assert refused.status == 1
    assert refused.document["diagnostics"][0]["code"] == "A420"
    assert not out.exists()
    # The copies that widening made train alike: the second step is exact.
    done = archir("undo", trained, "-o", out, "--approximate", "--steps", "2", "--json")
    assert done.status == 0
    assert [p["exact"] for p in done.document["undone"]] == [
        False,
        True,
    ]  # widened copies train alike
    assert archir("verify", out).status == 0
    lost = trained.with_name("lost.arch")
    assert "step 4: train, lost" in archir("undo", trained, "-o", lost, "--to-parent").out
    assert files(lost) == files(trained.with_name("one.arch"))
    assert archir("verify", lost).status == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("two.arch",), "A609"),
        (("two.arch", "-o", "x.arch", "--approximate", "--to-parent"), "A609"),
        (("two.arch", "-o", "one.arch"), "A603"),
        (("absent.arch", "-o", "x.arch"), "A601"),
        (("net.arch", "-o", "x.arch"), "A421"),
    ],
)
def test_errors(
    archir: Archir, grown: Path, words: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(grown.parent)
    assert archir("undo", *words, "--json").document["diagnostics"][0]["code"] == code


def test_a_missing_lineage_folder(archir: Archir, grown: Path) -> None:
    shutil.rmtree(grown.with_suffix(".lineage"))
    answer = archir("undo", grown, "-o", grown.with_name("x.arch"), "--json")
    assert answer.status == 1
    (found,) = answer.document["diagnostics"]
    assert found["code"] == "A404"
    assert "copy it along" in found["hint"]
    listed = archir("lineage", grown)
    assert listed.status == 0
    assert listed.out.count("missing\n") == 2
    assert "copy the .lineage folder along" in listed.out


def test_the_steps_are_listed(archir: Archir, trained: Path) -> None:
    back = trained.with_name("back.arch")
    assert archir("undo", trained, "-o", back, "--approximate").status == 0
    found = archir("lineage", back, "--json").document
    assert [s["kind"] for s in found["steps"]] == ["init", "rewrite", "rewrite", "train", "undo"]
    assert [s["params"] for s in found["steps"]] == [13978, 18690, 27938, 27938, 18690]
    assert found["steps"][1]["uses"][0]["rule"] == "widen"
    assert found["steps"][1]["verdicts"] == ["proved"]
    assert found["steps"][4]["drift"] > 0
    assert not any(s["lacking"] for s in found["steps"])
    said = archir("lineage", back).out
    assert "widen@stem.conv width=24" in said
    assert "step 3, by its inverse, " in said


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_any_ancestor_comes_back(archir: Archir, trained: Path, number: int) -> None:
    out = trained.with_name("ancestor.arch")
    assert archir("lineage", trained, "--step", number, "-o", out).status == 0
    origin = ("net", "one", "two", "trained")[number - 1]
    assert files(out) == files(trained.with_name(f"{origin}.arch"))
    assert archir("verify", out).status == 0
    steps = archir("lineage", out, "--json").document["steps"]
    assert len(steps) == number


def test_lineage_errors(archir: Archir, grown: Path) -> None:
    for words, code in (
        (("--step", 9, "-o", "x.arch"), "A421"),
        (("--step", 1), "A609"),
        (("-o", "x.arch"), "A609"),
        (("--step", 1, "-o", grown), "A603"),
    ):
        answer = archir("lineage", grown, *words, "--json")
        assert answer.document["diagnostics"][0]["code"] == code
    bare = Path(shutil.copy(EXAMPLES / "digits.arch", grown.with_name("bare.arch")))
    assert archir("lineage", bare, "--json").document["diagnostics"][0]["code"] == "A402"


def test_what_no_step_needs_is_removed(archir: Archir, grown: Path) -> None:
    folder = grown.with_suffix(".lineage")
    stray = folder / f"{'0' * 64}.safetensors"
    stray.write_bytes(b"x" * 5000)
    mine = folder / "notes.txt"
    mine.write_text("not ours")
    before = archir("lineage", grown, "--json").document
    assert before["unreferenced"] == [stray.name]
    assert (
        "1 file (4.9 KiB) that no step needs; --clean removes them" in archir("lineage", grown).out
    )
    assert archir("lineage", grown, "--clean").status == 0
    assert not stray.exists()
    assert mine.exists()
    assert archir("verify", grown).status == 0
    assert archir("lineage", grown, "--json").document["unreferenced"] == []


# ---- tampering


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the last step of a certificate, and make the digests fit again."""
    from archir.proof.certificate import Step, _state

    file = path.with_suffix(".cert.json")
    document = json.loads(file.read_text())
    change(document["steps"][-1])
    last = ""
    for raw in document["steps"]:
        facts = {k: v for k, v in raw.items() if k not in ("kind", "before", "after", "digest")}
        before = None if raw["before"] is None else _state(raw["before"])
        last = raw["digest"] = _digest(last, Step(raw["kind"], before, _state(raw["after"]), facts))
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(approximate=False),
        lambda s: s["parts"][0].update(exact=True),
        lambda s: s["parts"][0].update(residual=0.0),
        lambda s: s["parts"][0].update(parameters={}),
        lambda s: s["parts"][0].update(how="lineage"),
        lambda s: s["parts"][0].update(how="parent"),
        lambda s: s["parts"][0].update(step=2),
        lambda s: s["parts"][0].update(step=77),
        lambda s: s.update(parts=[]),
        lambda s: s.update(parts=None),
        lambda s: s.pop("approximate"),
    ],
)
def test_a_forged_undo_is_found(
    archir: Archir, trained: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    back = trained.with_name("back.arch")
    assert archir("undo", trained, "-o", back, "--approximate").status == 0
    forge(back, lambda s: None)
    assert archir("verify", back).status == 0  # the forger's digests are good
    forge(back, change)
    answer = archir("verify", back, "--json")
    assert answer.status == 1
    assert next(f for f in answer.document["findings"] if not f["holds"])["how"] == "replay"


def test_a_changed_parent_is_found(archir: Archir, trained: Path) -> None:
    back = trained.with_name("back.arch")
    assert archir("undo", trained, "-o", back, "--approximate").status == 0
    for parent in sorted(back.with_suffix(".lineage").iterdir()):
        content = parent.read_bytes()
        parent.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        answer = archir("verify", back)
        assert answer.status == 1
        words = ("undo", back, "--to-parent", "-o", back.with_name("y.arch"), "--json")
        if parent.suffix == ".arch" and archir(*words).status != 0:
            assert archir(*words).document["diagnostics"][0]["code"] == "A404"
        back.with_name("y.arch").unlink(missing_ok=True)
        for other in back.parent.glob("y.*"):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
        parent.write_bytes(content)
    assert archir("verify", back).status == 0
