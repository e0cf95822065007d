"""Mutants of rules: made by operators that break a rule, and judged as any rule is.

A mutant is killed when small networks refute one of its promises. One that is proved in all it
promises is another right rule: its proof is the witness of that. What is neither is open, and
says that the small networks, or the prover, are too weak.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, product
from multiprocessing import get_context
from typing import Literal

from archir.diag import ArchirError, Source
from archir.ops import installed_ops
from archir.ops.record import OpSet
from archir.proof.axioms import Axioms, installed_axioms
from archir.proof.edits import Edit, Mutation
from archir.proof.instances import Aspect
from archir.proof.mutations import Mutator
from archir.proof.prove import prove, quickly_refuted
from archir.proof.saturation import Budget, Prover
from archir.rewrite.rule import Rule
from archir.rewrite.rulefile import parse_rules

LEAST = 12
"""So many mutants are made of each rule."""
MOST = 14
"""And no more, so that every kind of operator has its turn in little time."""
TESTS = 64
"""On how many small networks a mutant is tried that is neither refuted at once nor proved."""
SECONDS = 20.0

DEAD = ("A2", "A3", "A405")
"""What no planner takes, and what no use can be checked of (it assumes of a weight what no weight
can be): it is refused wherever it is used. A prover that fails says nothing of a mutant."""

Fate = Literal["refuted", "equivalent", "open"]


@dataclass(frozen=True)
class Mutant:
    """A rule made wrong.

    Args:
        rule: The name of the rule it was made of.
        operators: What was done, once or twice.
        places: Each piece of text, and what took its place.
        text: The mutant, a rule.
    """

    rule: str
    operators: tuple[str, ...]
    places: tuple[str, ...]
    text: str

    @property
    def operator(self) -> str:
        """What was done, as one name."""
        return " and ".join(self.operators)


@dataclass(frozen=True)
class Brood:
    """The mutants of one rule, and how many more were refused when they were read."""

    mutants: tuple[Mutant, ...]
    refused: int


@dataclass(frozen=True)
class Judgement:
    """What became of a mutant.

    Args:
        fate: ``refuted``; ``equivalent``: proved in all it promises; ``open``: neither.
        why: The mode and value of the counterexample, or the axioms of the proof, or what is
            missing.
        fits: Whether its right side fits anywhere at all.
    """

    mutant: Mutant
    fate: Fate
    why: str
    axioms: tuple[str, ...] = ()
    fits: bool = True
    seconds: float = field(default=0.0, compare=False)


def brood(rule: Rule, ops: OpSet, *, least: int = LEAST, most: int | None = MOST) -> Brood:
    """The mutants of a rule, always the same ones.

    The operators take turns, so that the first few mutants are of different kinds. Where they
    make fewer than ``least``, what fits any rule follows, and then pairs of changes at different
    places.
    """
    mutator = Mutator(rule.text, ops)
    single = list(_in_turns(mutator.all()))
    telling = sum(not m.spare for m in single)
    kept: dict[str, Mutant] = {}
    refused: set[str] = set()
    whole, wanted = (most, telling) if most else (len(single), len(single))
    for number, changes in enumerate((*((m,) for m in single), *_pairs(single))):
        if len(kept) >= (whole if number < wanted else least):
            break
        made = _made(rule, changes)
        try:
            (mutant,) = parse_rules(Source("mutant.rule", made.text), ops)
        except ArchirError:
            refused.add(made.text)
            continue
        if mutant.hash != rule.hash:
            kept.setdefault(mutant.hash, made)
    return Brood(tuple(kept.values()), len(refused))


def _in_turns(mutations: Iterable[Mutation]) -> Iterator[Mutation]:
    """One of each operator, then the second of each, and so on; the spare ones last."""
    held: dict[tuple[bool, str], list[Mutation]] = {}
    for mutation in mutations:
        held.setdefault((mutation.spare, mutation.operator), []).append(mutation)
    most = max(map(len, held.values()), default=0)
    for spare, turn in product((False, True), range(most)):
        for (kind, _), found in held.items():
            if kind is spare and turn < len(found):
                yield found[turn]


def _pairs(single: Sequence[Mutation]) -> Iterator[tuple[Mutation, Mutation]]:
    for one, two in combinations(single, 2):
        spans = [(e.start, e.end) for e in (*one.edits, *two.edits)]
        if all(a[1] <= b[0] or b[1] <= a[0] for a, b in combinations(spans, 2)):
            yield one, two


def _made(rule: Rule, changes: Sequence[Mutation]) -> Mutant:
    edits = sorted(edit for change in changes for edit in change.edits)
    text, places = rule.text, list[str]()
    for edit in edits:
        places.append(_place(rule.text, edit))
    for edit in reversed(edits):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return Mutant(rule.name, tuple(c.operator for c in changes), tuple(places), text)


def _place(text: str, edit: Edit) -> str:
    line = text.count("\n", 0, edit.start) + 1
    old, new = (" ".join(t.split()) for t in (text[edit.start : edit.end], edit.text))
    return f"line {line}: `{old}` -> `{new}`"


# --- judging ------------------------------------------------------------------------------------


def judge(mutant: Mutant, ops: OpSet, axioms: Axioms, prover: Prover | None = None) -> Judgement:
    """What becomes of a mutant: small networks first, which refute most, then a proof."""
    start = time.perf_counter()
    try:
        return _judged(mutant, ops, axioms, prover, start)
    except ArchirError as failure:
        found = failure.diagnostics[0]
        fate: Fate = "refuted" if found.code.startswith(DEAD) else "open"
        seconds = time.perf_counter() - start
        return Judgement(mutant, fate, found.message, (), fits=False, seconds=seconds)


def _judged(
    mutant: Mutant, ops: OpSet, axioms: Axioms, prover: Prover | None, start: float
) -> Judgement:
    (rule,) = parse_rules(Source("mutant.rule", mutant.text), ops)
    promises: list[Aspect] = [*rule.contract.function]
    if rule.contract.shape:
        promises.append("shape")
    for promise in promises:
        found = quickly_refuted(rule, ops, promise)
        if found is not None:
            against = found.counterexample
            why = found.reason if against is None else f"{against.mode}: {against.value}"
            seconds = time.perf_counter() - start
            return Judgement(mutant, "refuted", why, (), against is not None, seconds)
    limits = Budget(seconds=SECONDS)
    verdict = prove(rule, ops, axioms, budget=limits, tests=TESTS, prover=prover)
    seconds = time.perf_counter() - start
    kinds = {held.kind for held in verdict.modes}
    used = tuple(dict.fromkeys(a for held in verdict.modes for a in held.axioms))
    if kinds == {"proved"}:
        return Judgement(mutant, "equivalent", "proved", used, seconds=seconds)
    for held in verdict.modes:
        if held.kind == "refuted":
            value = held.counterexample.value if held.counterexample else held.reason
            why = f"{held.mode}: {value}"
            fits = held.counterexample is not None
            return Judgement(mutant, "refuted", why, (), fits, seconds)
    weak = next(held for held in verdict.modes if held.kind != "proved")
    why = f"{weak.mode}: {weak.kind}: {weak.reason}"
    return Judgement(mutant, "open", why, used, seconds=seconds)


def judged(mutants: Sequence[Mutant], *, processes: int = 2) -> Iterator[Judgement]:
    """Judge mutants in several processes, in the order in which they are given."""
    if processes < 2 or len(mutants) < 2:
        yield from map(_judge, mutants)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_judge, mutants, chunksize=2)


@lru_cache(maxsize=1)
def _held() -> tuple[OpSet, Axioms, Prover]:
    prover = Prover()  # knows what has been proved of other mutants
    atexit.register(prover.close)
    return installed_ops(), installed_axioms(), prover


def _judge(mutant: Mutant) -> Judgement:
    return judge(mutant, *_held())
