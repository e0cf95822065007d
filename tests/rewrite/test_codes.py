"""The table of codes and the sources agree."""

from __future__ import annotations

import re
from pathlib import Path

from archir.codes import CODES
from archir.diag import status_of
from archir.render import explain

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("archir", "backends", "rewrites", "grammar")


def raised() -> dict[str, str]:
    """Every code that a source holds as a string, and a file that does."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != ROOT / "archir" / "codes.py":
                for code in re.findall(r'"(A\d{3})"', path.read_text(encoding="utf-8")):
                    found.setdefault(code, str(path.relative_to(ROOT)))
    return found


def test_every_code_that_is_raised_is_explained() -> None:
    assert {code: path for code, path in raised().items() if code not in CODES} == {}


def test_every_code_that_is_explained_is_raised() -> None:
    assert sorted(CODES.keys() - raised().keys()) == []


def test_the_table_is_in_order_and_speaks_to_users() -> None:
    assert list(CODES) == sorted(CODES)
    for code, entry in CODES.items():
        assert re.fullmatch(r"A\d{3}", code)
        assert entry.title
        assert not entry.title.endswith(".")
        assert entry.explanation.endswith((".", "`", "`."))
        text = explain(code)
        assert text is not None
        assert text.startswith(f"{code}: {entry.title}\n")
        assert status_of(code) in (1, 2, 3)


def test_a_code_stands_for_one_thing() -> None:
    titles = [entry.title for entry in CODES.values()]
    assert len(set(titles)) == len(titles)
    assert explain("A999") is None
