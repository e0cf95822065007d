"""Codes of what is archir's own fault: A9."""

from __future__ import annotations

from archir.codes.record import Code

CODES: dict[str, Code] = {
    "A901": Code(
        "archir is at fault",
        "This is a bug. ARCHIR_DEBUG=1 prints where it happened; please report it with the file.",
    ),
    "A910": Code(
        "a graph that cannot be written",
        "The graph holds something that the language has no words for, such as a symbol that is "
        "not capitalised. Text is always read again before it is handed out.",
    ),
    "A911": Code(
        "a rewrite broke the graph",
        "After a rule was applied the graph was not well-formed: a node reads what does not exist, "
        "or a parameter has no shape. That is a fault of archir, not of the network; nothing was "
        "written.",
    ),
}
