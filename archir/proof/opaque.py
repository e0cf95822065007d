"""Terms that a proof need not look into.

A layer with a weight of `initial()` may compute anything. Where that weight stands nowhere else, a
goal holds whatever the layer makes: its result becomes a variable, and what is proved of that
holds of the layer. Without this a proof would work on layers that are read by weights of zero.
"""

from __future__ import annotations

from dataclasses import replace

from archir.proof.terms import Application, Formula, Goal, Variable, parts

FREE = "initial "
"""How the names of the variables begin that stand for such weights."""


def hidden(goal: Goal) -> tuple[Goal, dict[str, Formula]]:
    """The goal with such layers as variables, and what these stand for."""
    sides = [goal.left, goal.right, *goal.seeds, *(a for f in goal.facts for a in f.args)]
    readers: dict[Formula, set[Formula]] = {}
    for term in {p for side in sides for p in parts(side)}:
        for arg in term.args if isinstance(term, Application) else ():
            if isinstance(arg, Variable) and arg.name.startswith(FREE):
                readers.setdefault(arg, set()).add(term)
    alone = sorted({str(next(iter(r))) for r in readers.values() if len(r) == 1 and not _set(*r)})
    names = {text: f"what {number} makes" for number, text in enumerate(alone)}
    values: dict[str, Formula] = {}

    def without(term: Formula) -> Formula:
        if not isinstance(term, Application):
            return term
        name = names.get(str(term))
        if name is not None:
            values[name] = term
            return Variable(name)
        return Application(term.head, tuple(without(a) for a in term.args))

    facts = tuple(replace(f, args=tuple(map(without, f.args))) for f in goal.facts)
    left, right = without(goal.left), without(goal.right)
    return replace(
        goal, left=left, right=right, facts=facts, seeds=tuple(map(without, goal.seeds))
    ), values


def _set(term: Formula) -> bool:
    """Whether another weight of a layer is filled with a number, which may tell what it makes."""
    args = term.args if isinstance(term, Application) else ()
    return any(isinstance(a, Application) and a.head == "fill" for a in args)
