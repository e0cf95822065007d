"""Random networks through text, backends and rules: the long run of tests/fuzz.

Each network is printed and read back, run by NumPy, torch and ONNX Runtime, and rewritten by
every rule at every site, each use checked exactly. What fails is made small and shown (and
kept in a folder, with `--failures`). The same seed gives the same networks.

    uv run python benchmarks/fuzz.py --networks 2000 --seed 1
    uv run python benchmarks/fuzz.py --file failing.arch
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from archir.files import read_source  # noqa: E402
from archir.lang import load  # noqa: E402
from archir.ops import STANDARD  # noqa: E402
from tests.fuzz import checks, networks, reduce  # noqa: E402 - tests are no package to install


@dataclass
class Run:
    """What a run has found so far."""

    networks: int = 0
    nodes: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    tally: checks.Tally = field(default_factory=checks.Tally)
    far: dict[str, tuple[float, str]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[str, reduce.Failure]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)

    def try_case(self, name: str, make: Callable[[], networks.Case]) -> None:
        """Put a network through every check."""
        self.networks += 1
        case = make()
        self.nodes += len(case.graph)
        self.ops.update(node.op for node in case.graph)
        for check in checks.CHECKS:
            start = time.perf_counter()
            try:
                found = check(case)
            except Exception as failure:  # a crash is a finding too
                self._failed(name, check, case, failure)
            else:
                self._note(name, found)
            self.seconds[check.__name__] += time.perf_counter() - start

    def _note(self, name: str, found: Any) -> None:
        if isinstance(found, checks.Tally):
            self.tally += found
        elif found:
            for who, amount in found.items():
                self.far[who] = max(self.far.get(who, (0.0, "")), (amount, name))

    def _failed(
        self, name: str, check: reduce.Check, case: networks.Case, failure: Exception
    ) -> None:
        """Count a failure; the first of its kind is made small."""
        kind = f"{check.__name__}: {type(failure).__name__} {checks.kind(str(failure), case.graph)}"
        self.failed[kind] += 1
        if kind not in self.failures:
            self.failures[kind] = (name, reduce.smallest(check, case))

    def show(self) -> None:
        """Print all counts."""
        print(f"{self.networks} networks, {self.nodes} nodes, {sum(self.failed.values())} failures")
        print("\nnodes by operator")
        _columns(self.ops)
        missing = sorted(set(STANDARD) - set(self.ops))
        print(f"  never: {', '.join(missing) or 'none'}")
        print(f"\n{self.tally.classes} axis classes; uses of rules, each checked exactly")
        _columns(self.tally.uses)
        print("\nexact checks by mode")
        _columns(self.tally.checked)
        print("\nnodes within the checked regions")
        _columns(self.tally.nodes)
        print("\nlayers where a rule over a class was refused, by reason")
        reasons: dict[str, list[str]] = {}
        for refusal, count in self.tally.refusals.most_common():
            rule, _, reason = refusal.partition(": ")
            reasons.setdefault(reason, []).append(f"{rule} {count}")
        for reason, counts in reasons.items():
            print(f"  {reason}\n    {', '.join(counts)}")
        print("\nlargest max|a-b| / max|a| against the reference in float64")
        for who, (amount, name) in sorted(self.far.items()):
            print(f"  {who:<18} {amount:.1e}  ({name})")
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        print(f"\n{spent}")
        for kind, (name, failure) in self.failures.items():
            print(f"\n{self.failed[kind]} x {kind}\nfirst at {name}: {failure}")


def _columns(counts: Counter[str], across: int = 5) -> None:
    cells = [f"{name} {count}" for name, count in counts.most_common()]
    width = max(map(len, cells), default=0)
    for start in range(0, len(cells), across):
        print(
            "  " + "  ".join(f"{cell:<{width}}" for cell in cells[start : start + across]).rstrip()
        )


def _keep(run: Run, folder: Path) -> None:
    """Write each kind of failure's network, with what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, failure) in enumerate(run.failures.values()):
        why = " ".join(failure.message.split())
        text = f"# {why}\n# first at {name}\n{failure.case.text}"
        (folder / f"failure{number}.arch").write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="one network from a file instead")
    parser.add_argument("--failures", type=Path, help="a folder for networks that fail")
    given = parser.parse_args()
    run = Run()
    start = time.perf_counter()
    if given.file:
        graph = load(read_source(given.file), STANDARD).graph
        run.try_case(given.file.name, lambda: networks.Case(graph))
    else:
        bar = Progress(
            "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task("networks", total=given.networks)
            for number in range(given.first, given.first + given.networks):
                run.try_case(
                    f"network {number} of seed {given.seed}",
                    lambda number=number: networks.seeded(given.seed, number),
                )
                bar.advance(task)
                bar.update(task, description=f"networks, {sum(run.failed.values())} failed")
    run.show()
    print(f"{time.perf_counter() - start:.0f} s in all")
    if given.failures:
        _keep(run, given.failures)
    return int(bool(run.failed))


if __name__ == "__main__":
    sys.exit(main())
