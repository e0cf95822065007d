"""The table of operators in docs/language.md says what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from archir.lang.words import write_value
from archir.ops import STANDARD
from archir.ops.record import REQUIRED, Attr, Kind, Op, SameAs

DOCS = Path(__file__).parent.parent.parent / "docs" / "language.md"
HEAD = "| operator | meaning |\n|---|---|\n"
STATEMENTS = {"input", "parameter", "constant"}
"""What statements and numbers make."""
OPS = [op for op in STANDARD.values() if op.name not in STATEMENTS]


def written(attr: Attr) -> str:
    """An attribute and its default; one that is derived from the operands shows none."""
    if isinstance(attr.default, SameAs):
        return f"{attr.name} = {attr.default.attr}"
    if attr.default is REQUIRED or not isinstance(attr.default, int | float | str | tuple):
        return attr.name
    if attr.kind is Kind.PADDING:
        return f"{attr.name} = {attr.default}"
    return f"{attr.name} = {write_value(attr.default)}"


def row(op: Op) -> str:
    attrs = ", ".join(map(written, op.attrs))
    doc = op.doc.replace("|", "\\|")
    return f"| `{op.name}{f'({attrs})' if attrs else ''}` | {doc} |\n"


def test_the_table_of_operators(update_golden: bool) -> None:
    before, _, rest = DOCS.read_text().partition(HEAD)
    table, blank, after = rest.partition("\n\n")
    expected = "".join(map(row, OPS)).rstrip("\n")
    if update_golden:
        DOCS.write_text(before + HEAD + expected + blank + after)
        table = expected
    assert table == expected


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_operator_says_what_it_does(op: Op) -> None:
    assert op.doc.endswith(".")
    assert len(row(op)) <= 200
