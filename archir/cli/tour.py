"""``archir tour``: the whole way on real images, in a minute."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED, error


def _free(folder: Path) -> Path:
    """The folder, or the first numbered one beside it that does not exist."""
    number, chosen = 1, folder
    while chosen.exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    return chosen


class _Guide:
    """Runs commands in this process, showing each as a user would type it."""

    def __init__(self, quiet: bool) -> None:
        self.stream = sys.stderr if quiet else sys.stdout
        self.done: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def run(self, title: str, *words: str) -> dict[str, Any]:
        """Run a command, print what it found and return it.

        Raises:
            ArchirError: A609, the command failed (its own message is on stderr by then).
        """
        from archir.cli.main import group

        self.say(f"\n{title}\n$ archir {shlex.join(words)}")
        start = time.perf_counter()
        reports: list[Report] = []
        try:
            group.main(list(words), prog_name="archir", standalone_mode=False, obj=reports)
        except SystemExit as end:
            if end.code:
                raise error("A609", f"the tour ends here: `archir {words[0]}` failed") from None
        report = reports[0]
        self.say(report.text)
        seconds = time.perf_counter() - start
        self.done.append({"command": list(words), "seconds": round(seconds, 2), **report.data})
        return dict(report.data)


def tour(output: str, epochs: int) -> Report:
    """Go the whole way on real images, in a minute.

    Check, train, rewrite, evaluate, train on, export: on the digits that scikit-learn carries.
    No GPU and no download. Every command is printed as you would type it, and its files stay in
    the run folder.
    """
    start = time.perf_counter()
    context = click.get_current_context()
    guide = _Guide(quiet=bool(context.params.get("json")))
    folder = _free(Path(output))
    folder.mkdir(parents=True)

    def at(name: str) -> str:
        return str(folder / name)

    run = guide.run
    run("A network in a few lines of text:", "new", "digits", "-o", at("net.arch"))
    guide.say((folder / "net.arch").read_text(encoding="utf-8").rstrip())
    run("Parsed, every shape inferred, no framework imported:", "check", at("net.arch"))
    train = ("--data", "digits", "--seed", "0")
    run(
        "Trained on real images:",
        *("train", at("net.arch"), *train, "--epochs", str(epochs), "-o", at("trained.arch")),
    )
    run("Where can it grow?", "rules", at("trained.arch"))
    deepen = ("rewrite", at("trained.arch"), "--rule", "deepen", "--at", "stem.relu")
    run("One layer more, the same function:", *deepen, "-o", at("deeper.arch"))
    widen = ("rewrite", at("deeper.arch"), "--rule", "widen@stem.new", "--rule", "widen@tail.conv")
    run(
        "More channels, along a residual stream and through a flatten, the same function:",
        *(*widen, "--set", "width=40", "-o", at("wider.arch")),
    )
    same = run(
        "Not one prediction changed:",
        *("eval", at("wider.arch"), "--data", "digits", "--against", at("trained.arch")),
    )
    run(
        "The larger network trains on from there:",
        *("train", at("wider.arch"), *train, "--epochs", str(epochs)),
        *("--lr", "0.02", "-o", at("final.arch")),
    )
    run("Where it came from can be checked:", "verify", at("final.arch"))
    onnx = run("And it ships:", "export", at("final.arch"), "-o", at("final.onnx"))
    rows = [_row(at(name)) for name in ("trained.arch", "wider.arch", "final.arch")]
    shown = [
        (Path(r["file"]).name, f"{r['params']:,}", f"{r['macs']:,}", f"{r['accuracy']:.2%}")
        for r in rows
    ]
    seconds = time.perf_counter() - start
    text = "\n".join(
        [
            "",
            options.table(
                ("network", "parameters", "MACs", "test accuracy"), shown, right=(1, 2, 3)
            ),
            "",
            (
                f"wider.arch predicts as trained.arch does on {same['same_predictions']} of "
                f"{same['count']} test images"
            ),
            (
                f"final.onnx agrees with final.arch within {max(onnx['drift'].values()):.1e} "
                f"({onnx['provider']})"
            ),
            f"{seconds:.0f} s; the files are in {folder}",
        ]
    )
    data = {
        "folder": str(folder),
        "seconds": round(seconds, 1),
        "networks": rows,
        "steps": guide.done,
    }
    equal = same["same_predictions"] == same["count"]
    return Report(data, text, 0 if equal else CHECK_FAILED)


def _row(path: str) -> dict[str, Any]:
    from archir.train.data import load_data
    from archir.train.evaluate import evaluate

    network = options.network(path)
    assert network.weights is not None
    total = network.cost()
    found = evaluate(network.graph, dict(network.weights), load_data("digits"))
    return {"file": path, "params": total.params, "macs": total.macs, "accuracy": found.accuracy}


command = make(
    "tour",
    click.option(
        "-o", "--output", default="runs/tour", show_default=True, help="The run folder; a new one."
    ),
    click.option("--epochs", type=click.IntRange(1, 200), default=5, show_default=True),
    example="archir tour",
)(tour)
