"""How long a step of training takes, and how much memory: lowered modules against torchvision's.

A step is a forward pass in training mode, the backward pass and one of SGD with Nesterov
momentum, with the same initial tensors, batch, memory format and settings on both sides. Before
anything is timed both take three steps: losses and gradients must be the same, bit for bit.

Time: both sides in one process, in turn, the first of a round being the second of the next; the
ratio archir / torchvision of each round, their median, and an interval for it between two order
statistics (`archir.measure.interval`), which assumes nothing of the distribution. It has two
sides: its upper end is above the true median with a probability of at least 97.5 %.

Memory: the most that torch's allocator has given out at once in a step, which is the same number
each time (`steps.peak`; on a GPU `torch.cuda.max_memory_allocated`), each side in a process of its
own. Beside it what Linux saw on the CPU ("of the process"): the most that such a process held,
less what it held when all was imported, medians of several in turn (`--repeats-memory`). That
differs by some per cent from run to run, as pages and heaps fall; the allocator's is what counts.

"of matmul": three times the forward pass's multiply-adds (`torch.utils.flop_counter`) by archir's
time, as a share of the multiply-adds a second of a large matrix product, timed here too (on a CPU
in processor time, so that others do not count). Above 100 % convolutions took fewer
multiplications than their definition has (Winograd).

    uv run python benchmarks/training.py [--only resnet18 ...] [--batch 8] [--size 224] [--pairs 30]
        [--threads 1] [--cpu] [--compile] [--channels-last] [--bf16] [--device cuda]
        [--repeats-memory 3] [--log runs/training.jsonl [--again]] [--json]

With `--compile` the code that Inductor writes for both sides is compared too, as text.

Each network is a process of its own, and a line of the log when it is done; what is in the log
with the same settings is not run again. Exit status 1: losses or gradients differ, or a network
could not be run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import steps
import torch
from measure import machine
from torch.utils.flop_counter import FlopCounterMode

import archir
from archir.measure import interval
from archir.target import backends

SCHEMA = 1
WARM_UP = 3
"""Steps of each side that are not timed, beside those of the comparison."""
TIMES, MEMORY = 1.05, 1.02
"""What the ratios are to stay below."""
PEAK_ORDER = 2048
"""Rows and columns of the matrix product that stands for the machine's best."""
Record = dict[str, Any]


# -- in a process of its own


def timed(name: str, recipe: steps.Recipe, pairs: int, clock: str) -> Record:
    """Compare both sides, then time them in turn."""
    sides = steps.both(name, recipe)
    start = time.perf_counter()
    codes = [steps.source(side) for side in sides.values()] if recipe.compiled else []
    agreement = steps.compare(sides)
    for side in sides.values():
        for _ in range(WARM_UP):
            side.step()
    warm_up = time.perf_counter() - start
    taken: dict[str, list[float]] = {label: [] for label in sides}
    load = [os.getloadavg()[0]]
    for pair in range(pairs):
        order = list(sides) if pair % 2 == 0 else list(sides)[::-1]
        for label in order:
            gc.collect()
            taken[label].append(_seconds(sides[label].step, recipe.device, clock))
    load.append(os.getloadavg()[0])
    macs = 3 * _forward_macs(name, recipe)
    return {
        "losses_equal": list(agreement.losses),
        "gradients_equal": agreement.gradients,
        "code_equal": codes[0] == codes[1] if all(codes) and codes else None,
        "seconds": taken,
        "warm_up_s": warm_up,
        "macs_per_step": macs,
        "peak_macs_per_s": _peak_rate(recipe),
        "load": load,
    }


def _seconds(step: Callable[[], object], device: str, clock: str) -> float:
    """How long one step takes; on a GPU between two events on its stream."""
    if device.startswith("cuda"):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    now = time.process_time if clock == "processor" else time.perf_counter
    start = now()
    step()
    return now() - start


def _forward_macs(name: str, recipe: steps.Recipe) -> int:
    side = steps.Side(steps.theirs(name), steps.Recipe(recipe.batch, recipe.size, recipe.device))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        side.loss()
    return counted.get_total_flops() // 2


def _peak_rate(recipe: steps.Recipe) -> float:
    """Multiply-adds a second of a large matrix product, the best of ten."""
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    a = torch.randn(PEAK_ORDER, PEAK_ORDER, device=recipe.device).to(dtype)
    best = min(_seconds(lambda: a @ a, recipe.device, "processor") for _ in range(10))
    threads = 1 if recipe.device.startswith("cuda") else torch.get_num_threads()
    return float(PEAK_ORDER**3 / best * threads)


def held(name: str, label: str, recipe: steps.Recipe, folder: Path) -> Record:
    """The most memory that three steps of one side take, and its module.

    Either process has imported the same, and read the network's file, before it counts: the
    compiler is on neither side.
    """
    backends()["torch"]
    network = archir.load(folder / "net.arch")
    _settle()
    before = _status("VmRSS")
    side = steps.Side(
        steps.ours(name, network) if label == "archir" else steps.theirs(name), recipe
    )
    _settle()  # what making it took beside itself does not count
    for _ in range(3):
        side.step()
    if recipe.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        side.step()
        return {"allocator": torch.cuda.max_memory_allocated(), "process": None}
    process = _status("VmHWM") - before
    return {"allocator": steps.peak(side), "process": process}


def _status(entry: str) -> int:
    """Bytes of an entry of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(entry + ":")).split()[1]) << 10


def _settle() -> None:
    """Give what is free back to the system, and let the largest memory so far be what is held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def work(given: Record) -> Record:
    """What a process is asked for."""
    warnings.simplefilter("ignore")
    recipe = steps.Recipe(**given["recipe"])
    torch.set_num_threads(given["threads"])
    if given["what"] == "time":
        return timed(given["name"], recipe, given["pairs"], given["clock"])
    return held(given["name"], given["side"], recipe, Path(given["folder"]))


# -- in the first process


def asked(given: Mapping[str, Any]) -> Record:
    """The answer of a fresh process, or what went wrong in it."""
    threads = str(given["threads"])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--work", json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **dict.fromkeys(names, threads)},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"failure": lines[-1][:300]}
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def run(name: str, recipe: steps.Recipe, options: argparse.Namespace) -> Record:
    """Time one network and find its memory."""
    clock = "processor" if options.cpu else "clock"
    common = {"name": name, "recipe": asdict(recipe), "threads": options.threads}
    record: Record = {"schema": SCHEMA, **common, "pairs": options.pairs, "clock": clock}
    record["versions"] = f"torch {torch.__version__}, archir {archir.__version__}, {machine()}"
    found = asked({**common, "what": "time", "pairs": options.pairs, "clock": clock})
    if "failure" in found:
        return {**record, **found}
    a, b = found["seconds"]["archir"], found["seconds"]["torchvision"]
    ratios = [ours / theirs for ours, theirs in zip(a, b, strict=True)]
    low, high, level = interval(ratios)
    rate = found["macs_per_step"] / statistics.median(a)
    record |= found | {
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "level": level,
        "of_matmul": rate / found["peak_macs_per_s"],
    }
    if options.repeats_memory and not recipe.compiled:
        record["memory"] = memory(name, common, options.repeats_memory)
    return record


def memory(name: str, common: Mapping[str, Any], repeats: int) -> Record:
    """The memory of both sides, in turn, each in a fresh process."""
    import tempfile

    sides = ("torchvision", "archir")
    found: dict[str, list[Record]] = {label: [] for label in sides}
    with tempfile.TemporaryDirectory() as folder:
        steps.network_of(name).save(Path(folder) / "net.arch")
        for repeat in range(repeats):
            for label in sides if repeat % 2 == 0 else sides[::-1]:
                given = {**common, "what": "memory", "side": label, "folder": folder}
                answer = asked(given)
                if "failure" in answer:
                    return answer
                found[label].append(answer)
    result: Record = {}
    for kind in ("allocator", "process"):
        values = {label: [row[kind] for row in rows] for label, rows in found.items()}
        if None in values["archir"]:
            continue
        middle = {label: statistics.median(row) for label, row in values.items()}
        ratio = middle["archir"] / middle["torchvision"]
        result[kind] = {"bytes": values, "ratio": ratio}
    return result


# -- what is shown

HEAD = (
    "| network | how | torchvision, s | archir, s | ratio | 95 % | same bits | of matmul | "
    "peak memory, MiB | ratio | of the process |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(record: Mapping[str, Any]) -> str:
    """A line of the table."""
    recipe = record["recipe"]
    marks = ("compiled", "channels_last", "bf16")
    how = ", ".join(m.replace("_", " ") for m in marks if recipe[m]) or "eager"
    if "failure" in record:
        return f"| {record['name']} | {how} | {record['failure']} |||||||||"
    seconds = {label: statistics.median(s) for label, s in record["seconds"].items()}
    same = all(record["losses_equal"]) and record["gradients_equal"]
    cells = [
        record["name"],
        how,
        f"{seconds['torchvision']:.3f}",
        f"{seconds['archir']:.3f}",
        f"{record['ratio']:.3f}",
        f"{record['low']:.3f} to {record['high']:.3f}",
        ("yes" if same else "no") + (", same code" if record["code_equal"] else ""),
        f"{100 * record['of_matmul']:.0f} %",
        *_memory_cells(record.get("memory")),
    ]
    return f"| {' | '.join(cells)} |"


def _memory_cells(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    if "failure" in found:
        return [found["failure"], "", ""]
    given = found["allocator"]
    most = statistics.median(given["bytes"]["archir"]) / 2**20
    whole = f"{found['process']['ratio']:.3f}" if "process" in found else ""
    return [f"{most:.0f}", f"{given['ratio']:.4f}", whole]


def fine(record: Mapping[str, Any]) -> bool:
    """Whether a network ran, and did the same on both sides.

    What `torch.compile` and a GPU's kernels make of two equal programs may differ in rounding.
    """
    if "failure" in record or "failure" in record.get("memory", {}):
        return False
    recipe = record["recipe"]
    if recipe["compiled"] or recipe["device"] != "cpu":
        return True
    return all(record["losses_equal"]) and bool(record["gradients_equal"])


def key(record: Mapping[str, Any]) -> str:
    """What makes two records measurements of the same."""
    entries = ("schema", "name", "recipe", "threads", "pairs", "clock", "versions")
    return json.dumps([record[entry] for entry in entries], sort_keys=True)


def logged(path: Path | None) -> dict[str, Record]:
    """The records of a log; a line that was cut off is none."""
    found: dict[str, Record] = {}
    if path is None or not path.exists():
        return found
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[key(record)] = record
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(steps.NETWORKS), choices=steps.NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, on a busy machine")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats-memory", type=int, default=3, help="0: no memory")
    parser.add_argument("--log", type=Path, help="JSON lines; what is there is not run again")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit status."""
    parser = _parser()
    given = parser.parse_args(words)
    if given.work:
        print(json.dumps(work(json.loads(given.work))))
        return 0
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"torch has no {given.device} here")
    recipe = steps.Recipe(
        given.batch, given.size, given.device, given.channels_last, given.bf16, given.compile
    )
    known = {} if given.again else logged(given.log)
    records = []
    say = print if not given.json else (lambda *_, **__: None)
    say(HEAD)
    for name in given.only:
        wanted = {
            "schema": SCHEMA,
            "name": name,
            "recipe": asdict(recipe),
            "threads": given.threads,
            "pairs": given.pairs,
            "clock": "processor" if given.cpu else "clock",
            "versions": f"torch {torch.__version__}, archir {archir.__version__}, {machine()}",
        }
        record = known.get(key(wanted)) or run(name, recipe, given)
        records.append(record)
        if given.log is not None and key(record) not in known and "failure" not in record:
            given.log.parent.mkdir(parents=True, exist_ok=True)
            with given.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        say(row(record), flush=True)
    if given.json:
        print(json.dumps({"schema": SCHEMA, "records": records}))
    return 0 if all(map(fine, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
