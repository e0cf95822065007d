"""Equality saturation: goals and laws become an egglog program, run in a child process.

The child gets a budget of steps, of e-graph size and of seconds, and is killed when the last
runs out. A goal is proved when its two terms fall into one e-class; what is not proved within
the budget is not known.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from ast import literal_eval
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from archir.diag import UNSUPPORTED, ArchirError, Diagnostic
from archir.proof.axioms import Lawful, mentioned
from archir.proof.terms import Application, Constant, Fact, Formula, Goal, Variable, parts
from archir.proof.vocabulary import RELATIONS


@dataclass(frozen=True, slots=True)
class Budget:
    """How far a proof may go: saturation steps, tuples of the e-graph, seconds for all goals."""

    steps: int = 30
    size: int = 20_000
    seconds: float = 60.0


@dataclass(frozen=True)
class Proof:
    """What was found for a goal: an irreducible set of axioms, and members of the e-class."""

    goal: str
    proved: bool
    axioms: tuple[str, ...] = ()
    members: tuple[Formula, ...] = ()
    steps: int = 0
    seconds: float = 0.0


def available() -> bool:
    """Whether egglog is installed."""
    return importlib.util.find_spec("egglog") is not None


def version() -> str:
    """The version of egglog."""
    return importlib.metadata.version("egglog")


def missing() -> ArchirError:
    """The error that says how to get egglog (exit status 3)."""
    text = "proving a rule needs egglog, which is not installed"
    hint = "pip install 'archir[proof]'; the rules that archir ships carry their verdicts"
    return ArchirError(Diagnostic("A413", text, hint=hint), status=UNSUPPORTED)


def prove_goals(
    goals: Sequence[Goal],
    laws: Sequence[Lawful],
    budget: Budget,
    *,
    minimal: bool = True,
    members: int = 24,
    known: dict[str, Proof] | None = None,
) -> dict[str, Proof]:
    """Try all goals in one child process. Those it did not get to are not in the answer.

    ``known`` holds what was proved before, and gets what is proved now: a goal that stands before
    the same laws again is not tried again.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A414, the child failed.
    """
    if not goals:
        return {}
    if not available():
        raise missing()
    speller = _Speller()
    find = _Finder(laws)
    held = {} if known is None else known
    jobs = [speller.job(goal, find.reachable(goal)) for goal in goals]
    keys = {j["name"]: f"{j['setup']}{j['laws']}{budget.steps} {budget.size}" for j in jobs}
    job = {
        "goals": [j for j in jobs if keys[j["name"]] not in held],
        "steps": budget.steps,
        "size": budget.size,
        "members": members,
        "minimal": minimal,
    }
    lines = _run(json.dumps(job), budget.seconds) if job["goals"] else []
    for a in map(json.loads, lines):
        held[keys[a["name"]]] = Proof(
            a["name"],
            a["proved"],
            tuple(a["axioms"]),
            tuple(speller.read(m) for m in a["members"]),
            a["steps"],
            a["seconds"],
        )
    return {n: replace(held[k], goal=n) for n, k in keys.items() if k in held}


def _run(job: str, seconds: float) -> list[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "archir.proof.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            out, trouble = child.communicate(job, timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
            return [line for line in out.splitlines() if line.endswith("}")]
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        last = trouble.strip().splitlines()[-1:] or ["no message"]
        raise ArchirError(Diagnostic("A414", f"the prover's process failed: {last[0][:300]}"))
    return out.splitlines()


class _Finder:
    """Finds the laws whose left side could ever occur in the proof of a goal."""

    def __init__(self, laws: Sequence[Lawful]) -> None:
        self.needs = [(law, mentioned(law), _signatures(law.conditions)) for law in laws]
        seen = Counter(head for _, heads, _ in self.needs for head in heads)
        self.buckets: dict[str, list[int]] = {}
        for number, (_, heads, _) in enumerate(self.needs):
            rarest = min(heads, key=lambda h: (seen[h], h), default="")
            self.buckets.setdefault(rarest, []).append(number)

    def reachable(self, goal: Goal) -> list[Lawful]:
        """The laws, in the order they were given, starting from the heads of a goal."""
        facts = [*goal.facts, *ground_facts(goal)]
        told = _signatures(facts)
        terms = [goal.left, goal.right, *goal.seeds, *(a for f in facts for a in f.args)]
        heads = {"", *(p.head for t in terms for p in parts(t) if isinstance(p, Application))}
        found: set[int] = set()
        grown = True
        while grown:
            near = [n for head in heads for n in self.buckets.get(head, ()) if n not in found]
            fit = [n for n in near if self.needs[n][1] <= heads and self.needs[n][2] <= told]
            grown = bool(fit)
            found.update(fit)
            rights = [self.needs[n][0].right for n in fit]
            heads |= {p.head for t in rights for p in parts(t) if isinstance(p, Application)}
        return [self.needs[n][0] for n in sorted(found)]


def _signatures(facts: Sequence[Fact]) -> set[Formula]:
    return {fact.args[0] for fact in facts if fact.relation == "signed"}


class _Speller:
    """Writes terms, laws and facts in egglog's language, and reads terms back."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, int], str] = {}
        self._used: dict[tuple[str, int], str] = {}

    def symbol(self, head: str, arity: int) -> str:
        key = (head, arity)
        if key not in self._heads:
            plain = re.sub(r"\W", lambda m: f"_{ord(m[0])}_", head)
            self._heads[key] = f"{plain}_{arity}"
        self._used[key] = self._heads[key]
        return self._heads[key]

    def job(self, goal: Goal, laws: Sequence[Lawful]) -> dict[str, Any]:
        """What the child is told of a goal: the laws are grouped by their axioms."""
        self._used = {}
        setup = self.setup(goal)
        spelled: dict[str, list[str]] = {}
        for number, law in enumerate(laws):
            spelled.setdefault(law.axiom, []).append(self.law(law, number))
        return {"name": goal.name, "prelude": self.prelude(), "setup": setup, "laws": spelled}

    def prelude(self) -> str:
        """The sorts, symbols and relations of one goal and its laws."""
        lines = ["(datatype Term (lit String) (var String))", "(ruleset laws)"]
        for (_, arity), symbol in self._used.items():
            lines.append(f"(constructor {symbol} ({' '.join(['Term'] * arity)}) Term)")
        for name, check in RELATIONS.items():
            arity = check.__code__.co_argcount
            lines.append(f"(relation {_relation(name)} ({' '.join(['Term'] * arity)}))")
        return "\n".join(lines) + "\n"

    def term(self, term: Formula, pattern: Mapping[str, str] | None = None) -> str:
        if isinstance(term, Variable):
            return f"(var {json.dumps(term.name)})" if pattern is None else pattern[term.name]
        if isinstance(term, Constant):
            return f"(lit {json.dumps(_spelled(term))})"
        inner = " ".join(self.term(a, pattern) for a in term.args)
        return f"({self.symbol(term.head, len(term.args))} {inner})"

    def law(self, law: Lawful, number: int) -> str:
        sides = [law.left, law.right, *(a for f in law.conditions for a in f.args)]
        names = sorted({p.name for s in sides for p in parts(s) if isinstance(p, Variable)})
        pattern = {name: f"v{i}" for i, name in enumerate(names)}
        wanted = [f"(= whole {self.term(law.left, pattern)})"]
        wanted += [self.condition(fact, pattern) for fact in law.conditions]
        then = f"(union whole {self.term(law.right, pattern)})"
        if law.conclusion is not None:
            then = self.condition(law.conclusion, pattern)
        return f'(rule ({" ".join(wanted)}) ({then}) :ruleset laws :name "{number}")'

    def condition(self, fact: Fact, pattern: Mapping[str, str]) -> str:
        args = " ".join(self.term(a, pattern) for a in fact.args)
        if fact.relation == "equal":
            return f"(= {args})"
        if fact.relation == "given":
            return f"(!= {args} {self.term(Constant(None))})"
        return f"({_relation(fact.relation)} {args})"

    def setup(self, goal: Goal) -> str:
        lines = [f"(let $none {self.term(Constant(None))})"]
        for fact in (*goal.facts, *ground_facts(goal)):
            args = " ".join(self.term(a) for a in fact.args)
            relation = "union" if fact.relation == "equal" else _relation(fact.relation)
            lines.append(f"({relation} {args})")
        lines += [f"(let $seed{n} {self.term(seed)})" for n, seed in enumerate(goal.seeds)]
        lines.append(f"(let $left {self.term(goal.left)})")
        lines.append(f"(let $right {self.term(goal.right)})")
        return "\n" + "\n".join(lines) + "\n"

    def read(self, text: str) -> Formula:
        """A term as egglog prints it."""
        known = {symbol: head for (head, _), symbol in self._heads.items()}
        tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()"]+', text)

        def value(at: int) -> tuple[Formula, int]:
            head = tokens[at + 1]
            if head in ("lit", "var"):
                word = json.loads(tokens[at + 2])
                return (Variable(word) if head == "var" else Constant(literal_eval(word))), at + 4
            at += 2
            args: list[Formula] = []
            while tokens[at] != ")":
                arg, at = value(at)
                args.append(arg)
            return Application(known[head], tuple(args)), at + 1

        return value(0)[0]


def _relation(name: str) -> str:
    return f"is_{name}"


def _spelled(constant: Constant) -> str:
    value = constant.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 0 and 0.0 are one number
    return repr(value)


def ground_facts(goal: Goal) -> list[Fact]:
    """What holds between the whole numbers that a goal mentions."""
    sides = [goal.left, goal.right, *(a for f in goal.facts for a in f.args)]
    held = {p.value for s in sides for p in parts(s) if isinstance(p, Constant)}
    numbers = sorted(v for v in held if isinstance(v, int) and not isinstance(v, bool))
    return [
        Fact("differ", (Constant(a), Constant(b)))
        for a, b in permutations(numbers, 2)
        if RELATIONS["differ"](a, b)
    ]
