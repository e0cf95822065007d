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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

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
) -> dict[str, Proof]:
    """Try all goals in one child process. Those it did not get to are not in the answer.

    Raises:
        ArchirError: A413, egglog is not installed (exit status 3); A414, the child failed.
    """
    if not goals:
        return {}
    if not available():
        raise missing()
    speller = _Speller()
    by_axiom: dict[str, list[str]] = {}
    for number, law in enumerate(laws):
        by_axiom.setdefault(law.axiom, []).append(speller.law(law, number))
    jobs = []
    for goal in goals:
        fit = {law.axiom: None for law in reachable(goal, laws)}
        jobs.append({"name": goal.name, "setup": speller.setup(goal), "axioms": list(fit)})
    job = {
        "prelude": speller.prelude(),
        "laws": by_axiom,
        "goals": jobs,
        "steps": budget.steps,
        "size": budget.size,
        "members": members,
        "minimal": minimal,
    }
    answers = [json.loads(line) for line in _run(json.dumps(job), budget.seconds)]
    return {
        a["name"]: Proof(
            a["name"],
            a["proved"],
            tuple(a["axioms"]),
            tuple(speller.read(m) for m in a["members"]),
            a["steps"],
            a["seconds"],
        )
        for a in answers
    }


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


def reachable(goal: Goal, laws: Sequence[Lawful]) -> list[Lawful]:
    """The laws whose left side could ever occur, starting from the heads of a goal."""
    heads = {
        p.head
        for side in (goal.left, goal.right)
        for p in parts(side)
        if isinstance(p, Application)
    }
    heads |= {
        p.head for f in goal.facts for a in f.args for p in parts(a) if isinstance(p, Application)
    }
    left = list(laws)
    found: list[Lawful] = []
    grown = True
    while grown:
        fit = [law for law in left if mentioned(law) <= heads]
        grown = bool(fit)
        found += fit
        left = [law for law in left if law not in fit]
        heads |= {p.head for law in fit for p in parts(law.right) if isinstance(p, Application)}
    return [law for law in laws if law in found]


class _Speller:
    """Writes terms, laws and facts in egglog's language, and reads terms back."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, int], str] = {}

    def symbol(self, head: str, arity: int) -> str:
        key = (head, arity)
        if key not in self._heads:
            plain = re.sub(r"\W", "_", head)
            self._heads[key] = f"{plain}_{len(self._heads)}"
        return self._heads[key]

    def prelude(self) -> str:
        lines = ["(datatype Term (lit String) (var String))", "(ruleset laws)"]
        for (_, arity), symbol in self._heads.items():
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
        result = self.term(law.right, pattern)
        return (
            f'(rule ({" ".join(wanted)}) ((union whole {result})) :ruleset laws :name "{number}")'
        )

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
    numbers = sorted(
        {v for v in held if isinstance(v, int) and not isinstance(v, bool)} | {0, 1, -1}
    )
    facts: list[Fact] = []
    for a in numbers:
        facts += [Fact(r, (Constant(a),)) for r in ("before_last", "from_end") if RELATIONS[r](a)]
        facts += [Fact("least", (Constant(a), Constant(a)))] if a >= 0 else []
    for a, b in permutations(numbers, 2):
        pair = (Constant(a), Constant(b))
        facts += [Fact(r, pair) for r in ("differ", "below", "least") if RELATIONS[r](a, b)]
    return facts
