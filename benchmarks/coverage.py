"""Every published network: is it imported exactly, rewritten, and exported? Makes docs/coverage.md.

All classification networks of torchvision and a hundred of timm, with the weights they start
with and every constant vector among those drawn at random. Each is a process of its own (see
`covered.py`) with a limit on its time and its memory; what came of it is a line of JSON in a log,
and a network that is in the log already is not run again.

    uv run python benchmarks/coverage.py --log runs/coverage.jsonl [--models torchvision|timm]
        [--only 'resnet*'] [--again] [--write docs/coverage.md]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import covered
from measure import machine

HERE = Path(__file__).resolve().parent
COLUMNS = ("import", "exact", "text", "widen", "deepen", "prune", "export")
TITLES = ("imported", "exact", "text", "widen", "deepen", "prune", "exported")
Record = dict[str, Any]


def names(kind: str) -> list[str]:
    """The networks of one kind, the cheap ones first where their cost is known."""
    if kind == "timm":
        return [f"timm:{name}" for name in (HERE / "timm100.txt").read_text().split()]
    from torchvision import models

    def macs(name: str) -> float:
        return float(models.get_model_weights(name).DEFAULT.meta["_ops"])

    found = sorted(models.list_models(module=models), key=macs)
    return [f"torchvision:{name}" for name in found]


@dataclass(frozen=True)
class Limits:
    """What one network may take."""

    seconds: float
    mib: int


def resident(process: int) -> int:
    """MiB that a process holds in memory."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((x for x in text.splitlines() if x.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(line.split()[1]) >> 10


def run(name: str, limits: Limits) -> Record:
    """One network in a process of its own, ended when it takes too much.

    The process is a fork: what all of them need is loaded once.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=covered.cover, args=(name, theirs.send))
    start = time.monotonic()
    child.start()
    theirs.close()
    record: Record = {"name": name, "versions": covered.versions(), "stages": {}}
    while True:
        try:
            if ours.poll(0.5):
                stage = ours.recv()
                record["stages"][stage.pop("stage")] = stage
        except EOFError:
            break
        if resident(child.pid or 0) > limits.mib:
            record["stopped"] = f"stopped at {limits.mib / 1024:.0f} GiB of memory"
        elif time.monotonic() - start > limits.seconds:
            record["stopped"] = f"stopped after {limits.seconds:.0f} s"
        if "stopped" in record:
            child.kill()
            break
    child.join()
    if child.exitcode and "stopped" not in record:
        record["stopped"] = f"ended with status {child.exitcode}"
    record["wall"] = round(time.monotonic() - start, 1)
    return record


def read_log(path: Path) -> dict[str, Record]:
    """The last record of each network."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["name"]: record for record in records}


# --- the table ----------------------------------------------------------------------------------


def passed(record: Record | None, stage: str) -> bool:
    """Whether a stage did what it is for."""
    return bool(record and record["stages"].get(stage, {}).get("ok"))


def reasons(record: Record) -> list[str]:
    """Why something is not so, a line each."""
    found = []
    for stage, title in zip(COLUMNS, TITLES, strict=True):
        held = record["stages"].get(stage)
        if held is not None and not held["ok"]:
            found.append(f"{title}: {held['why']}")
    if "stopped" in record:
        at = next(
            (t for c, t in zip(COLUMNS, TITLES, strict=True) if c not in record["stages"]), ""
        )
        found.append(f"{at}: {record['stopped']}")
    if carried := record["stages"].get("import", {}).get("carried"):
        found.append("carried for torch alone: " + ", ".join(f"`aten.{n}`" for n in carried))
    if record["stages"].get("export", {}).get("calibrated"):
        found.append("exported and rewritten with batch norms calibrated on a batch instead")
    return found


def cell(record: Record, stage: str) -> str:
    """What a stage came to, in a word or a site."""
    held = record["stages"].get(stage)
    if held is None:
        return "not run" if passed(record, "import") else "-"
    if not held["ok"]:
        return "**no**"
    if stage == "text":
        return f"{record['stages']['import']['lines']}"
    if stage == "export":
        return f"{held['drift']:.0e}"
    if stage in ("widen", "prune"):
        return f"`{held['site']}` {held['size']} to {held['width']}"
    if stage == "deepen":
        return f"`{held['rule']}` at `{held['site']}`"
    return "yes"


def row(record: Record) -> str:
    """One network's line of the table."""
    stages = record["stages"].values()
    brought = record["stages"].get("import", {})
    size = f"{brought['macs'] / 1e9:.2f}" if brought.get("ok") else ""
    seconds = sum(s.get("seconds", 0) for s in stages)
    peak = max((s.get("peak", 0) for s in stages), default=0) / 1024
    used = [record["stages"].get(f, {}) for f in ("widen", "deepen", "prune")]
    drift = max((u["drift"] for u in used if u.get("ok")), default=None)
    onnx = [u["onnx"] for u in used if "onnx" in u]
    name = record["name"].partition(":")[2] + (" (aux)" if brought.get("aux") else "")
    cells = [name, size, *(cell(record, stage) for stage in COLUMNS)]
    cells.append("" if drift is None else f"{drift:.0e}")
    cells.append(f"{max(onnx):.0e}" if len(onnx) == len(used) else "-")
    cells += [f"{seconds:.0f}", f"{peak:.1f}"]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| network | GMAC | imported | exact | text, lines | widen | deepen | prune | exported, gap "
    "| rules, drift | rules, ONNX gap | seconds | GiB |"
)


def table(kind: str, wanted: Sequence[str], log: Mapping[str, Record]) -> Iterable[str]:
    """The section of one kind of networks."""
    done = [log[name] for name in wanted if name in log]
    yield f"## {kind}: {len(wanted)} networks"
    yield ""
    for stage, title in zip(COLUMNS, TITLES, strict=True):
        yield f"- {title}: {sum(passed(r, stage) for r in done)} of {len(wanted)}"
    every = sum(all(passed(r, f) for f in ("widen", "deepen", "prune")) for r in done)
    yield f"- widen, deepen and prune: {every} of {len(wanted)}"
    if len(done) < len(wanted):
        yield f"- not run yet: {len(wanted) - len(done)}"
    yield ""
    yield HEAD
    yield "|---" * HEAD.count(" | ") + "|---|"
    for name in sorted(wanted):
        yield row(log[name]) if name in log else f"| {name.partition(':')[2]} | not run |"
    yield ""
    why = [(r["name"].partition(":")[2], reason) for r in done for reason in reasons(r)]
    if why:
        yield "Remarks, and why not:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in sorted(why))
        yield ""


def document(log: Mapping[str, Record], wanted: Mapping[str, Sequence[str]]) -> str:
    """docs/coverage.md."""
    versions = list(log.values())[-1]["versions"] if log else {}
    told = ", ".join(f"{k} {v.partition('+')[0]}" for k, v in versions.items())
    lines = [INTRODUCTION.format(machine=machine(), versions=told)]
    for kind, named in wanted.items():
        lines.extend(table(kind, named, log))
    return "\n".join(lines).rstrip() + "\n"


INTRODUCTION = """# Coverage: published networks

What `archir import` makes of torchvision's classification networks and of a hundred of timm's,
and what the rules do to them. Made by `benchmarks/coverage.py`; each row is a process of its own.
The weights are initial ones, seed 0, and every vector of equal numbers (norms, statistics, scales
of branches) is drawn at random on both sides before anything is compared, so that nothing passes
by being forgotten. Where that scales a network out of range (a remark says so) the comparison with
ONNX Runtime and the rules have the statistics of a batch instead.

{machine}; {versions}.

- *imported*: `archir import` wrote it, which compares it with its source itself.
- *exact*: with the redrawn weights the outputs are equal bit for bit (`torch.equal`, float32,
  eval mode, one thread) at batches 1 and 3. (aux): with the auxiliary heads, of which eval mode
  runs none.
- *text*: it reads back as the same graph, is laid out as `archir fmt` does it, and has so many
  lines.
- *widen*, *prune*: the class of channels at this site, an eighth larger or smaller (twice as large
  where it is averaged over); *deepen*: this rule of the family. Each use is planned, both sides of
  its region are equal in GF(1048571) at real size, its text reads back, and with the real weights
  the outputs move by no more than 1e-4 (*drift*, max|a-b| / max|a|, the largest of the three). What
  `prune` drops is set to zero first, as it assumes. The site is the first verified one of at most
  six, from the middle of the network outwards, classes that touch a tenth of the arithmetic or less
  first.
- *exported*: the ONNX file passes the gate: ONNX Runtime's outputs at batches 1, 2 and 7 differ by
  no more than 1e-4 (the largest is shown; above 6 GMAC at batch 1 alone). *Rules, ONNX gap*: the
  largest for the three rewritten networks at batch 7, below 6 GMAC only.
- *seconds*: of processor time on one thread, on a machine that others used too; *GiB*: peak memory.
"""


def summary(record: Record) -> str:
    """A finished network in a line."""
    marks = [f"{c}{'+' if passed(record, c) else '-'}" for c in COLUMNS]
    return f"{record['name']:<44}{record['wall']:>7.0f} s  " + " ".join(marks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--log", type=Path, default=Path("runs/coverage.jsonl"))
    parser.add_argument("--models", choices=["torchvision", "timm"])
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument("--again", action="store_true", help="run what is in the log once more")
    parser.add_argument("--failed", action="store_true", help="run again what did not pass whole")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--memory", type=float, default=12.0, metavar="GIB")
    parser.add_argument("--most", type=int, default=10_000, help="stop after so many networks")
    parser.add_argument("--share", default="0/1", help="of N runs side by side this is one: 0/N")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table, run nothing")
    given = parser.parse_args()
    kinds = [given.models] if given.models else ["torchvision", "timm"]
    wanted = {kind: names(kind) for kind in kinds}
    log = read_log(given.log)
    if given.write:
        given.write.write_text(document(log, wanted), encoding="utf-8")
        return
    limits = Limits(given.seconds, int(given.memory * 1024))
    given.log.parent.mkdir(parents=True, exist_ok=True)
    covered.warm()
    chosen = [n for named in wanted.values() for n in named]
    chosen = [n for n in chosen if fnmatch.fnmatchcase(n.partition(":")[2], given.only)]
    mine, runs = map(int, given.share.split("/"))
    left = [n for n in chosen if given.again or n not in log or _failed(given, log[n])]
    for name in left[mine::runs][: given.most]:
        record = run(name, limits)
        with given.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        log[name] = record
        print(summary(record), flush=True)
        for reason in reasons(record):
            print(f"    {reason}", flush=True)
    found = Counter(c for n in chosen if n in log for c in COLUMNS if passed(log[n], c))
    print(", ".join(f"{c} {found[c]}/{len(chosen)}" for c in COLUMNS))


def _failed(given: argparse.Namespace, record: Record) -> bool:
    return bool(given.failed and not all(passed(record, c) for c in COLUMNS))


if __name__ == "__main__":
    main()
