"""Cost against size: networks of 10^2 to 10^5 nodes through every stage.

Three shapes. `chain` is a plain deep network in blocks and repeats: a short text, every layer
alike. `stream` is one residual stream through all blocks: one class of axes in all of them.
`dense` is written flat, a statement a node: residual blocks and dense blocks whose widths differ
from place to place. Channels are few, so that what is timed is the compiler and
not the arithmetic. Each network is built in a process of its own; its peak memory before the
backends are loaded is shown. Of several runs the median is kept. The exponent is the slope of
log t over log n between the two largest networks: 1 is linear.

    uv run python benchmarks/scale.py [--most 100000] [--repeats 3] [--shape chain]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from archir.diag import Source
from archir.ir.check import check
from archir.ir.graph import Graph
from archir.ir.hash import graph_hash
from archir.lang import load, parse, print_graph, revise
from archir.ops import installed_ops
from archir.ops.cost import cost
from archir.ops.infer import infer
from archir.rewrite.library import installed
from archir.rewrite.sites import Planner
from archir.target import backends
from archir.weights.init import init_weights

SIZES = (100, 1_000, 10_000, 100_000)


def chain(nodes: int) -> str:
    """Convolution, batch norm, ReLU, over and over: blocks of blocks, three levels deep."""
    units = max(1, (nodes - 4) // 3)
    tens, rest = divmod(units, 10)
    hundreds, tens = divmod(tens, 10)
    parts = [(hundreds, "hundred"), (tens, "ten"), (rest, "unit")]
    stages = " |> ".join(f"{n} * {name}(4)" for n, name in parts if n)
    return f"""version 1
block unit(width) {{
    output input |> conv: conv(width, 3, bias = false) |> bn: batch_norm |> relu
}}
block ten(width) {{ output input |> 10 * unit(width) }}
block hundred(width) {{ output input |> 10 * ten(width) }}
arch chain(classes = 10) {{
    input image: f32[N, 4, 8, 8]
    body = image |> {stages}
    output logits = body |> pool: global_avg_pool |> fc: linear(classes)
}}
"""


def stream(nodes: int) -> str:
    """Residual blocks on one stream, whose channels are one class."""
    return f"""version 1
block residual(width) {{
    y = input |> conv1: conv(width, 3, bias = false) |> bn1: batch_norm |> relu
              |> conv2: conv(width, 3, bias = false) |> bn2: batch_norm
    output relu(y + input)
}}
arch stream(classes = 10) {{
    input image: f32[N, 3, 8, 8]
    stem = image |> conv: conv(4, 3)
    body = stem |> {max(1, (nodes - 4) // 7)} * residual(4)
    output logits = body |> pool: global_avg_pool |> fc: linear(classes)
}}
"""


def dense(nodes: int) -> str:
    """Residual and dense blocks in turn, a statement a node."""
    lines = ["version 1", "arch dense {", "input image: f32[N, 3, 8, 8]"]
    lines.append("stem = conv(image, 4, 3)")
    count, block, last = 2, 0, "stem"
    while count < nodes - 2:
        name, width = f"b{block}", 4 + block % 13
        before = len(lines)
        if block % 2:
            lines += _dense(name, last, width)
        else:
            lines += _residual(name, last, width)
        last = f"{name}.out"
        count += len(lines) - before
        block += 1
    lines += [f"pool = global_avg_pool({last})", "fc = linear(pool, 10)", "output logits = fc", "}"]
    return "\n".join(lines) + "\n"


def _residual(name: str, last: str, width: int) -> list[str]:
    return [
        f"{name}.short = conv({last}, {width}, bias = false)",
        f"{name}.conv1 = conv({last}, {width}, 3, bias = false)",
        f"{name}.bn1 = batch_norm({name}.conv1)",
        f"{name}.relu = relu({name}.bn1)",
        f"{name}.conv2 = conv({name}.relu, {width}, 3, bias = false)",
        f"{name}.bn2 = batch_norm({name}.conv2)",
        f"{name}.sum = {name}.bn2 + {name}.short",
        f"{name}.out = relu({name}.sum)",
    ]


def _dense(name: str, last: str, width: int) -> list[str]:
    lines, held = [], [last]
    for layer in range(4):
        at = f"{name}.{layer}"
        joined = held[0]
        if len(held) > 1:
            joined = f"{at}.join"
            lines.append(f"{joined} = concat({', '.join(held)})")
        lines += [
            f"{at}.bn = batch_norm({joined})",
            f"{at}.relu = relu({at}.bn)",
            f"{at}.conv = conv({at}.relu, 4, 3, bias = false)",
        ]
        held.append(f"{at}.conv")
    lines.append(f"{name}.all = concat({', '.join(held)})")
    lines.append(f"{name}.out = conv({name}.all, {width})")
    return lines


SHAPES: dict[str, Callable[[int], str]] = {"chain": chain, "stream": stream, "dense": dense}


class Do(Protocol):
    """Does the work of a stage and hands on what it gives."""

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any: ...


class Clock:
    """Processor time by stage: each works on one thread, and others may be using the machine."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do a stage and note how long it took."""
        gc.collect()
        start = time.process_time()
        done = work()
        self.seconds[stage] = time.process_time() - start
        return done


def front(text: str, do: Do) -> Graph:
    """Every stage that needs no weights."""
    ops = installed_ops()
    rules = installed(ops)
    source = Source("scale.arch", text)
    do("parse", lambda: parse(source))
    program = do("load (with parse)", lambda: load(source, ops))
    graph: Graph = program.graph
    do("well-formedness", lambda: check(graph, "the generator"))
    do("infer", lambda: infer(graph, ops))
    do("cost", lambda: cost(graph, ops))
    do("hash", lambda: graph_hash(graph))
    do("print", lambda: print_graph(graph, ops))
    do("copy the graph", lambda: graph.edit().build())
    planner = Planner(graph, ops)
    deepen = do("match deepen everywhere", lambda: planner.sites(rules["deepen"]))
    do("axis classes", lambda: planner.classes)
    widen = do("sites of widen", lambda: planner.sites(rules["widen"]))
    at = deepen[len(deepen) // 2].at
    plan = do("plan deepen at one site", lambda: planner.plan(rules["deepen"], at, {}))
    do("edit the text", lambda: revise(program, plan.after, ops))
    site = max(widen, key=lambda s: s.size or 0)
    width = {"width": (site.size or 0) + 1}
    do("plan widen at one site", lambda: planner.plan(rules["widen"], site.at, width))
    return graph


def back(graph: Graph, do: Do) -> None:
    """Weights, and the models of the backends."""
    weights = do("initial weights", lambda: init_weights(graph, installed_ops(), 0))
    onnx: Any = backends()["onnx"]
    do("ONNX, built and serialised", lambda: sum(map(len, onnx.serialise(graph, weights))))
    torch: Any = backends()["torch"]
    do("torch module", lambda: torch.lower(graph, weights))


def measure(shape: str, size: int) -> dict[str, Any]:
    """All stages for one network, once, in this process."""
    front(chain(100), lambda stage, work: work())  # grammars and rules are read once
    clock = Clock()
    graph = front(SHAPES[shape](size), clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    back(graph, clock)
    return {"nodes": len(graph), "seconds": clock.seconds, "peak": peak}


def child(shape: str, size: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, "--measure", shape, str(size)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shape} {size}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def slope(small: tuple[int, float], large: tuple[int, float]) -> float:
    """The growth exponent between two sizes."""
    return math.log(large[1] / small[1]) / math.log(large[0] / small[0])


def table(shape: str, found: list[list[dict[str, Any]]]) -> float:
    """Print one shape's table; returns the largest exponent among stages that take a while."""
    nodes = [runs[0]["nodes"] for runs in found]
    print(f"\n{shape}: microseconds a node (seconds at the largest), growth exponent")
    print(f"  {'nodes':<28}" + "".join(f"{n:>10}" for n in nodes) + f"{'seconds':>10}{'exp.':>7}")
    worst = 0.0
    for stage in found[-1][0]["seconds"]:
        times = [
            statistics.median([run["seconds"].get(stage, math.nan) for run in runs])
            for runs in found
        ]
        cells = "".join(f"{t / n * 1e6:>10.2f}" for t, n in zip(times, nodes, strict=True))
        power = slope((nodes[-2], times[-2]), (nodes[-1], times[-1])) if len(nodes) > 1 else 0.0
        worst = max(worst, power)
        print(f"  {stage:<28}{cells}{times[-1]:>10.2f}{power:>7.2f}")
    peaks = [statistics.median([run["peak"] for run in runs]) for runs in found]
    print(f"  {'peak memory, MiB':<28}" + "".join(f"{p:>10.0f}" for p in peaks))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--most", type=int, default=SIZES[-1], metavar="NODES")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=[*SHAPES], action="append")
    parser.add_argument("--measure", nargs=2, metavar=("SHAPE", "NODES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        shape, size = given.measure
        print(json.dumps(measure(shape, int(size))))
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from measure import machine

    print(machine())
    sizes = [size for size in SIZES if size <= given.most]
    for shape in given.shape or SHAPES:
        rounds = [[child(shape, size) for size in sizes] for _ in range(given.repeats)]
        worst = table(shape, [list(runs) for runs in zip(*rounds, strict=True)])
        print(f"  largest exponent {worst:.2f}")


if __name__ == "__main__":
    main()
