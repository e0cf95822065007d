"""Terms, laws and goals in egglog's language, and which laws a goal has any use for."""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

from archir.proof.axioms import Lawful, mentioned
from archir.proof.terms import Application, Constant, Fact, Formula, Goal, Variable, parts
from archir.proof.vocabulary import RELATIONS

Symbol = tuple[str, int]
"""A head and its number of arguments."""


@dataclass(frozen=True)
class Spelled:
    """A text in egglog's language, and what it needs to be declared."""

    text: str
    symbols: frozenset[Symbol]
    relations: frozenset[str]


class Lawbook:
    """Laws to prove goals from; what is worked out of them is kept."""

    def __init__(self, laws: Sequence[Lawful]) -> None:
        self.laws = tuple(laws)
        self._needs = [
            (mentioned(law), _signatures(law.conditions), _relations(law)) for law in laws
        ]
        seen = Counter(head for heads, _, _ in self._needs for head in heads)
        self._buckets: dict[str, list[int]] = {}
        for number, (heads, _, _) in enumerate(self._needs):
            rarest = min(heads, key=lambda h: (seen[h], h), default="")
            self._buckets.setdefault(rarest, []).append(number)
        self._spelled: dict[int, Spelled] = {}

    def reachable(self, goal: Goal) -> list[int]:
        """The laws that could ever be used in the proof of a goal, in the order of the book.

        Those whose left side is made of heads that the goal has, or that such laws bring in, and
        whose conditions speak of what the goal tells or such laws conclude.
        """
        facts = [*goal.facts, *ground_facts(goal)]
        told = _signatures(facts)
        terms = [goal.left, goal.right, *goal.seeds, *(a for f in facts for a in f.args)]
        heads = {"", *(p.head for t in terms for p in parts(t) if isinstance(p, Application))}
        relations = {f.relation for f in facts}
        found: set[int] = set()
        grown = True
        while grown:
            near = [n for head in heads for n in self._buckets.get(head, ()) if n not in found]
            fit = [n for n in near if self._fits(n, heads, told, relations)]
            grown = bool(fit)
            found.update(fit)
            for law in (self.laws[n] for n in fit):
                heads |= {p.head for p in parts(law.right) if isinstance(p, Application)}
                if law.conclusion is not None:
                    relations.add(law.conclusion.relation)
        return sorted(found)

    def _fits(self, number: int, heads: set[str], told: set[Formula], relations: set[str]) -> bool:
        needed, signatures, asked = self._needs[number]
        return needed <= heads and signatures <= told and asked <= relations

    def spelled(self, number: int) -> Spelled:
        """A law's text: what it looks for, and what it does then."""
        if number not in self._spelled:
            speller = Speller()
            text = speller.law(self.laws[number])
            self._spelled[number] = speller.spelled(text)
        return self._spelled[number]

    def job(self, goal: Goal, *, narrow: bool = False) -> dict[str, Any]:
        """What the child is told of a goal: the laws are grouped by their axioms.

        If ``narrow``, there are only those that speak of the goal's signatures.
        """
        laws = self.reachable(goal)
        if narrow:
            laws = [number for number in laws if self._needs[number][1]]
        texts: dict[str, list[str]] = {}
        for number in laws:
            texts.setdefault(self.laws[number].axiom, []).append(self.spelled(number).text)
        speller = Speller()
        held = [self.spelled(number) for number in laws]
        asked = {r for spelled in held for r in spelled.relations}
        setup = speller.setup(goal, asked)
        held.append(speller.spelled(setup))
        return {"name": goal.name, "prelude": prelude(held), "setup": setup, "laws": texts}


def _signatures(facts: Iterable[Fact]) -> set[Formula]:
    return {fact.args[0] for fact in facts if fact.relation == "signed"}


def _relations(law: Lawful) -> set[str]:
    return {f.relation for f in law.conditions} - {"equal", "given"}


class Speller:
    """Writes one text, and notes what it needs to be declared."""

    def __init__(self) -> None:
        self.symbols: set[Symbol] = set()
        self.relations: set[str] = set()

    def spelled(self, text: str) -> Spelled:
        """The text, with what was noted."""
        return Spelled(text, frozenset(self.symbols), frozenset(self.relations))

    def term(self, term: Formula, pattern: Mapping[str, str] | None = None) -> str:
        """A term; its variables are those of a law where ``pattern`` names them."""
        if isinstance(term, Variable):
            return f"(var {json.dumps(term.name)})" if pattern is None else pattern[term.name]
        if isinstance(term, Constant):
            return f"(lit {json.dumps(_constant(term))})"
        inner = " ".join([self.term(a, pattern) for a in term.args])
        symbol = (term.head, len(term.args))
        self.symbols.add(symbol)
        return f"({_symbol(symbol)} {inner})"

    def law(self, law: Lawful) -> str:
        """A law, used from left to right."""
        sides = [law.left, law.right, *(a for f in law.conditions for a in f.args)]
        names = sorted({p.name for s in sides for p in parts(s) if isinstance(p, Variable)})
        pattern = {name: f"v{i}" for i, name in enumerate(names)}
        wanted = [f"(= whole {self.term(law.left, pattern)})"]
        wanted += [self.fact(fact, pattern) for fact in law.conditions]
        then = f"(union whole {self.term(law.right, pattern)})"
        if law.conclusion is not None:
            then = self.fact(law.conclusion, pattern)
        return f"({' '.join(wanted)}) ({then})"

    def fact(self, fact: Fact, pattern: Mapping[str, str] | None = None) -> str:
        """A condition of a law, what it concludes, or what a goal tells."""
        args = " ".join([self.term(a, pattern) for a in fact.args])
        if fact.relation == "equal":
            return f"(= {args})"
        if fact.relation == "given":
            return f"(!= {args} {self.term(Constant(None))})"
        self.relations.add(fact.relation)
        return f"({_relation(fact.relation)} {args})"

    def setup(self, goal: Goal, asked: Iterable[str]) -> str:
        """The facts that laws ask for, and the terms of a goal."""
        lines = [f"(let $none {self.term(Constant(None))})"]
        for fact in (*goal.facts, *ground_facts(goal)):
            if fact.relation == "equal":
                lines.append(f"(union {' '.join([self.term(a) for a in fact.args])})")
            elif fact.relation in asked:
                lines.append(self.fact(fact))
        lines += [f"(let $seed{n} {self.term(seed)})" for n, seed in enumerate(goal.seeds)]
        lines.append(f"(let $left {self.term(goal.left)})")
        lines.append(f"(let $right {self.term(goal.right)})")
        return "\n" + "\n".join(lines) + "\n"


def prelude(held: Iterable[Spelled]) -> str:
    """The declarations that some texts need."""
    texts = list(held)
    lines = ["(datatype Term (lit String) (var String))"]
    for symbol in sorted({s for spelled in texts for s in spelled.symbols}):
        lines += [f"(constructor {_symbol(symbol)} ({_terms(symbol[1])}) Term)"]
    for name in sorted({r for spelled in texts for r in spelled.relations}):
        lines += [f"(relation {_relation(name)} ({_terms(RELATIONS[name].__code__.co_argcount)}))"]
    return "\n".join(lines) + "\n"


def _terms(count: int) -> str:
    return " ".join(["Term"] * count)


@lru_cache(maxsize=4096)
def _symbol(symbol: Symbol) -> str:
    head, arity = symbol
    return f"{re.sub(r'[^0-9a-zA-Z]', lambda m: f'_{ord(m[0])}_', head)}_{arity}"


def _relation(name: str) -> str:
    return f"is_{name}"


def _constant(constant: Constant) -> str:
    value = constant.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 0 and 0.0 are one number
    return repr(value)


def read(text: str) -> Formula:
    """A term as egglog prints it."""
    tokens = _tokens(text)
    stack: list[list[Any]] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            whole = stack.pop()
            stack[-1].append(_made(whole))
        else:
            stack[-1].append(token)
    (found,) = stack[0]
    assert isinstance(found, Variable | Constant | Application)
    return found


def _tokens(text: str) -> Iterator[str]:
    return (m[0] for m in re.finditer(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()"]+', text))


def _made(whole: list[Any]) -> Formula:
    head, *args = whole
    if head in ("lit", "var"):
        word = json.loads(args[0])
        return Variable(word) if head == "var" else Constant(literal_eval(word))
    plain = str(head).rpartition("_")[0]
    return Application(re.sub(r"_(\d+)_", lambda m: chr(int(m[1])), plain), tuple(args))


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
