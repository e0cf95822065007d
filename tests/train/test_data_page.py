"""docs/data.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archir.cli.options import data
from archir.codes import CODES
from archir.train.data import TEST_SHARE, VALIDATION_SHARE
from archir.train.images import CHECKED
from archir.train.published import CACHE_FOLDER, DATA_FOLDER, SETS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def rows(head: str) -> dict[str, str]:
    """A table's first cells, and the others."""
    table = TEXT.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").partition(" | ") for line in table]
    return {first: rest for first, _, rest in cells}


def test_the_names() -> None:
    listed = re.findall(r"`(\w+)`", " ".join(rows("| `--data` |")))
    assert listed == ["digits", *SETS]
    shown = data(lambda: None).__click_params__[0].help
    assert re.findall(r"^[\w, ]*\w", shown)[0].split(", ")[:-1] == listed
    files = rows("| name | files")
    assert [name.strip("`") for name in files] == list(SETS)
    for name, published in SETS.items():
        first = published.layouts[0]
        assert (first.folder or first.files[0]) in files[f"`{name}`"]


def test_the_numbers() -> None:
    assert (TEST_SHARE, VALIDATION_SHARE, CHECKED) == (1 / 5, 1 / 10, 2**30)
    for said in ("a fifth of the images", "or a tenth drawn", "up to a\nGiB"):
        assert said in TEXT
    assert [name.strip("`") for name in rows("| variable |")] == [DATA_FOLDER, CACHE_FOLDER]
    assert set(re.findall(r"A\d{3}", TEXT)) <= CODES.keys()


def test_the_share_of_a_gpu() -> None:
    feed = pytest.importorskip("archir.train.feed")
    assert feed.SHARE == 1 / 4
    assert "more than a quarter of its free\nmemory" in TEXT
