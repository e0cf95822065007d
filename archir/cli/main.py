"""The command ``archir``: one verb a file, loaded when it is used."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys

import click

from archir import __version__
from archir.cli.common import interrupted, misused

VERBS = (
    "new", "import", "check", "fmt", "show", "cost", "diff", "weights", "rules", "rewrite", "undo",
    "lineage", "prove", "verify", "explain", "train", "eval", "search", "report", "export",
    "bench", "doctor", "tour",
)  # fmt: skip

MODULES = {"eval": "evaluate", "import": "import_"}
"""The modules of verbs that are words of Python."""


class Verbs(click.Group):
    """A group that imports a verb's module only when the verb is used or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f"archir.cli.{MODULES.get(name, name)}")
        found: click.Command = module.command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as failure:
            close = difflib.get_close_matches(args[0], VERBS, 1)
            if not close:
                raise
            raise click.UsageError(f"{failure.message} Did you mean '{close[0]}'?", ctx) from None


HELP = """A compiler for neural architectures.

A network is a program in a .arch file. archir checks it, trains it, rewrites it by rules
that are proved to keep what it computes, and exports it to ONNX.

\b
Start with:
    archir tour                    the whole way, on real images, in a minute
    archir new resnet20            a network to begin from
    archir check resnet20.arch     parse, infer shapes, report cost

Exit status: 0 done; 1 the check failed (not equal, refuted, does not apply); 2 the input
file or the usage is wrong; 3 not supported; 130 interrupted.
"""


@click.group(cls=Verbs, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="archir")
def group() -> None:
    """All commands."""


def run(words: list[str]) -> int:
    """Run a command line; its exit status."""
    try:
        status: int | None = group.main(words, prog_name="archir", standalone_mode=False)
    except click.ClickException as failure:
        context = getattr(failure, "ctx", None)
        path = context.command_path if context is not None else "archir"
        return misused(path.partition(" ")[2] or path, "--json" in words, failure)
    except (KeyboardInterrupt, click.Abort):
        return interrupted()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return status or 0


def main() -> None:
    """The entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):  # all is done; the frameworks take a while to go
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
