"""The table of diagnostic codes: what each means, for ``archir explain CODE``."""

from __future__ import annotations

from archir.codes import programs, searching, tools
from archir.codes.record import Code

CODES: dict[str, Code] = {**programs.CODES, **tools.CODES, **searching.CODES}

__all__ = ["CODES", "Code"]
