"""Wrong variants of the shipped rules: each is refuted, or refused when it is read or planned.

Those of the first table were written by hand; the mutator makes others. The whole run over the
library is `benchmarks/mutants.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from archir.diag import ArchirError, Source
from archir.ops import STANDARD
from archir.proof.attempts import saturated
from archir.proof.mutants import LEAST, brood, judge, judged
from archir.proof.mutations import ENDS, Mutator
from archir.proof.prove import prove
from archir.proof.saturation import Budget, Prover
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.rulefile import parse_rules

IDENTITY = "identity(channels(x), kernel, kernel)"
MUTANTS = {
    "deepen": {
        "zeros for the identity": (IDENTITY, "zeros(channels(x), channels(x), kernel, kernel)"),
        "ones for the identity": (IDENTITY, "ones(channels(x), channels(x), kernel, kernel)"),
        "twice the identity": (IDENTITY, f"2 * {IDENTITY}"),
        "a bias of one": ("zeros(channels(x))", "ones(channels(x))"),
        "no ReLU at all": (
            "y = relu(x) |> new: conv(channels(x), kernel) |> relu",
            "y = x |> new: conv(channels(x), kernel)",
        ),
        "a stride": ("conv(channels(x), kernel)", "conv(channels(x), kernel, stride = 2)"),
        "no padding": ("conv(channels(x), kernel)", "conv(channels(x), kernel, padding = 0)"),
        "any kernel": ("kernel: odd", "kernel: int"),
        "no guard of the rank": ("where rank(x) == 4", ""),
        "the wrong rank": ("rank(x) == 4", "rank(x) == 3"),
        "a kernel of one tap": (IDENTITY, "identity(channels(x), 1, 1)"),
        "a group for each channel": (
            "conv(channels(x), kernel)",
            "conv(channels(x), kernel, groups = channels(x))",
        ),
        "another operator": ("|> relu", "|> softmax"),
        "no bias given": ("new.bias   = zeros(channels(x))", ""),
        "twice as many channels": ("conv(channels(x), kernel)", "conv(2 * channels(x), kernel)"),
    },
    "deepen.batch_norm": {
        "no square root": ("sqrt(v + new_bn.eps)", "v + new_bn.eps"),
        "no epsilon": ("sqrt(v + new_bn.eps)", "sqrt(v)"),
        "another epsilon": ("sqrt(v + new_bn.eps)", "sqrt(v + 0.1)"),
        "a scale of one": ("sqrt(v + new_bn.eps)", "ones(channels(x))"),
        "the inverse scale": ("sqrt(v + new_bn.eps)", "1 / sqrt(v + new_bn.eps)"),
        "no shift": ("new_bn.bias            = m", "new_bn.bias = zeros(channels(x))"),
        "the variance as shift": ("new_bn.bias            = m", "new_bn.bias = v"),
        "a running mean of zero": (
            "new_bn.running_mean    = m",
            "new_bn.running_mean = zeros(channels(x))",
        ),
        "the wrong running mean": ("new_bn.running_mean    = m", "new_bn.running_mean = v"),
        "a running variance of one": (
            "new_bn.running_var     = v",
            "new_bn.running_var = ones(channels(x))",
        ),
        "zeros for the identity": (IDENTITY, "zeros(channels(x), channels(x), kernel, kernel)"),
        "a promise for training": ("function in eval", "function in eval, train"),
        "a forgotten vector": ("new_bn.running_mean    = m", ""),
    },
    "widen": {
        "no division": ("consume take(g) / count(g)", "consume take(g)"),
        "a product for the quotient": ("take(g) / count(g)", "take(g) * count(g)"),
        "divided twice": ("take(g) / count(g)", "take(g) / count(g) / count(g)"),
        "halved": ("take(g) / count(g)", "take(g) / 2"),
        "producers divided": ("produce take(g)", "produce take(g) / count(g)"),
        "carriers divided": ("carry take(g)", "carry take(g) / count(g)"),
        "carriers doubled": ("carry take(g)", "carry take(g) * 2"),
        "producers cleared": ("produce take(g)", "produce take(g) * 0"),
        "consumers cleared": ("take(g) / count(g)", "take(g) / count(g) * 0"),
        "division on the wrong side": (
            "produce take(g)             carry take(g)             consume take(g) / count(g)",
            "produce take(g) / count(g)  carry take(g)  consume take(g)",
        ),
        "a constant added": ("take(g) / count(g)", "take(g) / count(g) + 1"),
    },
    "permute": {
        "consumers keep their order": (
            "let g = shuffle(size(c))",
            "let g = shuffle(size(c)) let h = shuffle(size(c))",
        ),
        "consumers doubled": ("consume take(g)", "consume take(g) * 2"),
        "consumers cleared": ("consume take(g)", "consume take(g) * 0"),
        "producers halved": ("produce take(g)", "produce take(g) / 2"),
        "producers cleared": ("produce take(g)", "produce take(g) * 0"),
        "carriers doubled": ("carry take(g)", "carry take(g) * 2"),
        "a constant added": ("carry take(g)", "carry take(g) + 1"),
        "copies": ("shuffle(size(c))", "replicate(size(c), size(c) + 1)"),
        "some of them": ("shuffle(size(c))", "select(size(c), size(c) - 1)"),
        "consumers placed": ("consume take(g)", "consume place(g)"),
    },
    "prune": {
        "nothing assumed": ("assumes unread(g)", ""),
        "consumers doubled": ("consume take(g)", "consume take(g) * 2"),
        "consumers cleared": ("consume take(g)", "consume take(g) * 0"),
        "a constant added": ("consume take(g)", "consume take(g) + 1"),
        "producers halved": ("produce take(g)", "produce take(g) / 2"),
        "producers cleared": ("produce take(g)", "produce take(g) * 0"),
        "carriers cleared": ("carry take(g)", "carry take(g) * 0"),
        "carriers moved": ("carry take(g)", "carry take(g) - 1"),
        "consumers placed": ("consume take(g)", "consume place(g)"),
    },
    "pad": {
        "consumers of ones": ("consume place(g)", "consume place(g) + 1"),
        "consumers doubled": ("consume place(g)", "consume place(g) * 2"),
        "consumers cleared": ("consume place(g)", "consume place(g) * 0"),
        "consumers taken": ("consume place(g)", "consume take(g)"),
        "producers moved": ("produce place(g)", "produce place(g) + 1"),
        "producers halved": ("produce place(g)", "produce place(g) / 2"),
        "carriers cleared": ("carry place(g)", "carry place(g) * 0"),
        "carriers moved": ("carry place(g)", "carry place(g) - 1"),
        "copies": ("embed(size(c), width)", "replicate(size(c), width)"),
    },
}
VACUOUS = ("twice as many channels",)
"""Fits nowhere, so that nothing is wrong where it fits: networks refute it, a proof does not."""
CASES = [(rule, label) for rule, mutants in MUTANTS.items() for label in mutants]


def mutant(library, name: str, label: str) -> Rule | None:
    """The mutant; None where it is refused when it is read."""
    old, new = MUTANTS[name][label]
    text = library[name].text
    assert text.count(old) == 1
    try:
        (rule,) = parse_rules(Source("mutant.rule", text.replace(old, new)), STANDARD)
    except ArchirError:
        return None
    return rule


@pytest.mark.parametrize(("name", "label"), CASES)
def test_a_wrong_rule_is_not_proved(name, label, library, axioms) -> None:
    rule = mutant(library, name, label)
    if rule is None:
        return
    try:
        verdict = prove(rule, STANDARD, axioms, tests=40)
    except ArchirError as refused:
        if refused.diagnostics[0].code != "A213":  # two maps: no planner takes that
            raise
        return
    assert verdict.kind != "proved"
    misfits = [m for held in verdict.modes for m in held.misfits]
    refuted = [held for held in verdict.modes if held.kind == "refuted"]
    assert refuted or misfits
    for held in refuted:
        against = held.counterexample
        assert against is not None or held.reason
        if against is not None:
            assert against.before != against.after
            assert "arch instance" in against.text()


@pytest.fixture(scope="module")
def prover():
    """Knows what has been proved of other mutants."""
    with Prover() as held:
        yield held


@pytest.mark.parametrize(("name", "label"), [c for c in CASES if c[1] not in VACUOUS])
def test_saturation_alone_does_not_prove_it(name, label, library, axioms, few, prover) -> None:
    """What small networks refute before a proof is looked for would not be proved either."""
    rule = mutant(library, name, label)
    if rule is None:
        return
    missed = []
    ops = few if isinstance(rule.body, Reshaping) else STANDARD
    for mode in rule.contract.function:
        found = saturated(rule, ops, axioms, mode, Budget(), minimal=False, prover=prover)
        missed.append(found[1])
        if missed[-1]:
            break
    assert any(missed)


def test_few_are_refused_unread(library) -> None:
    """The mutants test the prover, not the reader."""
    assert sum(mutant(library, *case) is None for case in CASES) <= 2


def test_there_are_enough_of_them() -> None:
    assert all(len(mutants) >= 8 for mutants in MUTANTS.values())


# --- made by the mutator ----------------------------------------------------------------------

SAMPLE = ("deepen", "deepen.batch_norm", "widen")


def test_every_rule_has_mutants_enough(library) -> None:
    for rule in library.values():
        made = brood(rule, STANDARD, most=LEAST)
        assert len(made.mutants) >= LEAST, rule.name
        assert len({m.text for m in made.mutants}) == len(made.mutants)
        assert all(m.text != rule.text and m.places for m in made.mutants)


@pytest.mark.parametrize("name", SAMPLE)
def test_mutants_are_always_the_same(name, library) -> None:
    assert brood(library[name], STANDARD) == brood(library[name], STANDARD)


@pytest.mark.parametrize("name", SAMPLE)
def test_mutants_are_refuted(name, library, axioms) -> None:
    for mutant in brood(library[name], STANDARD).mutants:
        found = judge(mutant, STANDARD, axioms)
        assert found.fate == "refuted", (mutant, found)


def test_several_processes_judge_alike(library, axioms) -> None:
    made = brood(library["deepen"], STANDARD).mutants[:4]
    found = list(judged(made, processes=2))
    assert found == [judge(m, STANDARD, axioms) for m in made]


def test_a_right_mutant_has_a_proof_as_witness(read, axioms) -> None:
    rule = read(
        'rule twice() { "Once more." preserves function in eval '
        "match { y = relu(x) } replace { y = relu(x) |> relu } }"
    )
    made = brood(rule, STANDARD).mutants
    mutant = replace(made[0], text=rule.text)
    found = judge(mutant, STANDARD, axioms)
    assert (found.fate, found.axioms) == ("equivalent", ("idempotent",))


def test_pairs_of_changes_where_single_ones_are_few(read) -> None:
    rule = read(
        'rule drop() { "No dropout." preserves function in eval '
        "match { y = dropout(x) } replace { y = x } }"
    )
    few = brood(rule, STANDARD, least=1).mutants
    assert 1 <= len(few) < LEAST
    assert sum("an operator at the end" in m.operators for m in few) == 1
    more = brood(rule, STANDARD).mutants
    assert more[: len(few)] == few
    assert len(more) == LEAST
    kinds = [len(m.operators) for m in more]
    assert kinds == sorted(kinds)  # pairs come last
    assert kinds[-1] == 2
    ends = [m for m in more if m.operators == ("an operator at the end",)]
    assert len(ends) == len(ENDS)


def test_what_zeros_hide_is_left_alone(read) -> None:
    rule = read(
        """
        rule branch() {
            "A branch of nothing."
            preserves function in eval
            match   { y = relu(x) }                              where rank(x) == 4
            replace { y = relu(x) + (x |> one: conv(8, 3) |> tanh |> two: conv(channels(x), 1)) }
            weights { one.weight = ones(8, channels(x), 3, 3)    one.bias = ones(8)
                      two.weight = zeros(channels(x), 8, 1, 1)   two.bias = zeros(channels(x)) }
        }
        """
    )
    mutator = Mutator(rule.text, STANDARD)
    assert mutator.hidden == {"one", "tanh"}
    touched = {rule.text[e.start : e.end] for m in mutator.all() for e in m.edits}
    assert "tanh" not in touched
    assert "ones(8)" not in touched
    assert "zeros(channels(x), 8, 1, 1)" in touched


def done_to(rule) -> dict[str, list[str]]:
    """What each operator puts into a rule's text."""
    found: dict[str, list[str]] = {}
    for mutation in Mutator(rule.text, STANDARD).all():
        found.setdefault(mutation.operator, []).extend(e.text for e in mutation.edits)
    return found


def test_what_a_left_side_asks_for_is_made_wrong(library) -> None:
    branch = done_to(library["drop.branch"])
    assert branch["another value assumed"] == ["1", "0.5", "1", "0.5"]
    assert branch["another sign matched"] == [" * "]
    assert branch["another tensor handed over"] == ["z"]
    assert done_to(library["remove.zero"])["another number matched"] == ["1.0"]
    assert done_to(library["remove.dropout"])["another operator matched"] == ["relu", "gelu"]
    joined = done_to(library["merge.concat_conv"])
    assert len(joined["operands exchanged on the left"]) == 2


def test_what_is_no_opposite_is_left_alone(library) -> None:
    """An even kernel has no padding of `same`; a number may say what `same` says."""
    found = done_to(library["remove.identity_conv"])
    assert not {"odd turned into even", "a condition turned round"} & set(found)
    assert "odd turned into even" in done_to(library["deepen"])
    assert "another number matched" not in done_to(library["attention.split_qkv"])


def test_what_makes_a_replacement_cheaper_is_made_wrong(library, axioms) -> None:
    rule = library["conv.low_rank"]
    assert done_to(rule)["a guard turned round"] == [" >= "]
    made = [m for m in brood(rule, STANDARD).mutants if m.operator.startswith("a guard")]
    made = [m for m in made if len(m.operators) == 1]
    assert len(made) == 2
    found = [judge(m, STANDARD, axioms) for m in made]
    assert [j.fate for j in found] == ["refuted", "refuted"]
    assert all(j.fits and j.why in ("shape: macs", "shape: params") for j in found)


def test_an_assumption_that_no_weight_meets_is_dead(library, axioms) -> None:
    made = Mutator(library["kernel.shrink"].text, STANDARD).all()
    (twice, _) = (m for m in made if m.operator == "another value assumed")
    text = library["kernel.shrink"].text
    (edit,) = twice.edits
    mutant = brood(library["deepen"], STANDARD).mutants[0]
    wrong = replace(mutant, text=text[: edit.start] + edit.text + text[edit.end :])
    found = judge(wrong, STANDARD, axioms)
    assert (found.fate, found.fits) == ("refuted", False)


def test_a_pair_that_is_right_has_a_proof_as_witness(library, axioms) -> None:
    """Times 1 for plus 0: wrong one by one, right together."""
    made = brood(library["remove.zero"], STANDARD).mutants
    both = {m.operator: judge(m, STANDARD, axioms).fate for m in made}
    assert both["another number matched"] == both["another sign matched"] == "refuted"
    assert both["another number matched and another sign matched"] == "equivalent"
