"""Random chains of rewrites: many rules in a row on one network, done for real.

Each chain starts from an example with initial weights (statistics far from 0 and 1), takes a
rule of the library that keeps the function, a site and arguments at random, and rewrites, up to
`--length` times, while parameters and MACs stay under `--growth` times the first network's. Each
step is checked exactly, as always. At the end the outputs must have drifted by rounding alone
(float32), the saved network's certificate must verify, and its ONNX file must agree with the
first network's in ONNX Runtime. A rule that assumes weights that are not so (a pruning of
channels that are read) is no step of a chain.

    uv run python benchmarks/chains.py --chains 200 --length 30
    uv run python benchmarks/chains.py --large --chains 5 --length 10
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import archir
from archir.api import Application, Network, rewrite
from archir.diag import ArchirError
from archir.ir.types import AttrValue
from archir.ops.closeness import distance
from archir.proof.drift import measure, random_feeds
from archir.rewrite.rule import Reshaping, Rule
from archir.target import backends

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = 2_000_000
"""Parameters of the networks that short chains start from."""
DRIFT = 1e-5
"""The largest max|a-b| / max|a| of the outputs in float32, first network against last."""
ONNX = 1e-4
"""The same, between the ONNX files."""
TRIES = 12
"""How many sites are tried for one step until the chain ends."""


@dataclass
class Chain:
    """What became of one chain."""

    number: int
    network: str
    steps: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    params: tuple[int, int] = (0, 0)
    drift: float = 0.0
    onnx: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def want(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)


@cache
def starts(*, large: bool) -> tuple[Path, ...]:
    """The examples on one side of the limit."""
    found = sorted(EXAMPLES.glob("*.arch"))
    return tuple(p for p in found if (archir.load(p).cost().params >= SMALL) == large)


def run(number: int, seed: int, length: int, growth: float, large: bool) -> Chain:
    """One chain, from its number alone."""
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    start = time.perf_counter()
    choices = starts(large=large)
    path = choices[number % len(choices)]
    first = archir.load(path, ignore_weights=True).init(number, random_statistics=True)
    chain = Chain(number, path.stem)
    last = first
    try:
        for _ in range(length):
            following = step(first, last, chain, rng, growth)
            if following is None:
                break
            last = following
        finish(first, last, chain)
    except Exception as failure:  # a crash is a finding
        chain.problems.append(f"{type(failure).__name__}: {failure}")
    chain.params = (first.cost().params, last.cost().params)
    chain.seconds = time.perf_counter() - start
    return chain


def step(
    first: Network, last: Network, chain: Chain, rng: np.random.Generator, growth: float
) -> Network | None:
    """One more rewrite, or None where none of some random ones applies."""
    cost = first.cost()
    limits = {"params": int(cost.params * growth), "macs": int(cost.macs * growth)}
    for rule, site, given in offers(last, rng):
        seed = int(rng.integers(1 << 30))
        try:
            done = rewrite(last, [Application(rule.name, site, given)], seed=seed, limits=limits)
        except ArchirError as refusal:
            chain.refused[f"{refusal.diagnostics[0].code} {rule.name}"] += 1
            chain.want(
                refusal.diagnostics[0].code not in ("A401", "A403", "A405"),
                f"{rule.name}@{site} {given} --seed {seed}: {refusal.diagnostics[0].message}",
            )
            continue
        if any(use.read for use in done.uses):
            chain.refused[f"assumption {rule.name}"] += 1
            continue
        settings = "".join(f" {k}={v}" for k, v in given.items())
        chain.steps.append(f"{rule.name}@{site}{settings}")
        return done.network
    return None


def offers(
    network: Network, rng: np.random.Generator
) -> Iterator[tuple[Rule, str, dict[str, AttrValue]]]:
    """Rules that keep the function, each at a random site of its, with random arguments."""
    rules = [r for r in network.library.values() if r.contract.function]
    for place in rng.permutation(len(rules))[: 4 * TRIES]:
        rule = rules[place]
        sites = network.planner.sites(rule)
        if not sites:
            continue
        site = sites[int(rng.integers(len(sites)))]
        given = network.planner.example_arguments(rule, site.at)
        width = given.get("width")
        if isinstance(rule.body, Reshaping) and site.size and isinstance(width, int):
            most = site.size - 1 if width < site.size else 2 * site.size
            width = int(rng.integers(min(width, most), max(width, most) + 1))
            if not isinstance(network.explain(rule.name, site.at, width=width), ArchirError):
                given["width"] = width
        yield rule, site.at, given


def finish(first: Network, last: Network, chain: Chain) -> None:
    """What must hold of the last network."""
    assert first.weights is not None
    assert last.weights is not None
    sides = (first.graph, first.weights), (last.graph, last.weights)
    drift = measure(*sides, first.ops, backends()["torch"].forward, batch=2)
    chain.drift = drift.value
    chain.want(drift.finite and drift.value <= DRIFT, f"drift {drift.value:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        saved = last.save(Path(folder) / "last.arch")
        findings = archir.load(saved).verify()
        chain.want(bool(findings), "nothing was verified")
        chain.problems += [f"verify: {f.subject}: {f.detail}" for f in findings if not f.holds]
        chain.onnx = onnx_distance(first, last, Path(folder))
        chain.want(chain.onnx <= ONNX, f"ONNX files differ by {chain.onnx:.1e}")


def onnx_distance(first: Network, last: Network, folder: Path) -> float:
    """The two ONNX files on the same input, in ONNX Runtime."""
    import onnxruntime

    feeds = random_feeds(first.graph, 2, 3)
    found = []
    for name, network in (("a", first), ("b", last)):
        network.export(folder / f"{name}.onnx")
        session = onnxruntime.InferenceSession(
            folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
        fed = {i.name: feeds[i.name] for i in session.get_inputs()}
        found.append(session.run(None, fed))
    return max(map(distance, *found))


def main() -> int:
    """Run the chains and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--growth", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="start from the large examples")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every chain here")
    given = parser.parse_args()
    console = Console(stderr=True)
    numbers = range(given.first, given.first + given.chains)
    chains: list[Chain] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(given.jobs) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("chains", total=len(numbers))
        futures = [
            pool.submit(run, n, given.seed, given.length, given.growth, given.large)
            for n in numbers
        ]
        for future in futures:
            chains.append(future.result())
            progress.advance(task)
            for problem in chains[-1].problems:
                console.print(f"chain {chains[-1].number} ({chains[-1].network}): {problem}")
    print(summary(chains))
    if given.json:
        given.json.write_text(json.dumps([asdict(c) for c in chains], indent=1))
    return 1 if any(c.problems for c in chains) else 0


def summary(chains: list[Chain]) -> str:
    """Counts and the worst figures."""
    used = Counter(s.partition("@")[0] for c in chains for s in c.steps)
    refused: Counter[str] = sum((c.refused for c in chains), Counter())
    grown = max(b / a for a, b in (c.params for c in chains))
    size = f"at most {max(len(c.steps) for c in chains)} in a row, parameters x{grown:.1f} at most"
    far = (
        f"drift {max(c.drift for c in chains):.1e}, ONNX {max(c.onnx for c in chains):.1e} at worst"
    )
    failed, seconds = sum(bool(c.problems) for c in chains), sum(c.seconds for c in chains)
    return "\n".join(
        [
            f"{len(chains)} chains, {sum(used.values())} rewrites, {size}",
            far,
            f"{failed} chains with problems, {seconds:.0f} s",
            "rules: " + ", ".join(f"{name} {count}" for name, count in used.most_common()),
            "refused: " + ", ".join(f"{name} {count}" for name, count in refused.most_common(12)),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
