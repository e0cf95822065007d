"""The commands that make a member of a search again, and that check it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archir.applying import setting
from archir.proof.certificate import Certificate
from archir.search.engine import MEMBERS
from archir.search.parts import Member

WIDE = 48
"""Characters of a line of a command after which the next option goes to the next line."""


@dataclass(frozen=True)
class Told:
    """What commands need to know of a run."""

    folder: Path
    """The run folder, as the commands name it."""
    facts: Mapping[str, Any]
    """The first line of its journal."""
    data_seed: int = 0

    def path(self, number: int, suffix: str = ".arch") -> Path:
        """A file of a member."""
        return self.folder / MEMBERS / f"{number:04d}{suffix}"

    def data(self, flag: str) -> list[object]:
        """The options that name the data, as of ``--data`` or ``--calibrate``."""
        drawn = ["--data-seed", self.data_seed] if self.data_seed else []
        return [flag, self.facts["data"]["name"], *drawn]


def commands_of(
    member: Member, run: Told, joined: bool, certificate: Certificate | None
) -> tuple[str, ...]:
    """The commands that make a member again from what the run folder holds, and compare them.

    They write ``NNNN.arch`` where they are run; its weights have the hash that the member's have
    (on a CPU: the order of float sums is that of the same number of threads).

    Args:
        member: The member.
        run: Its run.
        joined: Whether its stage trains on validation images as well.
        certificate: Its certificate; None where it has none.

    Returns:
        Nothing where there is nothing to be made: the member was refused, failed or is another.
    """
    if member.status != "scored" or member.same_as is not None:
        return ()
    trained = certificate is not None and certificate.steps[-1].kind == "train"
    number = f"{member.number:04d}"
    source, lines = _made(member, run, Path(f"{number}.made.arch" if trained else f"{number}.arch"))
    if source is None or not (trained or lines):
        return ()
    if trained:
        lines.append(_train(source, member, run, joined=joined))
        if run.facts.get("device") == "cpu":
            lines.insert(0, f"export OMP_NUM_THREADS={int(run.facts.get('threads', 1))}")
    return (*lines, _words("archir", "diff", f"{number}.arch", run.path(member.number)))


def verifying(member: Member, run: Told) -> str:
    """The command that checks a member's certificate."""
    return _words("archir", "verify", run.path(member.number))


def resuming(folder: Path) -> str:
    """The command that goes on with a run."""
    return _words("archir", "search", "--run", folder, "--resume")


def _made(member: Member, run: Told, target: Path) -> tuple[Path | None, list[str]]:
    """The file that an evaluation began with, and the commands that make it."""
    origin = member.origin
    kind = origin.get("kind")
    parent = run.path(member.parents[0]) if member.parents else run.folder / "start.arch"
    if kind in ("start", "parent"):
        return parent, []
    if kind == "rewrite":
        script = run.path(member.number, ".rules")
        words = ["archir", "rewrite", parent, "--script", script, "--seed", origin.get("seed", 0)]
        return target, [_words(*words, *run.data("--calibrate"), "-o", target)]
    if kind == "genome":
        genome = " ".join(map(str, origin["genome"]))
        words = ["archir", "new", origin["encoding"], "--genome", genome]
        for name, value in origin["settings"].items():
            words += ["--set", f"{name}={setting(value)}"]
        return target, [_words(*words, "-o", target)]
    return None, []


def _train(source: Path, member: Member, run: Told, *, joined: bool) -> str:
    device = run.facts.get("device", "auto")
    words = ["archir", "train", source, *run.data("--data"), *(["--join"] if joined else [])]
    words += ["--recipe", run.path(member.number, ".cert.json"), "--device", device]
    return _words(*words, "-o", f"{member.number:04d}.arch")


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
