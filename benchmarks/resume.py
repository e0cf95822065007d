"""Runs of `archir train` and `archir search` killed with SIGKILL at random moments, and resumed.

Every run is the command in a process of its own, forked from one that has imported torch, so that
moments fall into the run. Half of them are drawn on the clock; the other half among the calls by
which a run opens, renames, removes or cuts files for writing: the process kills itself right
before such a call. One resumption in two is killed as well. At the end every file of the
uninterrupted run but the timings must be there with the same bytes: the metrics, both
checkpoints, the trained network, its weights and its certificate; of a search the journal, the
result, all members, the front, and the best network with its ONNX file.

So that checkpoints are many, they are written every few steps (and not after a minute).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
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

SEARCHES: Mapping[str, str] = {
    "nash": "start.arch --strategy nash --set n_steps=2 --set n_neigh=3",
    "pool": "start.arch --strategy nash --set n_steps=2 --set n_neigh=3 --workers 2",
}
"""What is searched, with two epochs for each network: in one process, and in three."""

WRITES = ("os.rename", "os.remove", "os.truncate")


def child(folder: Path, words: Sequence[str], kill_at: int) -> None:
    """Be `archir` in a folder; die before the file operation of that number, or count them all."""
    from archir.cli.main import main

    os.chdir(folder)
    said = os.open("../said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    count = 0

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(given[2], int) and given[2] & os.O_ACCMODE
        if event not in WRITES and not writes:
            return
        if not str(Path(str(given[0])).absolute()).startswith(str(folder)):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = ["archir", *words]
    try:
        main()
    finally:
        print(json.dumps({"operations": count}))


def command(name: str) -> list[str]:
    """The words behind `archir` of a run."""
    if name in SEARCHES:
        fixed = "search --data digits --device cpu --run run --set n_nm=2 --set epoch_start=2"
        more = "--set epoch_neigh=2 --set epoch_final=2 --max-params 9000"
        return f"{fixed} {more} {SEARCHES[name]}".split()
    recipe = RECIPES[name]
    fixed = "train net.arch --data digits --device cpu --epochs 3 --batch-size 96 --init 0"
    return [*fixed.split(), *f"--log-every 1 --run run -o out.arch --force {recipe}".split()]


def going_on(folder: Path, name: str) -> list[str]:
    """The words behind `archir` that go on with a run, or begin one that had not begun."""
    if name not in SEARCHES:
        return [*command(name), "--resume"]
    begun = (folder / "run" / "search.json").exists()
    return ["search", "--run", "run", "--resume"] if begun else command(name)


def ended(
    folder: Path, words: Sequence[str], after: float | None = None, before: int = 0
) -> tuple[int, str]:
    """Run `archir`, kill it after some seconds or before an operation; its status and words."""
    job = get_context("fork").Process(target=child, args=(folder, words, before))
    job.start()
    job.join(after)
    job.kill()
    job.join()
    said = (folder.parent / "said.txt").read_text()
    if job.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(words)} ended with {job.exitcode}:\n{said}")
    return int(job.exitcode or 0), said


def killed(folder: Path, words: Sequence[str], after: float | None, before: int) -> str:
    """Run and kill `archir`; how that went."""
    if ended(folder, words, after, before)[0] == 0:
        return "done before it was killed"
    return f"killed after {after:.2f} s" if after else f"killed before operation {before}"


def finished(folder: Path, words: Sequence[str]) -> int:
    """Run `archir` to its end; how many file operations it took."""
    status, said = ended(folder, words)
    if status:
        raise SystemExit(f"{' '.join(words)} was killed by somebody else")
    return int(json.loads(said.splitlines()[-1])["operations"])


def contents(folder: Path) -> dict[str, bytes]:
    """The files that equal runs share, by name."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in files
        if p.name not in ("timings.jsonl", ".lock") and p.suffix != ".tmp"
    }


def prepared(folder: Path) -> Path:
    """A new folder with the networks that runs start from."""
    folder.mkdir()
    (folder / "net.arch").write_text(NET, "utf-8")
    (folder / "teacher.arch").write_text(NET.replace("16,", "24,"), "utf-8")
    finished(folder, ["weights", "init", "teacher.arch", "--seed", "1"])
    finished(folder, ["new", "nash_digits", "-o", "start.arch"])
    return folder


def main() -> int:
    """Kill and resume; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default=",".join([*RECIPES, *SEARCHES]))
    chosen = parser.parse_args()
    prepare()
    draw, names = random.Random(chosen.seed), chosen.recipes.split(",")
    wrong = kills = 0
    with tempfile.TemporaryDirectory() as made:
        whole: dict[str, tuple[dict[str, bytes], float, int]] = {}
        for number in range(chosen.moments):
            name = names[number % len(names)]
            words = command(name)
            if name not in whole:
                folder = prepared(Path(made) / name)
                begun = time.perf_counter()
                operations = finished(folder, words)
                whole[name] = contents(folder), time.perf_counter() - begun, operations
            expected, seconds, operations = whole[name]
            folder = prepared(Path(made) / f"{name}{number}")
            told = []
            for time_number in range(1 + draw.randint(0, 1)):
                on_clock = (number // len(names) + len(told)) % 2 == 0
                after = draw.uniform(0, 1) * seconds if on_clock else None
                before = 0 if on_clock else draw.randint(1, operations)
                said = going_on(folder, name) if time_number else words
                told.append(killed(folder, said, after, before))
            finished(folder, going_on(folder, name))
            found = contents(folder)
            differ = sorted(n for n in expected.keys() | found if expected.get(n) != found.get(n))
            wrong += bool(differ)
            kills += sum(how.startswith("killed") for how in told)
            outcome = f"differs in {', '.join(differ)}" if differ else "the same"
            print(f"{name:6} {', then '.join(told)}: {outcome}", flush=True)
    print(f"{chosen.moments} runs, {kills} kills, {wrong} of the runs differ")
    return int(wrong > 0)


def prepare() -> None:
    """Import what runs import, once, and let them write checkpoints often."""
    for name in ("sklearn.datasets", "torch._dynamo", "archir.cli.train", "archir.cli.search"):
        importlib.import_module(name)
    from archir.train import loop

    loop.SAVE_EVERY, loop.SAVE_WITHIN = 0.0, 0.03


if __name__ == "__main__":
    # before torch is imported: its threads do not outlive a fork
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
