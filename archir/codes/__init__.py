"""The table of diagnostic codes: what each means, for ``archir explain CODE``."""

from __future__ import annotations

from archir.codes import faults, programs, searching, tools
from archir.codes.record import Code

CODES: dict[str, Code] = {**programs.CODES, **tools.CODES, **searching.CODES, **faults.CODES}

__all__ = ["CODES", "Code"]
