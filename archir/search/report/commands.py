"""The commands that make a member of a search again, and that check it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archir.proof.certificate import Certificate
from archir.search.engine import MEMBERS
from archir.search.parts import Member

WIDE = 48
"""Characters of a line of a command after which the next option goes to the next line."""


@dataclass(frozen=True)
class Commands:
    """What is typed, line by line, and what comes of it."""

    lines: tuple[str, ...]
    note: str = ""


def commands_of(
    member: Member, folder: Path, facts: Mapping[str, Any], certificate: Certificate | None
) -> Commands | None:
    """The commands that make a member again from what the run folder holds.

    They write ``NNNN.arch`` where they are run; its weights have the hash that the member's have
    (on a CPU: the order of float sums is that of the same number of threads).

    Args:
        member: The member.
        folder: The run folder, as the commands name it.
        facts: The first line of the journal.
        certificate: The member's; None where it has none.

    Returns:
        None where there is nothing to be made: the member was refused, failed or is another one.
    """
    if member.status != "scored" or member.same_as is not None:
        return None
    number = f"{member.number:04d}"
    trained = certificate is not None and any(
        step.kind == "train" for step in certificate.steps[-1:]
    )
    source, made = _made(member, folder, facts, f"{number}.made.arch" if trained else None)
    if source is None:
        return None
    lines = [*made]
    if trained:
        lines.append(_train(source, number, folder, facts))
    if not lines:
        return None
    if facts.get("device") == "cpu" and trained:
        lines.insert(0, f"export OMP_NUM_THREADS={int(facts.get('threads', 1))}")
    lines.append(_words("archir", "diff", f"{number}.arch", folder / MEMBERS / f"{number}.arch"))
    return Commands(tuple(lines))


def verifying(member: Member, folder: Path, certificate: Certificate | None) -> str | None:
    """The command that checks a member's certificate; None where it has none."""
    if certificate is None:
        return None
    return _words("archir", "verify", folder / MEMBERS / f"{member.number:04d}.arch")


def resuming(folder: Path) -> str:
    """The command that goes on with a run."""
    return _words("archir", "search", "--run", folder, "--resume")


def _made(
    member: Member, folder: Path, facts: Mapping[str, Any], between: str | None
) -> tuple[Path | None, Sequence[str]]:
    """The file that an evaluation began with, and the commands that make it."""
    number = f"{member.number:04d}"
    origin, target = member.origin, Path(between or f"{number}.arch")
    kind = origin.get("kind")
    parents = [folder / MEMBERS / f"{p:04d}.arch" for p in member.parents]
    if kind == "start":
        return folder / "start.arch", ()
    if kind == "parent" and parents:
        return parents[0], ()
    if kind == "rewrite":
        parent = parents[0] if parents else folder / "start.arch"
        script = folder / MEMBERS / f"{number}.rules"
        words = ["archir", "rewrite", parent, "--script", script, "--seed", origin.get("seed", 0)]
        if member.params:
            words += ["--calibrate", facts["data"]["name"]]
        return target, [_words(*words, "-o", target)]
    return None, ()


def _train(source: Path, number: str, folder: Path, facts: Mapping[str, Any]) -> str:
    return _words(
        "archir", "train", source, "--data", facts["data"]["name"],
        "--recipe", folder / MEMBERS / f"{number}.cert.json",
        "--device", facts.get("device", "auto"), "-o", f"{number}.arch",
    )  # fmt: skip


def _words(*words: object) -> str:
    """Words as a shell takes them; a long command on several lines, an option on one."""
    lines = [""]
    for word in map(str, words):
        said = shlex.quote(word)
        option = word.startswith("-")
        if option and len(lines[-1]) + len(said) > WIDE:
            lines.append("   ")
        lines[-1] += f" {said}" if lines[-1] else said
    return " \\\n".join(lines)
