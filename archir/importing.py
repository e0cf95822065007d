"""Networks from elsewhere: a source is found, imported, written as text, and certified."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import cast

from archir.api import Network, frozen, library
from archir.diag import BAD_INPUT, Source, error
from archir.lang import load as load_program
from archir.lang.parametrise import parametrised
from archir.lang.printer import print_graph
from archir.ops import installed_ops
from archir.proof.certificate import Certificate
from archir.proof.lineage import Lineage
from archir.target import IMPORTERS, Imported, Importer, ImportOptions

FORMS = "torchvision:NAME[@WEIGHTS], timm:NAME[@TAG], file.py:factory, net.pt2, net.onnx"
"""What a source may be."""


def import_network(source: str, options: ImportOptions | None = None) -> tuple[Network, Imported]:
    """Import a network from what a user calls it.

    Args:
        source: ``torchvision:resnet18``, ``timm:NAME``, ``file.py:factory``, ``net.pt2`` or
            ``net.onnx``.
        options: What the user says of it.

    Returns:
        The network, with its weights and a certificate that begins with the import, and what
        the importer found.

    Raises:
        ArchirError: A520, there is no such source; A52x and A53x, it cannot be imported; A503,
            what reads it is not installed.
    """
    chosen = options or ImportOptions()
    importer, rest = importer_of(source)
    found = importer(rest, chosen)
    chosen.report("writing the text")
    ops = installed_ops()
    text = parametrised(print_graph(found.graph, ops, found.kinds), ops)
    program = load_program(Source(f"{found.graph.name}.arch", text), ops)
    network = Network(
        program,
        frozen(dict(found.weights)),
        Certificate(),
        Lineage(),
        ops,
        library(ops),
    )
    return network.stepped("import", found.facts), found


def importer_of(source: str) -> tuple[Importer, str]:
    """What imports a source, and the part of it that is handed on.

    Raises:
        ArchirError: A520, nothing does; A503, it cannot be loaded.
    """
    points = {point.name: point for point in entry_points(group=IMPORTERS)}
    prefix, colon, rest = source.partition(":")
    if colon and prefix in points and not prefix.endswith((".py", ".onnx", ".pt2")):
        return _loaded(points[prefix]), rest
    path = source.rpartition(":")[0] if ".py:" in source else source
    suffix = PurePath(path).suffix.removeprefix(".")
    if suffix == "py" and ".py:" not in source:
        raise error(
            "A520",
            f"`{source}` names no function",
            hint="path/to/file.py:factory",
            status=BAD_INPUT,
        )
    if suffix in points:
        return _loaded(points[suffix]), source
    raise error(
        "A520",
        f"`{source}` is no source of networks",
        hint=f"a source is {FORMS}",
        status=BAD_INPUT,
    )


def _loaded(point: EntryPoint) -> Importer:
    try:
        return cast("Importer", point.load())
    except ImportError as reason:
        missing = (reason.name or "").partition(".")[0]
        hint = f"pip install {missing}" if missing else "install archir again"
        message = f"networks cannot be imported from {point.name} here: {reason}"
        raise error("A503", message, hint=hint) from reason
