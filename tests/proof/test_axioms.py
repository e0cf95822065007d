"""Axioms: read, tested exactly, and none of them a rule."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from archir.diag import ArchirError, Source
from archir.ops import STANDARD
from archir.ops.classes import AxisClasses
from archir.ops.infer import instance_of
from archir.ops.record import OpSet
from archir.ops.structure import FIXED, Factor, leaves, lift
from archir.proof import spelling
from archir.proof.attempts import saturated
from archir.proof.audit import audit, draw_map
from archir.proof.axioms import Axioms, installed_axioms, parse_axioms
from archir.proof.changes import CLAIMS, claims
from archir.proof.lemmas import NEEDS
from archir.proof.saturation import Budget, prove_goals
from archir.proof.sketches import MAKERS, class_network
from archir.proof.terms import Application, parts
from archir.proof.translate import goals
from archir.proof.vocabulary import CONDITIONS
from archir.rewrite.rule import Reshaping
from archir.weights.fibres import ALONG
from archir.weights.terms import IndexMap

NO_STRIDE = """axiom conv.identity in eval {
    "Without its side condition on the stride."
    for x[n, c, *s], c: int, k: kernel, d: steps
    conv(x, weight = identity(c, k), bias = none, kernel = k, padding = same(k, d), dilation = d,
         groups = 1) == x
    where odd(k)
}"""
IN_TRAINING = """axiom batch_norm.undone in train {
    "True in evaluation alone."
    for x[n, c, ...], m[c], v[c], e: number
    batch_norm(x, eps = e, weight = sqrt(v + e), bias = m, running_mean = m, running_var = v) == x
    where m != none
}"""
ANY_MAP = """axiom fibre.shares in eval {
    "Without its side condition on the map."
    for w[...], g[p -> q], a: axis
    fibre_sum(divide_along(take(w, g, a), count(g), a), g, a) == w
}"""
EVEN = """axiom conv.even in eval {
    "An even kernel has no centre."
    for x[n, c, *s], c: int, k: kernel
    conv(x, weight = identity(c, k), bias = none, kernel = k, stride = 1, padding = 1,
         dilation = 1, groups = 1) == x
}"""


UNEVEN = """axiom averaged in eval {
    "Without its side condition on the map."
    for F: averaged, g[p -> q]
    F(operand = take(g), parameter = take(g)) == F(result = take(g))
}"""
COPIED = """axiom contracted in eval {
    "Terms of a sum that are taken twice count twice."
    for F: contracted, g[p -> q]
    F(operand = take(g)) == F()
    where onto(g)
}"""
UNSCALED = """axiom consumed in eval {
    "The weights of copies are not added up."
    for F: consumed, g[p -> q]
    F(operand = take(g)) == F(parameter = place(g))
}"""
JOINED = """axiom join.even in eval {
    "Two maps that are even one by one are not so together."
    for g[p -> q], h[u -> v]
    even(join(g, h))
    where even(g), even(h)
}"""


def laws_of(text: str):
    return [
        law for axiom in parse_axioms(Source("test.axiom", text)) for law in axiom.laws(STANDARD)
    ]


def test_every_axiom_holds_exactly(axioms) -> None:
    assert audit(axioms.laws(STANDARD), STANDARD) == []


@pytest.mark.parametrize("text", [NO_STRIDE, IN_TRAINING, ANY_MAP, EVEN])
def test_an_unsound_axiom_is_found(text) -> None:
    (finding,) = audit(laws_of(text), STANDARD)
    assert "differ" in finding.text or "no value" in finding.text


@pytest.mark.parametrize("text", [UNEVEN, COPIED, UNSCALED, JOINED])
def test_an_unsound_schema_is_found(text) -> None:
    """At every operator, or nearly: a mean of equal numbers does not show it."""
    laws = laws_of(text)
    found = {finding.law for finding in audit(laws, STANDARD)}
    assert len(found) > 0.9 * len(laws)


def test_a_record_that_belies_its_reference_is_found(axioms, few) -> None:
    """A layer norm that claims that any gather passes."""
    honest = STANDARD["layer_norm"]
    shape = "[n, s, c]"
    wrong = dataclasses.replace(
        honest, signature=f"x{shape} weight?[c] bias?[c] -> {shape}", samples=honest.samples[:1]
    )
    ops = OpSet([*(op for op in few.values() if op.name != wrong.name), wrong])
    found = audit([law for law in axioms.laws(ops) if "[layer_norm." in law.name], ops)
    assert {f.law.split("[")[1].split(" ")[0] for f in found} == {"layer_norm.c"}


def test_signatures_are_read_as_classes_read_them() -> None:
    """Wherever a class that may change meets an operator, the signature has a law for it."""
    for number in range(len(MAKERS)):
        graph = class_network(STANDARD, number)
        classes = AxisClasses(graph, STANDARD)
        for held in classes.classes.values():
            for name in held.nodes if not held.obstacles else ():
                node = graph.node(name)
                said = claims(STANDARD[node.op], instance_of(node, graph, STANDARD).axes)
                met = [
                    axis
                    for axis, structure in classes.names[name].items()
                    if held.number in leaves(classes.resolved(structure))
                ]
                assert met
                assert set(met) <= set(said)
                needs = {NEEDS[said[axis]] for axis in met if said[axis] in NEEDS}
                asked = {n.condition for n in held.needs if n.node == name}
                assert needs == asked & set(NEEDS.values())


STRUCTURES = (
    ((Factor(0, 4),),),
    ((Factor(FIXED, 3), Factor(0, 4), Factor(FIXED, 2)),),
    ((Factor(FIXED, 3),), (Factor(0, 4),), (Factor(0, 4), Factor(FIXED, 2))),
    ((Factor(0, 4), Factor(0, 4)),),
    ((Factor(FIXED, 2), Factor(1, 5, ((Factor(0, 4),), (Factor(FIXED, 1),)))),),
)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_holds_of_a_map_holds_of_it_spread_over_an_axis(structure, condition) -> None:
    """Of an even map only where the axis is one product: so the planner reads it."""
    alone = len(structure) == 1 and not any(f.inner for f in structure[0])
    for seed in range(8):
        rng = np.random.Generator(np.random.PCG64(seed))
        g = draw_map(rng, {condition}, source=4)
        assert CONDITIONS[condition](g)
        spread = IndexMap(*lift(structure, 0, g.entries, g.source))
        if condition != "even" or alone:
            assert CONDITIONS[condition](spread)


def test_the_same_axiom_is_sound_in_evaluation() -> None:
    assert audit(laws_of(IN_TRAINING.replace("train", "eval")), STANDARD) == []


def test_an_axiom_without_instances_is_not_let_through() -> None:
    text = 'axiom odd in eval { "Never." for x[n, c], a: axis relu(x) == x where a != a }'
    (finding,) = audit(laws_of(text), STANDARD)
    assert "only 0 instances" in finding.text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("axiom a in eval { relu(x) == x }", "A410"),
        ('axiom a in eval { "t" for x[n] relu(y) == x }', "A411"),
        ('axiom a in eval { "t" for x[n], y[n] relu(x) == y }', "A411"),
        ('axiom a in eval { "t" for x[n] nothing(x) == x }', "A411"),
        ('axiom a in eval { "t" for x[n] relu(x) }', "A411"),
        ('axiom a in later { "t" for x[n] relu(x) == x }', "A411"),
        ('axiom a in eval { "t" for x: thing relu(x) == x }', "A411"),
        ('axiom a in eval { "t" for x[n] relu(x, slope = 1) == x }', "A411"),
        ('axiom a in eval { "t" for x[n] relu(x) == x where x }', "A411"),
        ('axiom a in eval { "t" for x[n] relu(x) == x where onto(x, x) }', "A411"),
        ('axiom a in eval { "t" for g[p -> q] length(g) }', "A411"),
        ('axiom a in eval { "t" for F: mapped, g[p -> q] F(operand = take(g)) == g }', "A411"),
        ('axiom a in eval { "t" for F: mapped, g[p -> q] F(result = take(g)) == F() }', "A411"),
        ('axiom a in eval { "t" for F: mapped, g[p -> q] F(take(g)) == F() }', "A411"),
        ('axiom a in eval { "t" for F: mapped, g[p -> q] F(operand = count(g)) == F() }', "A411"),
        ('axiom a in eval { "t" for F: mapped, g[p -> q] onto(g) }', "A411"),
        ('axiom a in eval { "t" for x[n] x == x } ' * 2, "A411"),
    ],
)
def test_errors_of_axiom_files(text, code) -> None:
    with pytest.raises(ArchirError) as failure:
        laws_of(text)
    assert failure.value.diagnostics[0].code == code


def test_two_packages_with_one_name() -> None:
    points = [EntryPoint(name, "archir.rewrites", "archir.rules") for name in ("one", "two")]
    with pytest.raises(ArchirError) as failure:
        installed_axioms(points)
    assert failure.value.diagnostics[0].code == "A412"


def test_a_child_that_fails_is_reported(library, axioms, monkeypatch) -> None:
    monkeypatch.setattr(spelling, "prelude", lambda held: "(nonsense)")
    wanted = goals(library["deepen"], STANDARD, "eval")
    with pytest.raises(ArchirError) as failure:
        prove_goals(wanted, axioms.laws(STANDARD), Budget())
    assert failure.value.diagnostics[0].code == "A414"


def test_no_axiom_is_a_rule(library, axioms, few) -> None:
    """No single axiom proves a rule over a pattern."""
    for rule in library.values():
        if isinstance(rule.body, Reshaping):
            continue
        for mode in rule.contract.function:
            handed = rule.body.match.bindings
            wanted = [
                g
                for g in goals(rule, STANDARD, mode)
                if g.name.split(",")[0] in handed and g.left != g.right
            ]
            laws = [law for law in axioms.laws(few) if mode in law.modes]
            proofs = prove_goals(wanted, laws, Budget())
            assert wanted
            for goal in wanted:
                assert proofs[goal.name].proved
                assert len(proofs[goal.name].axioms) >= 2


def test_a_rule_over_a_class_rests_on_laws_of_two_sorts(library, axioms, few) -> None:
    """What is done to weights, and what operators make of it: no axiom speaks of both."""
    acts = set(ALONG) - {"take", "fibre_sum"}
    for law in axioms.laws(few):
        if law.axiom in CLAIMS:
            sides = [p for side in (law.left, law.right) for p in parts(side)]
            heads = {p.head for p in sides if isinstance(p, Application)}
            assert not heads & acts
    for rule in library.values():
        for mode in rule.contract.function if isinstance(rule.body, Reshaping) else ():
            proofs, reason = saturated(rule, few, axioms, mode, Budget(), minimal=False)
            assert reason == ""
            used = {axiom for proof in proofs for axiom in proof.axioms}
            assert {"mapped", "produced", "consumed"} <= used
            assert used - set(CLAIMS)


def test_every_axiom_of_a_proof_is_needed(library, axioms) -> None:
    """Leaving out any one of them, the proof fails."""
    wanted = goals(library["deepen.batch_norm"], STANDARD, "eval")
    laws = [law for law in axioms.laws(STANDARD) if "eval" in law.modes]
    used = prove_goals(wanted, laws, Budget())[wanted[0].name].axioms
    assert {"batch_norm.eval", "windows.identity", "idempotent"} <= set(used)
    for name in used:
        rest = [law for law in laws if law.axiom in used and law.axiom != name]
        assert not prove_goals(wanted, rest, Budget())[wanted[0].name].proved


def test_the_hash_sees_the_text_alone(axioms) -> None:
    one = Axioms(tuple(parse_axioms(Source("a", IN_TRAINING))))
    two = Axioms(
        tuple(parse_axioms(Source("b", "# a comment\n" + IN_TRAINING.replace("\n", "\n\n"))))
    )
    other = Axioms(tuple(parse_axioms(Source("c", IN_TRAINING.replace("train", "eval")))))
    names = [one.axioms[0].name]
    assert one.hash_of(names) == two.hash_of(names) != other.hash_of(names)
    assert axioms.hash_of(["mapped"]) != axioms.hash_of(["mapped", "produced"])
    assert axioms.hash_of(["mapped"]) == axioms.without(["produced"]).hash_of(["mapped"])
