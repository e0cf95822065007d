"""The language: text -> syntax tree -> graph, formatting, and graph -> text."""

from __future__ import annotations

from archir.lang.parse import parse
from archir.lang.tree import Document

__all__ = ["Document", "parse"]
