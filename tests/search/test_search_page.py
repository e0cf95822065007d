"""docs/search.md: its tables are those of the dataclasses, its files and its strategy work."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archir.codes import CODES
from archir.search.eas import EasConfig
from archir.search.kinds import EVALUATORS, find_kind, strategies
from archir.search.nash import NashConfig
from archir.search.nat_config import NatConfig
from archir.search.nsga2 import Nsga2Config
from archir.search.settings import SearchConfig, read_settings
from archir.search.space import Move

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
EXAMPLES = Path(__file__).parents[2] / "examples"


def documented(config: type[Any]) -> dict[str, str]:
    """What stands below each entry of a dataclass, in one line of Markdown."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for entry, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(entry.target, ast.Name)
            found[entry.target.id] = markdown(ast.literal_eval(text.value))
    return found


def markdown(text: str) -> str:
    line = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)


def shown(value: object) -> str:
    if value is None or value is dataclasses.MISSING or value in ("", (), {}):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_table() -> list[str]:
    texts = documented(SearchConfig)
    fields = dataclasses.fields(SearchConfig)
    return [f"| `{f.name}` | {shown(f.default)} | {texts[f.name]} |" for f in fields]


def strategy_table(name: str, config: type[Any]) -> list[str]:
    texts, kind = documented(config), find_kind(name)
    small, paper = kind.presets["small"], kind.presets["paper"]
    return [
        f"| `{n}` | {shown(getattr(small, n))} | {shown(getattr(paper, n))} | {text} |"
        for n, text in texts.items()
    ]


def moves_table() -> list[str]:
    texts = documented(Move)
    texts["rule"] = "The rule's name, or `FILE.rule:NAME`."
    fields = dataclasses.fields(Move)
    return [f"| `{f.name}` | {shown(f.default)} | {texts[f.name]} |" for f in fields]


def evaluators_table() -> list[str]:
    rows = []
    for name in EVALUATORS:
        made = read_settings(None, {"evaluator": name}, {}).made_evaluator()
        assert made is not None
        assert type(made).__doc__ is not None
        first = markdown(str(type(made).__doc__).partition("\n\n")[0])
        entries = [
            f"`{f.name} = {getattr(made, f.name)}`"
            for f in dataclasses.fields(made)  # type: ignore[arg-type]
            if f.name != "device"
        ]
        told = "of a recipe" if name == "training" else ", ".join(entries)
        rows.append(f"| `{name}` | {first} | {told} |")
    return rows


TABLES: dict[str, Callable[[], list[str]]] = {
    "## Settings": settings_table,
    "### `nash` and `random`": lambda: strategy_table("nash", NashConfig),
    "### `rwe`": lambda: strategy_table("rwe", Nsga2Config),
    "### `eas` and `eas_random`": lambda: strategy_table("eas", EasConfig),
    "### `nat`": lambda: strategy_table("nat", NatConfig),
    "## Moves": moves_table,
    "## Evaluators": evaluators_table,
}
TABLE = re.compile(r"(?<=\n)(\|[^\n]*\|\n\|(?:---\|)+\n)((?:\|[^\n]*\n)*)")


@pytest.mark.parametrize("title", TABLES)
def test_tables(title: str, update_golden: bool) -> None:
    page = PAGE.read_text()
    start = page.index(f"\n{title}\n")
    found = TABLE.search(page, start)
    assert found is not None
    rows = "".join(f"{row}\n" for row in TABLES[title]())
    if update_golden:
        PAGE.write_text(page[: found.start(2)] + rows + page[found.end(2) :])
    else:
        assert found[2] == rows


@pytest.mark.parametrize("name", ["nash", "rwe", "eas", "nat"])
def test_every_preset_is_named(name: str) -> None:
    (line,) = re.findall(rf"### `{name}`.*?\n(Presets: .*?)\n\n", PAGE.read_text(), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", line)) == set(find_kind(name).presets)


def blocks() -> list[str]:
    """The indented blocks of the page."""
    found = re.findall(r"(?:(?<=\n)    [^\n]*\n(?:\n+(?=    ))?)+", PAGE.read_text())
    return [textwrap.dedent(block) for block in found]


def test_the_settings_file(tmp_path: Path) -> None:
    (text,) = [block for block in blocks() if block.startswith("# search.toml")]
    (tmp_path / "search.toml").write_text(text)
    found = read_settings(tmp_path / "search.toml", {}, {})
    assert (found.values.n_steps, found.config.max_time) == (8, 1200.0)
    assert len(found.strategy().moves) == 2  # type: ignore[attr-defined]


def test_the_strategy(
    archir: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = [block for block in blocks() if block.startswith("# climb.py")]
    (tmp_path / "climb.py").write_text(text)
    (command,) = [line for b in blocks() for line in b.splitlines() if "climb.py:CLIMB" in line]
    (tmp_path / "net.arch").write_text((EXAMPLES / "nash_digits.arch").read_text())
    words = [*command.split()[1:], "--set", "epochs=1", "--device", "cpu"]
    answer = archir(*words, "--json")
    assert answer.status == 0, answer.err
    assert answer.document["members"] == 4
    again = archir("search", "--run", "runs/climb", "--resume", "--json").document
    assert {**again, "seconds": 0} == {**answer.document, "seconds": 0}
    assert archir("verify", "runs/climb/best.arch").status == 0
    assert archir(*words, "--force", "--set", "tries=0").status == 2


def test_codes_and_commands_are_there() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"A\d{3}", page)) <= CODES.keys()
    readme = (PAGE.parents[1] / "README.md").read_text()
    assert "docs/search.md" in readme
    assert re.search(r"`search`", readme)


def test_the_help_names_every_strategy(archir: Callable[..., Any]) -> None:
    told = " ".join(archir("search", "--help").out.split())
    assert f"NAME {', '.join(strategies())}, or FILE.py:NAME." in told
