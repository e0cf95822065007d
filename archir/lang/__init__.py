"""The language: text -> syntax tree -> graph, formatting, and graph -> text."""

from __future__ import annotations

from archir.lang.editing import edit, revise
from archir.lang.elaboration import elaborate, load
from archir.lang.format import format_text
from archir.lang.parsing import parse
from archir.lang.printer import print_graph
from archir.lang.program import Origin, Program
from archir.lang.tree import Document

__all__ = [
    "Document",
    "Origin",
    "Program",
    "edit",
    "elaborate",
    "format_text",
    "load",
    "parse",
    "print_graph",
    "revise",
]
