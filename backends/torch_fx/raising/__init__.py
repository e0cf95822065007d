"""Networks from torch: captured by ``torch.export``, raised to a graph, compared bit for bit."""

from __future__ import annotations

from archir.target import Imported, ImportOptions

from .bring import Source, bring
from .sources import file_source, program_source, timm_source, torchvision_source


def import_torchvision(source: str, options: ImportOptions) -> Imported:
    """Import a network of torchvision; see :class:`archir.target.Importer`."""
    return bring(torchvision_source(source, options), options)


def import_timm(source: str, options: ImportOptions) -> Imported:
    """Import a network of timm; see :class:`archir.target.Importer`."""
    return bring(timm_source(source, options), options)


def import_file(source: str, options: ImportOptions) -> Imported:
    """Import what a function of a Python file makes; see :class:`archir.target.Importer`."""
    return bring(file_source(source, options), options)


def import_program(source: str, options: ImportOptions) -> Imported:
    """Import an exported program; see :class:`archir.target.Importer`."""
    return bring(program_source(source, options), options)


__all__ = [
    "Source",
    "bring",
    "import_file",
    "import_program",
    "import_timm",
    "import_torchvision",
]
