"""Random chains of rewrites: many rules in a row on one network, done for real.

Each chain starts from an example with initial weights (statistics far from 0 and 1), takes a
rule of the library that keeps the function, a site and arguments at random, and rewrites, up to
`--length` times, while parameters and MACs stay under `--growth` times the first network's. Each
step is checked exactly, as always. At the end the outputs must have drifted by rounding alone
(float32), the saved network's certificate must verify, and its ONNX file must agree with the
first network's in ONNX Runtime. Every fourth chain is then taken back whole, which must give the
first network bit for bit. A rule that assumes weights that are not so (a pruning of channels that
are read) is no step of a chain; where they are so, by an earlier step, it is tried first now and
then, so that what was put in is also taken out.

    uv run python benchmarks/chains.py --chains 200 --length 30 --log chains.jsonl
    uv run python benchmarks/chains.py --large --chains 5 --length 10

With `--log` each chain is written down once it is done, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import archir
from archir.api import Application, Network, Rewritten, library, rewrite
from archir.diag import ArchirError
from archir.ir.graph import Value
from archir.ir.types import AttrValue
from archir.ops import installed_ops
from archir.ops.arithmetic import Array, Floating
from archir.ops.closeness import distance
from archir.ops.evaluate import run as run_reference
from archir.proof.drift import measure, random_feeds
from archir.proof.uses import Use
from archir.rewrite.match import Matcher
from archir.rewrite.rule import Reshaping, Rule
from archir.rewrite.sites import looks_at_weights
from archir.rewrite.sources import paths_of
from archir.target import backends
from archir.weights.functions import evaluate
from archir.weights.terms import Ref

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = 2_000_000
"""Parameters of the networks that short chains start from."""
DRIFT = 1e-5
"""The largest max|a-b| / max|a| of the outputs in float32, first network against last.

Thirty steps may round more than that. Such a chain is done again in double precision, weight maps
and all, where the same outputs must agree within ``DOUBLE``: then rounding is all it was.
"""
DOUBLE = 1e-9
ONNX = 1e-4
"""The same, between the ONNX files."""
TRIES = 48
"""How many rules are tried for one step until the chain ends."""
BACK = 0.3
"""How often the rules that look at the weights are tried first."""
REFUSALS = ("A312", "A314")
"""What may refuse a rule at a site that was listed: a limit, or weights not as it assumes."""
TAKEN_BACK = 4
"""Every so manieth chain is taken back whole."""


@dataclass
class Chain:
    """What became of one chain."""

    number: int
    network: str
    steps: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    params: tuple[int, int] = (0, 0)
    drift: float = 0.0
    double: float | None = None
    onnx: float = 0.0
    taken_back: bool = False
    seconds: float = 0.0
    each: list[float] = field(default_factory=list)
    """Seconds of the processor for each step, the offers that were refused included; then for
    what is looked at in the end."""
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
    chain = Chain(number, path.stem)
    first = last = archir.load(path, ignore_weights=True).init(number, random_statistics=True)
    uses: list[Use] = []
    try:
        for _ in range(length):
            spent = time.process_time()
            done = step(first, last, chain, rng, growth)
            if done is None:
                break
            last = done.network
            uses += done.uses
            chain.each.append(round(time.process_time() - spent, 2))
        spent = time.process_time()
        finish(first, last, uses, chain)
        chain.each.append(round(time.process_time() - spent, 2))
    except Exception as failure:  # a crash is a finding
        where = traceback.extract_tb(failure.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        chain.problems.append(f"{type(failure).__name__} at {place}: {failure}")
    chain.params = (first.cost().params, last.cost().params)
    chain.seconds = time.perf_counter() - start
    return chain


def step(
    first: Network, last: Network, chain: Chain, rng: np.random.Generator, growth: float
) -> Rewritten | None:
    """One more rewrite, or None where none of some random ones applies."""
    cost = first.cost()
    limits = {"params": int(cost.params * growth), "macs": int(cost.macs * growth)}
    for rule, site, given in offers(last, rng):
        seed = int(rng.integers(1 << 30))
        try:
            done = rewrite(last, [Application(rule.name, site, given)], seed=seed, limits=limits)
        except ArchirError as refusal:
            code = refusal.diagnostics[0].code
            chain.refused[f"{code} {rule.name}"] += 1
            chain.want(
                code in REFUSALS,
                f"{rule.name}@{site} {given} --seed {seed}: {code} {refusal.diagnostics[0].message}"
                f" after {chain.steps}",
            )
            continue
        if any(use.read for use in done.uses):
            chain.refused[f"assumption {rule.name}"] += 1
            continue
        settings = "".join(f" {k}={v}" for k, v in given.items())
        chain.steps.append(f"{rule.name}@{site}{settings}")
        return done
    return None


def offers(
    network: Network, rng: np.random.Generator
) -> Iterator[tuple[Rule, str, dict[str, AttrValue]]]:
    """Rules that keep the function, each at a random site of its, with random arguments."""
    rules = [r for r in network.library.values() if r.contract.function]
    order = [rules[place] for place in rng.permutation(len(rules))]
    if rng.random() < BACK:
        order.sort(key=lambda rule: not looks_at_weights(rule))
    for rule in order[:TRIES]:
        sites = network.planner.sites(rule)
        if not sites:
            continue
        site = sites[int(rng.integers(len(sites)))]
        given = network.planner.example_arguments(rule, site.at)
        whole = {p.name: p.default for p in rule.parameters if p.default is not None} | given
        for name in paths_of(rule):
            found = Matcher(rule, network.graph, network.ops, whole).fitting(site.at, name)
            given[name] = str(found[int(rng.integers(len(found)))]) if found else given[name]
        width = given.get("width")
        if isinstance(rule.body, Reshaping) and site.size and isinstance(width, int):
            most = site.size - 1 if width < site.size else 2 * site.size
            width = int(rng.integers(min(width, most), max(width, most) + 1))
            if not isinstance(network.explain(rule.name, site.at, width=width), ArchirError):
                given["width"] = width
        yield rule, site.at, given


def finish(first: Network, last: Network, uses: Sequence[Use], chain: Chain) -> None:
    """What must hold of the last network."""
    assert first.weights is not None
    assert last.weights is not None
    sides = (first.graph, first.weights), (last.graph, last.weights)
    drift = measure(*sides, first.ops, backends()["torch"].forward, batch=2)
    chain.drift = drift.value
    if drift.value > DRIFT:
        chain.double = in_double(first, uses)
    fine = drift.value <= DRIFT or (chain.double is not None and chain.double <= DOUBLE)
    chain.want(drift.fine and fine, f"drift {drift.value:.1e}, in double {chain.double}")
    with tempfile.TemporaryDirectory() as folder:
        saved = last.save(Path(folder) / "last.arch")
        read = archir.load(saved)
        findings = read.verify()
        chain.want(bool(findings), "nothing was verified")
        chain.problems += [f"verify: {f.subject}: {f.detail}" for f in findings if not f.holds]
        chain.onnx = onnx_distance(first, last, Path(folder))
        chain.want(chain.onnx <= ONNX, f"ONNX files differ by {chain.onnx:.1e}")
        if chain.steps and chain.number % TAKEN_BACK == 0:
            take_back(first, read, chain)


def take_back(first: Network, last: Network, chain: Chain) -> None:
    """Undo every step of a network that was saved: what there was, bit for bit."""
    found = last.undo(steps=len(chain.steps)).network
    assert first.weights is not None
    assert found.weights is not None
    chain.want(found.text == first.text, "taken back, the text is another")
    same: bool = first.weights.keys() == found.weights.keys() and all(
        array.tobytes() == found.weights[path].tobytes() for path, array in first.weights.items()
    )
    chain.want(same, "taken back, the weights are others")
    chain.taken_back = True


def in_double(first: Network, uses: Sequence[Use]) -> float:
    """How far the outputs move where weights, maps and networks are in double precision."""
    assert first.weights is not None
    k = Floating(np.float64)
    start = {path: lifted(array) for path, array in first.weights.items()}
    graph, weights = first.graph, start
    for use in uses:
        graph = use.plan.after
        terms = {path: use.plan.terms.get(path, Ref(path)) for path in graph.parameters}
        weights = {path: evaluate(term, k, weights) for path, term in terms.items()}
    feeds = {Value(n): lifted(a) for n, a in random_feeds(first.graph, 0, 2).items()}
    found = []
    for side, held in ((first.graph, start), (graph, weights)):
        values = run_reference(side, first.ops, k, feeds, held).values
        found.append([values[o.value] for o in side.outputs])
    return max(map(distance, *found))


def lifted(array: Array) -> Array:
    """Floats in double precision; whole numbers as they are."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array


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
    parser.add_argument("--log", type=Path, help="write each chain here; those there are done")
    given = parser.parse_args()
    console = Console(stderr=True)
    log = given.log
    chains = read_log(log) if log is not None and log.exists() else []
    done = {chain.number for chain in chains}
    numbers = [n for n in range(given.first, given.first + given.chains) if n not in done]
    small = [len(archir.load(p, ignore_weights=True).graph) for p in starts(large=given.large)]
    numbers.sort(key=lambda n: small[n % len(small)])
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(given.jobs, initializer=one_thread)
    with pool, Progress(*columns, console=console) as progress:
        task = progress.add_task("chains", total=len(numbers))
        futures = [
            pool.submit(run, n, given.seed, given.length, given.growth, given.large)
            for n in numbers
        ]
        for future in as_completed(futures):
            chain = future.result()
            chains.append(chain)
            progress.advance(task)
            for problem in chain.problems:
                console.print(f"chain {chain.number} ({chain.network}): {problem}", markup=False)
            if log is not None:
                add_to_log(log, chain)
    print(summary(chains))
    return 1 if any(c.problems for c in chains) else 0


def one_thread() -> None:
    """The cores are taken by the processes."""
    import torch

    torch.set_num_threads(1)


def add_to_log(path: Path, chain: Chain) -> None:
    """One more line."""
    with path.open("a") as file:
        file.write(json.dumps(vars(chain)) + "\n")


def read_log(path: Path) -> list[Chain]:
    """The chains that were done before."""
    found = [Chain(**json.loads(line)) for line in path.read_text().splitlines()]
    for chain in found:
        chain.refused = Counter(chain.refused)
        chain.params = (chain.params[0], chain.params[1])
    return found


def summary(chains: Sequence[Chain]) -> str:
    """Counts and the worst figures."""
    if not chains:
        return "no chains"
    used = Counter(s.partition("@")[0] for c in chains for s in c.steps)
    refused: Counter[str] = sum((c.refused for c in chains), Counter())
    kept = [r.name for r in library(installed_ops()).values() if r.contract.function]
    never = [name for name in kept if name not in used]
    longest = max(len(c.steps) for c in chains)
    grown = max(b / a for a, b in (c.params for c in chains))
    drift, onnx = max(c.drift for c in chains), max(c.onnx for c in chains)
    twice = [c.double for c in chains if c.double is not None]
    again = f", {max(twice):.1e} in double precision" if twice else ""
    back, failed = sum(c.taken_back for c in chains), sum(bool(c.problems) for c in chains)
    done = f"{len(chains)} chains, {sum(used.values())} rewrites, at most {longest} in a row"
    seconds = sum(c.seconds for c in chains)
    counts = ", ".join(f"{name} {count}" for name, count in used.most_common())
    most = ", ".join(f"{name} {count}" for name, count in refused.most_common(20))
    lines = [
        f"{done}, parameters x{grown:.1f} at most",
        f"drift {drift:.1e}, ONNX {onnx:.1e} at worst",
        f"{len(twice)} chains drifted beyond {DRIFT:.0e}{again}",
        f"{back} taken back whole, {failed} with problems, {seconds:.0f} s",
        f"{len(used)} of {len(kept)} rules: {counts}",
        f"never used: {', '.join(never) or 'none'}",
        f"refused: {most or 'none'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
