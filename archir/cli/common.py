"""What all commands share: the ``--json`` flag, rendering of errors, exit statuses."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import click

from archir.diag import BAD_INPUT, INTERRUPTED, ArchirError, Diagnostic, error
from archir.ir.types import AttrValue
from archir.render import render

SCHEMA = "archir/1"


@dataclass(frozen=True)
class Report:
    """What a command found: one value that prints as text or as JSON."""

    data: Mapping[str, Any]
    text: str
    status: int = 0
    problems: tuple[Diagnostic, ...] = ()
    """What went wrong with some of several files, beside what is reported of the others."""

    def after(self, failures: Sequence[ArchirError]) -> Report:
        """This report with the problems of files that failed, and their exit status."""
        if not failures:
            return self
        problems = tuple(d for failure in failures for d in failure.diagnostics)
        return replace(self, status=failures[0].status, problems=problems)


def command(
    name: str, *decorators: Callable[[Any], Any], example: str
) -> Callable[[Callable[..., Report]], click.Command]:
    """A click command with ``--json``, an example in its help, and archir's error handling.

    ``decorators`` are click's arguments and options, in the order of the help. The function
    returns a :class:`Report`; raising :class:`ArchirError` is the way to fail.
    """

    def wrap(function: Callable[..., Report]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            as_json = options.pop("json")
            context = click.get_current_context()
            path = context.command_path.partition(" ")[2] or name
            sys.exit(guarded(path, as_json, lambda: function(**options), context.obj))

        about = inspect.cleandoc(function.__doc__ or "")
        run.__doc__ = f"{about}\n\n\b\nExample:\n    {example}\n"
        made = click.command(name)(run)
        for decorate in decorators:
            made = decorate(made)
        return click.option("--json", is_flag=True, help="One JSON document on stdout.")(made)

    return wrap


def guarded(
    name: str, as_json: bool, work: Callable[[], Report], sink: list[Report] | None = None
) -> int:
    """Run a command's work, print what it found (or put it in ``sink``), return the exit status."""
    try:
        report = work()
    except ArchirError as failure:
        return _failed(name, as_json, failure)
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        _abandon()
        return 0
    except MemoryError:
        return _failed(name, as_json, error("A690", "the machine has no memory left for this"))
    except OSError as failure:
        return _failed(name, as_json, _system(failure))
    except Exception as failure:
        return _failed(name, as_json, _internal(failure))
    if sink is not None:
        sink.append(report)
        return report.status
    if as_json:
        problems = {"diagnostics": [to_json(d) for d in report.problems]} if report.problems else {}
        return _document(name, report.status, {**problems, **report.data})
    _say(render(report.problems))
    return _print(report.text, report.status) if report.text else report.status


@contextmanager
def told_how_to_go_on(kept: Callable[[], str]) -> Iterator[None]:
    """Where Ctrl-C or a request to end (SIGTERM) ends a run, say what is kept of it, if any."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        asked = isinstance(end, KeyboardInterrupt) or end.code == 128 + signal.SIGTERM
        if asked and (text := kept()):
            _say(f"{text}\n")
        raise


def interrupted() -> int:
    """Say that Ctrl-C ended a command; its exit status."""
    # Python remembers that the interrupt came while it ran a string (as dataclasses do when they
    # are made), and would kill itself at the end; running another string makes it forget.
    exec("")
    _say("interrupted; nothing was left half written\n")
    return INTERRUPTED


def misused(command: str, as_json: bool, failure: click.ClickException) -> int:
    """Report wrong usage, which click found; the exit status."""
    if as_json:
        found = {"code": "A609", "message": failure.format_message()}
        return _document(command, BAD_INPUT, {"diagnostics": [found]})
    failure.show()
    return BAD_INPUT


def _failed(name: str, as_json: bool, failure: ArchirError) -> int:
    if as_json:
        found = {"diagnostics": [to_json(d) for d in failure.diagnostics]}
        return _document(name, failure.status, found)
    _say(render(failure.diagnostics))
    return failure.status


def _document(name: str, status: int, data: Mapping[str, Any]) -> int:
    document = {"schema": SCHEMA, "command": name, "status": status, **data}
    try:
        text = json.dumps(document, indent=1)
    except (TypeError, ValueError) as failure:
        return _failed(name, as_json=True, failure=_internal(failure))
    return _print(text, status)


def _print(text: str, status: int) -> int:
    """Print to stdout; the status, or another where that cannot be done."""
    if sys.stdout is None:  # closed by whoever started this
        return status
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon()
    except OSError as failure:
        _abandon()
        _say(render(_system(failure, "standard output").diagnostics))
        return BAD_INPUT
    return status


def _abandon() -> None:
    """Let what is still to be printed go nowhere: nobody reads it, and Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    """Print to stderr, if there is one."""
    if sys.stderr is not None:
        print(text, end="", file=sys.stderr, flush=True)


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as JSON values."""
    found: dict[str, Any] = {"code": diagnostic.code, "message": diagnostic.message}
    for name in ("label", "hint", "node"):
        if getattr(diagnostic, name):
            found[name] = getattr(diagnostic, name)
    if diagnostic.span is not None:
        line, column = diagnostic.span.source.position(diagnostic.span.start)
        found |= {"file": diagnostic.span.source.name, "line": line, "column": column}
    return found


def _system(failure: OSError, file: str = "a file") -> ArchirError:
    name = failure.filename or file
    if failure.errno == errno.ENOSPC:
        return error("A691", f"the disk is full: {name}")
    return error("A692", f"{name}: {failure.strerror or type(failure).__name__}")


def _internal(failure: Exception) -> ArchirError:
    if os.environ.get("ARCHIR_DEBUG"):
        traceback.print_exception(failure)
    frame = traceback.extract_tb(failure.__traceback__)[-1]
    return ArchirError(
        Diagnostic(
            "A901",
            f"archir itself is at fault: {type(failure).__name__}: {str(failure)[:300]} "
            f"({frame.name}, line {frame.lineno})",
            hint="ARCHIR_DEBUG=1 shows where; please report it with the file that causes it",
        ),
        status=BAD_INPUT,
    )


def parse_settings(pairs: tuple[str, ...], flag: str) -> dict[str, AttrValue]:
    """``k=v`` options as values: numbers, true and false, lists in brackets, else strings.

    Raises:
        ArchirError: A609, a pair is not of that form.
    """
    found: dict[str, AttrValue] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise error("A609", f"{flag} {pair}: expected name=value")
        found[name.strip()] = parse_value(text.strip())
    return found


def parse_value(text: str) -> AttrValue:
    """A value as it is written on the command line."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return tuple(parse_value(part.strip()) for part in inner.split(",")) if inner else ()
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip('"')
