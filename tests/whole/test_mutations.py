"""Broken files of every kind through the command line: an error in the user's terms, soon."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Archir = Callable[..., Any]
PARTS = 5
TEXTS, CERTIFICATES, HEADERS = 1500, 300, 300
SLOWEST = 5.0
PIECES = (
    *("{", "}", "(", ")", "[", "]", "|>", ",", "=", ":", "*", "+", "-", "/", '"', "`", "#", "."),
    *("input", "output", "block", "arch", "let", "param", "if", "then", "else", "not", "none"),
    *("0", "1", "-1", "7", "1.5", "1e308", "999999999999", "true", "same", "N", "\n", " ", "\x00"),
    *("relu", "conv", "split(", "concat(", "3 *", "weight = stem.conv.weight", "a.b.c: ", "\u00e9"),
)


def mutate(text: str, rng: random.Random) -> str:
    """A text that is broken in one to four places: cut, doubled, moved, added to."""
    for _ in range(rng.randint(1, 4)):
        at, other = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        size = rng.randint(1, 30)
        cut, piece = text[other : other + size], rng.choice(PIECES)
        text = rng.choice(
            (
                text[:at] + text[at + size :],
                text[:at] + piece + text[at:],
                text[:at] + piece + text[at + rng.randint(1, 4) :],
                text[:at] + cut + text[at:],
                text[: max(at, 10)],
            )
        )
    return text


def timed(archir: Archir, *words: object) -> Any:
    """A command that must end soon, in a status that is documented, and never blame archir."""
    began = time.perf_counter()
    answer = archir(*words, "--json")
    seconds = time.perf_counter() - began
    document = answer.document
    assert document["status"] == answer.status
    assert answer.status in (0, 1, 2, 3)
    codes = [found["code"] for found in document.get("diagnostics", ())]
    assert not [code for code in codes if code >= "A690"], document
    assert seconds < SLOWEST
    return answer


@pytest.mark.parametrize("part", range(PARTS))
def test_texts(archir: Archir, part: int, tmp_path: Path) -> None:
    rng = random.Random(f"texts {part}")
    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.arch"))]
    statuses = []
    verbs = ("check", "check", "show", "cost", "fmt", "rules --no-cost")
    for number in range(TEXTS // PARTS):
        file = tmp_path / "net.arch"
        text = mutate(rng.choice(texts), rng)
        file.write_text(text, encoding="utf-8")
        verb = verbs[number % len(verbs)]
        answer = timed(archir, *verb.split(), file)
        statuses.append(answer.status)
        if verb == "fmt" and answer.status == 0:
            assert not timed(archir, "fmt", "--check", file).document["changed"], text
        elif answer.status:
            assert answer.document["diagnostics"], text
    assert 0.02 < statuses.count(0) / len(statuses) < 0.6
    assert set(statuses) <= {0, 2}


@pytest.fixture(scope="module")
def grown(archir: Archir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a step of each kind that is replayed, and calibrated statistics."""
    folder = tmp_path_factory.mktemp("grown")
    start = Path(shutil.copy(EXAMPLES / "digits.arch", folder / "start.arch"))
    words = (
        "--rule",
        "widen@fc1",
        "--rule",
        "deepen.batch_norm@tail.relu",
        "--set",
        "widen.width=34",
    )
    assert archir("weights", "init", start).status == 0
    net = folder / "net.arch"
    assert archir("rewrite", start, *words, "--calibrate", "digits", "-o", net).status == 0
    return net


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value in which one place holds something else."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.12:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        return [*value[:index], mutate_value(value[index], rng), *value[index + 1 :]]
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        float("nan"),
        "",
        "x",
        "../x",
        [],
        {},
        [[]],
        {"a": 1},
    ]
    return rng.choice(odd)


def relink(document: Any) -> None:
    """Renew the links and digests, as far as there are steps to speak of."""
    import hashlib

    last, state = "", None
    for step in document["steps"]:
        step["before"] = state
        body = {k: v for k, v in step.items() if k != "digest"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        step["digest"] = last = hashlib.sha256(f"{last}\n{text}".encode()).hexdigest()
        state = step["after"]


def test_certificates(archir: Archir, grown: Path, tmp_path: Path) -> None:
    """Half of the forgers are careful, and renew the digests: replaying meets every odd value."""
    rng = random.Random("certificates")
    folder = Path(shutil.copytree(grown.parent, tmp_path / "nets"))
    net, file = folder / "net.arch", folder / "net.cert.json"
    whole = json.loads(file.read_text())
    passed = []
    for number in range(CERTIFICATES):
        document = mutate_value(json.loads(json.dumps(whole)), rng)
        try:
            if number % 2:
                relink(document)
        except (KeyError, TypeError, AttributeError):
            pass
        if document == whole:
            continue
        file.write_text(json.dumps(document))
        if timed(archir, "verify", net).status == 0:
            passed.append(document)
        if number % 10 == 0:
            timed(archir, "rewrite", net, "--rule", "deepen@stem.relu", "--dry-run")
            timed(archir, "check", net)
    for document in passed:  # what replaying does not produce, digests alone guard
        for step, other in zip(document["steps"], whole["steps"], strict=True):
            changed = {k for k in step if step[k] != other.get(k)} - {"digest"}
            assert changed <= {"drift", "uses"}
            for use, was in zip(step.get("uses", ()), other.get("uses", ()), strict=True):
                differing = {k for k in was if use.get(k) != was[k]}
                assert differing <= {"calibration", "verdict", "seed"}, differing
    assert len(passed) < CERTIFICATES / 5


def test_certificates_as_text(archir: Archir, grown: Path, tmp_path: Path) -> None:
    rng = random.Random("text")
    folder = Path(shutil.copytree(grown.parent, tmp_path / "nets"))
    net, file = folder / "net.arch", folder / "net.cert.json"
    whole = file.read_text()
    for _ in range(CERTIFICATES // 3):
        text = mutate(whole, rng)
        file.write_text(text, encoding="utf-8")
        assert (timed(archir, "verify", net).status == 0) == (
            json_or_none(text) == json.loads(whole)
        )


def json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_headers_of_weights(archir: Archir, grown: Path, tmp_path: Path) -> None:
    rng = random.Random("headers")
    folder = Path(shutil.copytree(grown.parent, tmp_path / "nets"))
    net, file = folder / "net.arch", folder / "net.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    for number in range(HEADERS):
        if number % 2:
            text = json.dumps(mutate_value(mutate_value(header, rng), rng))
        else:
            text = mutate(raw[8 : 8 + size].decode(), rng)
        if json_or_none(text) == header:
            continue
        body = text.encode()
        length = (
            len(body) if rng.random() < 0.8 else rng.choice([0, 1, 2**31, 2**63, len(body) + 8])
        )
        file.write_bytes(length.to_bytes(8, "little") + body + data)
        assert timed(archir, "verify", net).status == 1
        if number % 10 == 0:
            words = ("rewrite", net, "--rule", "deepen@stem.relu", "--dry-run")
            timed(archir, *words)
