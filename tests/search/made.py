"""Run folders made by hand, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archir.search.encodings.encoding import encoding
from archir.search.journal import entry_of
from archir.search.parts import Member

RWE = {"kind": "rwe", "seeds": 1}
SHAPE = (1, 8, 8)
FACTS: Mapping[str, Any] = {
    "event": "search",
    "version": 1,
    "strategy": "rwe",
    "settings": {"population": 40},
    "start": None,
    "data": {"name": "digits", "sha256": "ab" * 32, "images": 1258},
    "seed": 0,
    "limits": {"params": None, "macs": 3_000_000},
    "cost": "macs",
    "device": "cpu",
    "threads": 1,
}


def write_run(
    folder: Path,
    members: Iterable[Member],
    texts: Mapping[int, str],
    *,
    facts: Mapping[str, Any] = FACTS,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    each: int = 0,
    end: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder: its journal, and the texts of members; a generation of ``each`` members."""
    (folder / "members").mkdir(parents=True)
    lines: list[Mapping[str, Any]] = [facts]
    for name, record in (stages or {"search": RWE}).items():
        lines.append({"event": "stage", "stage": name, "evaluator": record})
    for member in members:
        lines.append(entry_of(member))
        if each and (member.number + 1) % each == 0:
            lines.append({"event": "generation", "generation": member.number // each})
    if end is not None:
        lines.append({"event": "end", **end})
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines), "utf-8")
    for number, text in texts.items():
        (folder / "members" / f"{number:04d}.arch").write_text(text, "utf-8")
    return folder


def write_genomes(folder: Path, count: int, *, each: int = 40, seed: int = 0) -> Path:
    """A finished evolution of cells: some were refused, some failed, some are equal to others."""
    space, generator = encoding("nsga_micro", channels=4, layers=2), np.random.default_rng(seed)
    genomes: list[list[int]] = []
    members: list[Member] = []
    texts: dict[int, str] = {}
    for number in range(count):
        before = max(0, (number // each - 1) * each)
        parents = () if number < each else _two(generator, before, number - number % each)
        genome = _child(generator, space, [genomes[p] for p in parents])
        genomes.append(genome)
        status = ("refused", "failed", *["scored"] * 18)[int(generator.integers(20))]
        macs = int(20_000 * (1 + sum(genome)) * generator.uniform(0.8, 1.2))
        score = float(np.tanh(0.35 + number / count / 3 + 0.2 * generator.standard_normal()))
        member = Member(
            number=number,
            stage="search",
            parents=parents,
            origin=space.origin(genome, classes=10, shape=SHAPE),
            seed=1,
            status=status,  # type: ignore[arg-type]
            reason="" if status == "scored" else f"A312: the result would have {macs:,} macs",
            params=macs // (15 + number % 9),
            macs=macs,
            graph=f"{number:064x}",
            scores={"score": score, "accuracy": score, "std": 0.01} if status == "scored" else {},
            history=({"initialisation": 0, "accuracy": score},) if status == "scored" else (),
        )
        if number % 29 == 28 and members[number - 5].status == "scored":
            twin = members[number - 5]
            member = replace(member, same_as=twin.same_as or twin.number, scores=twin.scores)
        elif status != "refused":
            texts[number] = space.program(genome, classes=10, shape=SHAPE)
        members.append(member)
    best = max((m for m in members if m.status == "scored"), key=lambda m: m.score)
    test = {"best": {"accuracy": 0.5, "correct": 180, "count": 360, "loss": 1.0}}
    end = {"best": best.number, "front": [best.number], "ensemble": [], "test": test}
    return write_run(folder, members, texts, each=each, end=end)


def _two(generator: np.random.Generator, first: int, last: int) -> tuple[int, ...]:
    return tuple(sorted(int(n) for n in generator.integers(first, last, size=2)))


def _child(generator: np.random.Generator, space: Any, parents: list[list[int]]) -> list[int]:
    """A genome with genes of its parents, one of them drawn anew."""
    drawn = list(space.random(generator))
    if not parents:
        return drawn
    picks = generator.integers(len(parents), size=len(drawn))
    genome = [parents[pick][place] for place, pick in enumerate(picks)]
    place = int(generator.integers(len(drawn)))
    return [*genome[:place], drawn[place], *genome[place + 1 :]]
