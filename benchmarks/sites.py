"""Every rewrite of a network, done for real: each site of each rule, as a user would do it.

For each site that `archir rules FILE` lists: `archir rewrite`, then what it must keep: the
exact check equal, the drift of the real weights small, comments and untouched layers as they
were, few lines changed, `archir verify` content, the text read back as the same graph, and
with `--onnx` the ONNX files of both sides in agreement under ONNX Runtime. Batch norms start
with statistics far from 0 and 1, so that nothing passes by forgetting them.

    uv run python benchmarks/sites.py examples/resnet50.arch --every 10 --onnx
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import archir
from archir.cli.main import group
from archir.ir.graph import Graph
from archir.ir.same import equal
from archir.ops.closeness import distance
from archir.rewrite.sites import Planner
from archir.target import backends

DRIFT = 1e-5
"""The largest max|a-b| / max|a| of the outputs in float32."""
ONNX = 1e-4
"""The same, between the ONNX files of both sides."""
BATCH = 2

Weights = Mapping[str, np.ndarray]


def call(*words: str, fine: bool = True) -> dict[str, Any]:
    """Run an archir command in this process; its report's values."""
    reports: list[Any] = []
    try:
        group.main(list(words), prog_name="archir", standalone_mode=False, obj=reports)
    except SystemExit as end:
        if end.code and fine:
            raise RuntimeError(f"archir {' '.join(words)}: exit {end.code}") from None
    return dict(reports[0].data)


@dataclass
class Row:
    """What one rewrite did. ``problems`` says what of it is wrong."""

    site: str
    seconds: dict[str, float] = field(default_factory=dict)
    drift: float = 0.0
    onnx: float | None = None
    lines: int = 0
    problems: list[str] = field(default_factory=list)

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a piece of the work and note how long it took."""
        start = time.perf_counter()
        done = work()
        self.seconds[name] = time.perf_counter() - start
        return done

    def want(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)


class Sweep:
    """A network with random weights, and what its rewrites are compared with."""

    def __init__(self, file: Path, folder: Path, *, onnx: bool) -> None:
        self.folder, self.onnx = folder, onnx
        self.file = folder / file.name
        shutil.copyfile(file, self.file)
        call("weights", "init", str(self.file), "--random-statistics", "--seed", "1")
        self.before = archir.load(self.file)
        self.text = self.file.read_text(encoding="utf-8")
        self.tidy = not call("fmt", "--check", str(self.file), fine=False)["changed"]
        self.outputs = self._onnx(self.before) if onnx else []

    def sites(self, every: int = 1) -> list[dict[str, Any]]:
        """The sites that `archir rules` lists, or one in so many of each rule's."""
        found = call("rules", str(self.file), "--json")["sites"]
        rules = dict.fromkeys(s["rule"] for s in found)
        return [s for r in rules for s in [s for s in found if s["rule"] == r][::every]]

    def try_site(self, site: Mapping[str, Any], *, onnx: bool | None = None) -> Row:
        """Rewrite at one site and look at everything."""
        row = Row(site["site"])
        target = self.folder / "after.arch"
        try:
            self._try(row, site, target, self.onnx if onnx is None else onnx)
        except (RuntimeError, archir.ArchirError) as failure:
            row.problems.append(str(failure))
        finally:
            for rest in self.folder.glob("after.*"):
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        return row

    def _try(self, row: Row, site: Mapping[str, Any], target: Path, onnx: bool) -> None:
        arguments = (
            {} if site["size"] is None else {"width": site["size"] + max(3, site["size"] // 8)}
        )
        words = ["rewrite", str(self.file), "--rule", site["rule"], "--at", site["at"]]
        words += [w for k, v in arguments.items() for w in ("--set", f"{k}={v}")]
        done = row.timed("rewrite", lambda: call(*words, "-o", str(target)))
        (use,) = done["uses"]
        row.drift, row.lines = done["drift"]["value"], done["changed_lines"]
        row.want(done["equal"] and bool(use["exact"]), "the exact check is not equal")
        row.want(row.drift < DRIFT, f"drift {row.drift:.1e}")
        row.want(
            row.timed("verify", lambda: call("verify", str(target)))["verified"], "not verified"
        )
        after = archir.load(target)
        assert self.before.weights is not None
        assert after.weights is not None
        self._text(row, target)
        kept(row, self.before.graph, self.before.weights, after.graph, after.weights)
        rule = self.before.library.find(site["rule"])
        plan = Planner(self.before.graph, self.before.ops).plan(rule, site["at"], arguments)
        row.want(equal(plan.after, after.graph), "the text reads back as another graph")
        if onnx:
            if not self.outputs:
                self.outputs = self._onnx(self.before)
            found = row.timed("onnx", lambda: self._onnx(after))
            row.onnx = max(map(distance, self.outputs, found))
            row.want(row.onnx <= ONNX, f"the ONNX files differ by {row.onnx:.1e}")

    def _text(self, row: Row, target: Path) -> None:
        text = target.read_text(encoding="utf-8")
        row.want(comments(text) == comments(self.text), "comments are lost")
        tidy = not call("fmt", "--check", str(target), fine=False)["changed"]
        row.want(tidy or not self.tidy, "the text is not laid out as `archir fmt` does it")
        row.want(row.lines == changed(self.text, text), "the report miscounts the changed lines")
        row.want(row.lines <= bound(self.text), f"{row.lines} lines changed")

    def _onnx(self, network: archir.Network) -> list[np.ndarray]:
        """Outputs for one random batch, by ONNX Runtime."""
        onnx: Any = backends()["onnx"]
        rng = np.random.default_rng(0)
        feeds = {}
        for name in network.graph.inputs:
            shape = [
                d if isinstance(d, int) else BATCH for d in network.graph.node(name).types[0].shape
            ]
            feeds[name] = rng.standard_normal(shape, dtype=np.float32)
        found: list[np.ndarray] = onnx.forward(network.graph, network.weights, feeds)
        return found


def bound(text: str) -> int:
    """The most lines that a rewrite may change: a statement here, and the block around it copied.

    A block that two instances used is copied when they come to differ; its lines count as new.
    """
    blocks = re.findall(r"^block.*?^}", text, re.DOTALL | re.MULTILINE)
    return 12 + 2 * max((block.count("\n") + 1 for block in blocks), default=0)


def comments(text: str) -> list[str]:
    """The comments of a text, each once, sorted: copies of blocks bring theirs along."""
    return sorted({line[line.index("#") :].strip() for line in text.splitlines() if "#" in line})


def changed(a: str, b: str) -> int:
    """Lines that a diff of two texts takes out or puts in."""
    diff = difflib.ndiff(a.splitlines(), b.splitlines())
    return sum(line[0] in "+-" for line in diff)


def kept(row: Row, a: Graph, before: Weights, b: Graph, after: Weights) -> None:
    """Paths stay, and so does every tensor of a layer none of whose tensors changed its shape."""
    lost = set(a.parameters) - set(b.parameters)
    row.want(not lost, f"parameters are gone: {', '.join(sorted(lost)[:3])}")
    row.want([n.name for n in a if n.name not in b] == [], "nodes are gone")
    for node in a:
        paths = list(node.params.values())
        if lost or any(before[p].shape != after[p].shape for p in paths):
            continue
        for path in paths:
            row.want(before[path].tobytes() == after[path].tobytes(), f"{path} changed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="one site in N of each rule"
    )
    parser.add_argument("--onnx", action="store_true", help="compare ONNX files at every site")
    parser.add_argument(
        "--onnx-sites", type=int, default=0, metavar="K", help="or at K sites of each rule"
    )
    parser.add_argument("--temporary", type=Path, help="a folder for the files, with room")
    given = parser.parse_args()
    rows: list[Row] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.temporary) as folder:
        sweep = Sweep(given.file, Path(folder), onnx=given.onnx)
        seen: dict[str, int] = {}
        for site in sweep.sites(given.every):
            seen[site["rule"]] = seen.get(site["rule"], 0) + 1
            onnx = given.onnx or seen[site["rule"]] <= given.onnx_sites
            rows.append(sweep.try_site(site, onnx=onnx))
            show(rows[-1])
    summary(rows, time.perf_counter() - began)
    return int(any(row.problems for row in rows))


def show(row: Row) -> None:
    took = "  ".join(f"{name} {seconds:5.2f} s" for name, seconds in row.seconds.items())
    onnx = "" if row.onnx is None else f"  onnx {row.onnx:.1e}"
    state = "; ".join(row.problems) or "ok"
    print(
        f"{row.site:<48} drift {row.drift:.1e}{onnx}  {row.lines:>3} lines  {took}  {state}",
        flush=True,
    )


def summary(rows: list[Row], seconds: float) -> None:
    wrong = sum(bool(row.problems) for row in rows)
    worst = max(rows, key=lambda row: row.drift)
    print(f"\n{len(rows)} sites, {wrong} with problems, {seconds:.0f} s")
    print(f"worst drift {worst.drift:.1e} at {worst.site}; most lines {max(r.lines for r in rows)}")
    measured = [row for row in rows if row.onnx is not None]
    if measured:
        top = max(measured, key=lambda row: row.onnx or 0.0)
        print(f"worst ONNX difference {top.onnx:.1e} at {top.site} ({len(measured)} compared)")
    for name in ("rewrite", "verify", "onnx"):
        times = sorted(row.seconds[name] for row in rows if name in row.seconds)
        if times:
            print(f"{name}: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
