"""Verdicts: what is known of a rule, as values that are kept and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

from archir.proof.axiom_texts import texts_hash, texts_in
from archir.proof.instances import Aspect, Counterexample
from archir.rewrite.library import GROUP
from archir.rewrite.rule import Rule

Kind = Literal["proved", "tested", "refuted", "unknown"]
FILE = "verdicts.json"
FORMAT = "archir-verdicts"
VERSION = 2
_WORST: Sequence[Kind] = ("refuted", "unknown", "tested", "proved")


@dataclass(frozen=True)
class ModeVerdict:
    """The verdict on one thing that a rule promises.

    Args:
        mode: ``eval`` or ``train``: the function kept there; ``shape``: shape and cost claims.
        kind: ``proved`` for every size; ``tested``: equal on ``instances`` small networks;
            ``refuted``; ``unknown``.
        axioms: An irreducible set of axioms that the proof rests on.
        lemmas: For a rule over a class, sets of axioms, each with the lemmas that need it.
        instances: On how many small networks both sides were equal in exact fractions.
        seconds: How long it took.
        reason: Why it is not proved, or why it is refuted without a counterexample.
        counterexample: For a refuted rule.
    """

    mode: Aspect
    kind: Kind
    axioms: tuple[str, ...] = ()
    lemmas: tuple[str, ...] = ()
    instances: int = 0
    seconds: float = 0.0
    reason: str = ""
    misfits: tuple[str, ...] = ()
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdicts on a rule, and what they depend on."""

    rule: str
    hash: str
    axioms: str
    """Hash of the texts of the axioms that its proofs use."""
    operators: tuple[str, ...]
    """For a rule over a class: the operators for which its lemmas were asked."""
    egglog: str
    modes: tuple[ModeVerdict, ...]

    @property
    def kind(self) -> Kind:
        """The weakest verdict of all that the rule promises."""
        return next((k for k in _WORST if any(m.kind == k for m in self.modes)), "unknown")

    def kind_at(self, operators: Iterable[str], kind: Kind | None = None) -> Kind:
        """A verdict (the weakest, if none is given) where a rule meets these operators.

        A proof over a class speaks of the operators that it had lemmas for; elsewhere the rule
        is no more than tested.
        """
        found = kind or self.kind
        if found == "proved" and self.operators and not set(operators) <= set(self.operators):
            return "tested"
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "rule": self.rule,
            "hash": self.hash,
            "axioms": self.axioms,
            "operators": list(self.operators),
            "egglog": self.egglog,
            "kind": self.kind,
            "modes": [
                {
                    **{k: v for k, v in asdict(m).items() if v or k == "instances"},
                    "seconds": round(m.seconds, 2),
                    **({"counterexample": m.counterexample.to_json()} if m.counterexample else {}),
                }
                for m in self.modes
            ],
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Verdict:
        """What :meth:`to_json` gave.

        Raises:
            KeyError: an entry is missing.
        """
        return Verdict(
            str(raw["rule"]),
            str(raw["hash"]),
            str(raw["axioms"]),
            tuple(raw["operators"]),
            str(raw["egglog"]),
            tuple(_mode(m) for m in raw["modes"]),
        )


def _mode(raw: Mapping[str, Any]) -> ModeVerdict:
    against = raw.get("counterexample")
    return ModeVerdict(
        raw["mode"],
        raw["kind"],
        tuple(raw.get("axioms", ())),
        tuple(raw.get("lemmas", ())),
        int(raw["instances"]),
        float(raw["seconds"]),
        str(raw.get("reason", "")),
        tuple(raw.get("misfits", ())),
        None
        if against is None
        else Counterexample(**{**against, "index": tuple(against["index"])}),
    )


def verdict_of(
    rule: Rule, folder: Traversable, texts: Mapping[str, str] | None = None
) -> Verdict | None:
    """The verdict that a package ships for a rule; needs no egglog.

    None where there is none for this text of the rule, or where an axiom that its proofs use is
    gone or another. ``texts`` are the axioms that there are; else they are those of the folder.
    """
    entry = folder.joinpath(FILE)
    if not entry.is_file():
        return None
    raw = _rules(entry.read_text(encoding="utf-8")).get(rule.hash)
    if raw is None:
        return None
    found = Verdict.from_json(raw)
    used = {name for mode in found.modes for name in mode.axioms}
    there = texts_in(folder) if texts is None else texts
    return found if texts_hash(used, there) == found.axioms else None


@lru_cache(maxsize=16)
def _rules(text: str) -> Mapping[str, Any]:
    document = json.loads(text)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        return {}
    rules: Mapping[str, Any] = document["rules"]
    return rules


def shipped(rule: Rule, points: Sequence[EntryPoint] | None = None) -> Verdict | None:
    """The verdict that any installed package ships for a rule."""
    held = entry_points(group=GROUP) if points is None else points
    folders = [files(point.value) for point in held]
    texts = {name: text for folder in folders for name, text in texts_in(folder).items()}
    for folder in folders:
        found = verdict_of(rule, folder, texts)
        if found is not None:
            return found
    return None


def document_of(verdicts: Sequence[Verdict]) -> str:
    """The text of a ``verdicts.json``."""
    rules = {v.hash: v.to_json() for v in sorted(verdicts, key=lambda v: v.rule)}
    return json.dumps({"format": FORMAT, "version": VERSION, "rules": rules}, indent=1) + "\n"
