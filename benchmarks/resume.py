"""Runs of `archir train` killed with SIGKILL at random moments, and resumed.

Every run is the command itself in a process of its own. Half of the moments are drawn on the
clock, from the start of the process to the end of the uninterrupted run; the other half among
the calls by which the run opens, renames, removes or cuts files for writing: the process kills
itself right before such a call. One resumption in two is killed as well. At the end every file
of the uninterrupted run but the timings must be there with the same bytes: the metrics, both
checkpoints, the trained network, its weights and its certificate.

So that checkpoints are many, they are written after every other step (and not after a minute).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NET = """version 1
arch net {
    input image: f32[N, 1, 8, 8]
    f = image |> conv1: conv(8, 3, bias = false) |> bn1: batch_norm |> relu
      |> conv2: conv(16, 3, stride = 2, bias = false) |> bn2: batch_norm |> relu
      |> drop: dropout(0.2) |> pool: max_pool(2)
    output logits = f |> flatten |> fc: linear(10)
}
"""

RECIPES: Mapping[str, str] = {
    "sgd": (
        "--schedule sgdr --cycle 1 --warmup 0.5 --flip --crop 1 --cutout 3 --mixup 0.4 "
        "--label-smoothing 0.1 --ema 0.9 --clip 1 --keep best"
    ),
    "adamw": "--optimizer adamw --lr 0.004 --distill teacher.arch --no-decay-vectors --rate fc=2",
    "bf16": "--schedule onecycle --precision bf16 --flip --freeze *bn1 --ema 0.99",
    "f16": "--precision f16 --clip 0.5 --loss mse --keep best --channels-last",
}
"""What is trained, each with dropout, for three epochs, and a line of metrics a step."""

WRITES = ("os.rename", "os.remove", "os.truncate")


def child(words: Sequence[str]) -> None:
    """Be `archir`; die before the file operation number KILL_AT, or count them all."""
    from archir.cli.main import main
    from archir.train import loop

    loop.SAVE_EVERY, loop.SAVE_WITHIN = 0.0, float(os.environ["SAVE_WITHIN"])
    at, count = int(os.environ.get("KILL_AT", "0")), 0
    here = str(Path.cwd())

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        if event not in WRITES and not writes:
            return
        if not str(Path(str(given[0])).absolute()).startswith(here):
            return
        count += 1
        if count == at:
            os.kill(os.getpid(), 9)

    sys.addaudithook(watch)
    try:
        main()
    finally:
        print(json.dumps({"operations": count}), file=sys.stderr)


def command(recipe: str) -> list[str]:
    """The words behind `archir` that train by a recipe."""
    fixed = "train net.arch --data digits --device cpu --epochs 3 --batch-size 96 --init 0"
    return [*fixed.split(), *f"--log-every 1 --run run -o out.arch --force {recipe}".split()]


def start(folder: Path, words: Sequence[str], kill_at: int = 0) -> subprocess.Popen[str]:
    """`archir` in a folder."""
    more = {"KILL_AT": str(kill_at), "SAVE_WITHIN": "0.03", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--child", *words],
        cwd=folder,
        env={**os.environ, **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(folder: Path, words: Sequence[str]) -> int:
    """Run `archir` to its end; how many file operations it took."""
    job = start(folder, words)
    said = job.communicate()[1]
    if job.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {job.returncode}:\n{said}")
    return int(json.loads(said.splitlines()[-1])["operations"])


def killed(folder: Path, words: Sequence[str], after: float = 0, before: int = 0) -> str:
    """Run and kill `archir`, after some seconds or before an operation; how that went."""
    job = start(folder, words, before)
    if not before:
        time.sleep(after)
        job.kill()
    said = job.communicate()[1]
    if job.returncode == -9:
        return f"killed before operation {before}" if before else f"killed after {after:.2f} s"
    if job.returncode == 0:
        return "done before it was killed"
    raise SystemExit(f"{' '.join(words)} ended with {job.returncode}:\n{said}")


def contents(folder: Path) -> dict[str, bytes]:
    """The files that equal runs share, by name."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in files
        if p.name != "timings.jsonl" and p.suffix != ".tmp"
    }


def prepared(folder: Path) -> Path:
    """A new folder with the networks that runs start from."""
    folder.mkdir()
    (folder / "net.arch").write_text(NET, "utf-8")
    (folder / "teacher.arch").write_text(NET.replace("16,", "24,"), "utf-8")
    finished(folder, "weights init teacher.arch --seed 1".split())
    return folder


def main() -> int:
    """Kill and resume; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    chosen = parser.parse_args()
    draw, names = random.Random(chosen.seed), chosen.recipes.split(",")
    wrong = resumed = 0
    with tempfile.TemporaryDirectory() as made:
        whole: dict[str, tuple[dict[str, bytes], float, int]] = {}
        for number in range(chosen.moments):
            name = names[number % len(names)]
            words = command(RECIPES[name])
            if name not in whole:
                folder = prepared(Path(made) / name)
                begun = time.perf_counter()
                operations = finished(folder, words)
                whole[name] = contents(folder), time.perf_counter() - begun, operations
            expected, seconds, operations = whole[name]
            folder = prepared(Path(made) / f"{name}{number}")
            on_clock = number // len(names) % 2 == 0
            after = draw.uniform(0.3, 1) * seconds
            before = 0 if on_clock else draw.randint(1, operations)
            told = [killed(folder, words, after, before)]
            words = [*words, "--resume"]
            if draw.random() < 0.5:
                again = draw.uniform(0.3, 1) * seconds
                told.append(killed(folder, words, again, 0 if draw.random() < 0.5 else before))
            finished(folder, words)
            found = contents(folder)
            differ = sorted(n for n in expected.keys() | found if expected.get(n) != found.get(n))
            wrong += bool(differ)
            resumed += len(told)
            print(f"{name:6} {', '.join(told)}: {'differs in ' if differ else 'the same'}", *differ)
    print(f"{chosen.moments} runs, {resumed} kills, {wrong} of the runs differ")
    return int(wrong > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        del sys.argv[1]
        child(sys.argv[1:])
    else:
        sys.exit(main())
