"""Axioms: read, tested exactly, and none of them a rule."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from archir.diag import ArchirError, Source
from archir.ops import STANDARD
from archir.proof import saturation
from archir.proof.audit import audit
from archir.proof.axioms import Axioms, installed_axioms, parse_axioms
from archir.proof.lemmas import lemmas
from archir.proof.saturation import Budget, prove_goals
from archir.proof.translate import goals
from archir.rewrite.rule import Reshaping

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


def test_the_same_axiom_is_sound_in_evaluation() -> None:
    assert audit(laws_of(IN_TRAINING.replace("train", "eval")), STANDARD) == []


def test_an_axiom_without_instances_is_not_let_through() -> None:
    text = 'axiom odd in eval { "Never." for x[n, c], a: axis relu(x) == x where a < a }'
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
    monkeypatch.setattr(saturation._Speller, "prelude", lambda self: "(nonsense)")
    wanted = goals(library["deepen"], STANDARD, "eval")
    with pytest.raises(ArchirError) as failure:
        prove_goals(wanted, axioms.laws(STANDARD), Budget())
    assert failure.value.diagnostics[0].code == "A414"


def test_no_axiom_is_a_rule(library, axioms) -> None:
    """No single axiom proves a rule; of widen, none proves that a convolution or a linear map
    reads what was widened."""
    for rule in library.values():
        for mode in rule.contract.function:
            if isinstance(rule.body, Reshaping):
                wanted = [
                    lemma.goal
                    for lemma in lemmas(rule, STANDARD, mode)
                    if lemma.op in ("conv", "linear") and "fibre" not in lemma.goal.name
                ]
            else:
                wanted = goals(rule, STANDARD, mode)
            laws = [law for law in axioms.laws(STANDARD) if mode in law.modes]
            proofs = prove_goals(wanted, laws, Budget())
            assert wanted
            for goal in wanted:
                assert proofs[goal.name].proved
                assert len(proofs[goal.name].axioms) >= 2


def test_every_axiom_of_a_proof_is_needed(library, axioms) -> None:
    """Leaving out any one of them, the proof fails."""
    wanted = goals(library["deepen.batch_norm"], STANDARD, "eval")
    laws = [law for law in axioms.laws(STANDARD) if "eval" in law.modes]
    used = prove_goals(wanted, laws, Budget())[wanted[0].name].axioms
    assert {"batch_norm.eval", "conv.identity", "idempotent"} <= set(used)
    for name in used:
        rest = [law for law in laws if law.axiom in used and law.axiom != name]
        assert not prove_goals(wanted, rest, Budget())[wanted[0].name].proved


def test_the_hash_sees_the_text_alone(axioms) -> None:
    one = Axioms(tuple(parse_axioms(Source("a", IN_TRAINING))))
    two = Axioms(
        tuple(parse_axioms(Source("b", "# a comment\n" + IN_TRAINING.replace("\n", "\n\n"))))
    )
    other = Axioms(tuple(parse_axioms(Source("c", IN_TRAINING.replace("train", "eval")))))
    assert one.hash == two.hash != other.hash
    assert axioms.without(["idempotent"]).hash != axioms.hash
