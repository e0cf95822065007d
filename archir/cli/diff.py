"""``archir diff``: what changed between two networks, by structure and lineage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.cli.difference import Weights, as_json, as_text, listing
from archir.diag import ArchirError, error
from archir.files import read_source
from archir.ops import installed_ops

if TYPE_CHECKING:
    from archir.ops.arithmetic import Array
    from archir.proof.descent import Member

DIFFERENT = 1


def diff(
    files: tuple[str, ...],
    param: tuple[str, ...],
    textconv: bool,
    structure: bool,
    no_weights: bool,
    everything: bool,
) -> Report:
    """Say what changed between two networks, whatever their names.

    Which layer is which follows from the certificates where one network came from the other,
    else from operators, attributes and surroundings. Where both have weights these are compared
    too. Exit status as diff has it: 0 no difference, 1 some, 2 trouble.
    With --textconv FILE the layers are printed a line each, for `git diff`.
    """
    if textconv:
        if len(files) != 1:
            raise error("A609", "--textconv prints one network", hint="--textconv FILE")
        return _textconv(files[0], param)
    if len(files) != 2:
        raise error("A609", "two networks are compared", hint="archir diff A.arch B.arch")
    from archir.proof.descent import relation
    from archir.rewrite.delta import compare_weights, delta

    ops = installed_ops()
    a, b = (member_of(file, param) for file in files)
    found = relation(a, b, ops, use_lineage=not structure)
    changes = delta(a.graph, b.graph, found.pairs, ops)
    held = None if no_weights else _weights(files, (a, b))
    if isinstance(held, tuple):
        compared = compare_weights((a.graph, held[0]), (b.graph, held[1]), found.pairs)
        weights = Weights(compared)
    else:
        weights = Weights(None, held or "not compared")
    equal = changes.same_structure and changes.same_names and weights.same
    data = as_json(files, (a, b), found, changes, weights, ops)
    text = as_text(files, (a, b), found, changes, weights, ops, everything=everything)
    return Report({**data, "equal": equal}, text, 0 if equal else DIFFERENT)


def member_of(file: str, pairs: tuple[str, ...] = ()) -> Member:
    """A network as it is compared, with the certificate beside it."""
    from archir.proof.certificate import Certificate, read_certificate
    from archir.proof.descent import Member
    from archir.proof.lineage import Lineage, folders_of

    path = Path(file)
    program = options.program(file, pairs)
    beside = path.with_suffix(".cert.json")
    certificate = read_certificate(beside) if beside.is_file() else Certificate()
    return Member(program, certificate, Lineage(folders=folders_of(path)))


def _weights(
    files: tuple[str, ...], members: tuple[Member, Member]
) -> tuple[Mapping[str, Array], Mapping[str, Array]] | str:
    """The weights of both; or, in words, why they are not compared."""
    from archir.weights.store import check_weights, load_weights

    places = [Path(file).with_suffix(".safetensors") for file in files]
    lacking = [file for file, place in zip(files, places, strict=True) if not place.is_file()]
    if len(lacking) == 2:
        return "neither network has weights"
    if lacking:
        return f"{lacking[0]} has no weights"
    found = []
    for place, member in zip(places, members, strict=True):
        tensors = load_weights(place)
        check_weights(member.graph, tensors)
        found.append(tensors)
    return found[0], found[1]


def _textconv(file: str, pairs: tuple[str, ...]) -> Report:
    """The canonical text of a network; its own text where that cannot be read.

    Git stops with an error where this does, and a history may hold broken networks.
    """
    source = read_source(file)
    try:
        graph = options.program(file, pairs).graph
    except ArchirError as failure:
        why = failure.diagnostics[0]
        text = f"# cannot be read: {why.code} {why.message}\n{source.text.rstrip()}"
        return Report({"file": file, "text": text, "readable": False}, text)
    text = listing(graph, installed_ops())
    data: dict[str, Any] = {"file": file, "text": text, "readable": True}
    return Report(data, text)


command = make(
    "diff",
    click.argument("files", nargs=-1, required=True, metavar="A B"),
    options.params,
    click.option("--textconv", is_flag=True, help="Print the layers of one network for git."),
    click.option("--structure", is_flag=True, help="Compare by structure, whatever certificates."),
    click.option("--no-weights", is_flag=True, help="Do not compare the weights."),
    click.option("--all", "everything", is_flag=True, help="Show every repeat and every change."),
    example="archir diff net.arch wider.arch",
)(diff)
