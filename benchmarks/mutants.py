"""Mutants of the whole library: every one refuted, or proved to be right as well.

uv run python benchmarks/mutants.py
uv run python benchmarks/mutants.py --rule deepen --list
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from archir.ops import installed_ops
from archir.proof.mutants import LEAST, MOST, Judgement, Mutant, brood, judged
from archir.rewrite.library import installed

EQUIVALENT = 0.05
"""The share of mutants that may be right rules."""


def main() -> int:
    """Run the mutants; 1 where one is open, too many are equivalent, or a rule has too few."""
    asked = _arguments()
    ops = installed_ops()
    library = installed(ops)
    names = asked.rule or list(library)
    broods = {name: brood(library.find(name), ops, most=asked.most or None) for name in names}
    made = [mutant for found in broods.values() for mutant in found.mutants]
    refused = sum(found.refused for found in broods.values())
    start = time.perf_counter()
    done: list[Judgement] = []
    for judgement in judged(made, processes=asked.processes):
        done.append(judgement)
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{len(done)} of {len(made)}")
    if sys.stderr.isatty():
        sys.stderr.write("\r")
    seconds = time.perf_counter() - start
    few = [name for name, found in broods.items() if len(found.mutants) < LEAST]
    if asked.json:
        print(json.dumps(_document(done, refused, seconds), indent=1))
    else:
        _report(done, refused, seconds, few, every=asked.list)
    unsettled = any(j.fate == "open" for j in done)
    equivalent = sum(j.fate == "equivalent" for j in done)
    return int(unsettled or equivalent > EQUIVALENT * len(done) or bool(few))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", action="append", help="only this rule (several times: these)")
    parser.add_argument("--most", type=int, default=MOST, help="for each rule; 0 for all there are")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="show every mutant")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _document(done: Sequence[Judgement], refused: int, seconds: float) -> dict[str, object]:
    fates = Counter(j.fate for j in done)
    return {
        "made": len(done),
        **{fate: fates[fate] for fate in ("refuted", "equivalent", "open")},
        "fits_nowhere": sum(not j.fits for j in done),
        "refused_when_read": refused,
        "seconds": round(seconds, 1),
        "mutants": [asdict(j) for j in done],
    }


def _report(
    done: Sequence[Judgement], refused: int, seconds: float, few: Sequence[str], *, every: bool
) -> None:
    _table("rule", done, lambda m: (m.rule,))
    _table("operator", done, lambda m: m.operators)
    for judgement in done:
        if every or judgement.fate != "refuted":
            _one(judgement)
    for name in few:
        print(f"{name} has fewer than {LEAST} mutants")
    fates = Counter(j.fate for j in done)
    share = 100 * fates["equivalent"] / max(len(done), 1)
    print(
        f"{len(done)} mutants in {seconds:.0f} s: {fates['refuted']} refuted, "
        f"{fates['equivalent']} equivalent ({share:.1f} %, at most {100 * EQUIVALENT:.0f}), "
        f"{fates['open']} open; {refused} more were refused when they were read"
    )


def _table(title: str, done: Sequence[Judgement], of: Callable[[Mutant], tuple[str, ...]]) -> None:
    rows: dict[str, Counter[str]] = {}
    for judgement in done:
        for name in of(judgement.mutant):
            counts = rows.setdefault(name, Counter())
            counts.update(["made", judgement.fate] + ["nowhere"] * (not judgement.fits))
    wide = max((len(name) for name in rows), default=0)
    heads = ("made", "refuted", "nowhere", "equivalent", "open")
    print(f"{title:<{wide}}" + "".join(f"{h:>12}" for h in heads))
    for name, counts in sorted(rows.items()):
        print(f"{name:<{wide}}" + "".join(f"{counts[h] or '-':>12}" for h in heads))
    print()


def _one(judgement: Judgement) -> None:
    mutant = judgement.mutant
    print(f"{judgement.fate}: {mutant.rule}, {mutant.operator}, {'; '.join(mutant.places)}")
    why = f"{judgement.why}, from {', '.join(judgement.axioms)}" if judgement.axioms else ""
    print(f"    {why or judgement.why}")


if __name__ == "__main__":
    sys.exit(main())
