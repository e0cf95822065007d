"""Parse and check: whole processes, and what of them is archir's own.

uv run python benchmarks/check.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from measure import Timing, interleaved, machine, report

ROOT = Path(__file__).resolve().parent.parent
FLOOR = "import networkx, lark, numpy"


def process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)


def main() -> None:
    print(machine())
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for name in ("resnet20", "resnet50", "vgg16_bn"):
        check = ("-m", "archir", "check", f"examples/{name}.arch")
        works = {
            "imports alone": lambda: lambda: process("-c", FLOOR),
            f"archir check {name}": lambda check=check: lambda: process(*check),
        }
        timings = interleaved(works, repeats)
        report(f"archir check {name}.arch, whole process", timings, "imports alone")
        floor, whole = timings["imports alone"], timings[f"archir check {name}"]
        pairs = zip(floor.seconds, whole.seconds, strict=True)
        own = Timing(tuple(b - a for a, b in pairs))
        print(f"  archir's own part {own.median:.3f} s (target 0.4)")
        print(f"  the whole {whole.median:.3f} s (target 1.8)")
    from archir.files import read_source
    from archir.lang import load
    from archir.ops import installed_ops

    ops = installed_ops()
    for name in ("resnet50",):
        source = read_source(ROOT / "examples" / f"{name}.arch")
        load(source, ops)
        start = time.perf_counter()
        for _ in range(20):
            load(source, ops)
        print(f"\nload {name}.arch, warm: {(time.perf_counter() - start) / 20 * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
