"""What it costs to evaluate elsewhere: in processes of a pool, or on Ray.

Evaluations that do nothing (the score is the number of parameters) of one network with weights
and a history, one at a time on one worker: what is left is files, pipes and Ray. Executors take
turns; each round is a number of evaluations, the first one is not counted.

    python benchmarks/executors.py
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from measure import machine

import archir
from archir.search.cluster import Ray
from archir.search.executors import Executor, InProcess, Pool
from archir.search.proxies import Params
from archir.search.work import DataRef, Job
from archir.train.data import load_data

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default=str(ROOT / "examples" / "resnet20.arch"))
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    dataset = load_data("digits")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        root = Path(name)
        network = archir.load(options.network).init(0)
        start = network.save(root / "start.arch", lineage=root / "lineage")
        begun: dict[str, float] = {}
        executors: dict[str, Executor] = {}
        compared: list[tuple[str, Executor]] = [
            ("in process", InProcess(dataset)),
            ("pool", Pool(1)),
            ("ray", Ray(dataset, workers=1, device="cpu")),
        ]
        for what, made in compared:
            clock = time.perf_counter()
            executors[what] = stack.enter_context(made)
            executors[what].run(jobs(root, f"{what} first", start, dataset.sha256, 1), lambda _: 0)
            begun[what] = time.perf_counter() - clock
        times: dict[str, list[float]] = {what: [] for what in executors}
        for number in range(options.rounds + 1):
            for what, executor in executors.items():
                todo = jobs(root, f"{what} {number}", start, dataset.sha256, options.evaluations)
                clock = time.perf_counter()
                executor.run(todo, lambda _: 0)
                if number:
                    times[what].append((time.perf_counter() - clock) / options.evaluations)
    print(machine())
    for what, seconds in times.items():
        ordered = sorted(1e3 * s for s in seconds)
        print(
            f"{what}: {statistics.median(ordered):.1f} ms an evaluation "
            f"({ordered[0]:.1f} to {ordered[-1]:.1f}), the first one after {begun[what]:.1f} s"
        )


def jobs(root: Path, name: str, start: Path, digest: str, count: int) -> list[Job]:
    """As many evaluations of one network, each in a folder of its own."""
    found = []
    for number in range(count):
        folder = root / name.replace(" ", "_") / str(number)
        folder.mkdir(parents=True)
        found.append(
            Job(
                number=number,
                key=f"{name} {number}",
                evaluator=Params(),
                network=start,
                data=DataRef("digits", 0, digest),
                seed=0,
                folder=folder,
                lineage=root / "lineage",
                device="cpu",
            )
        )
    return found


if __name__ == "__main__":
    main()
