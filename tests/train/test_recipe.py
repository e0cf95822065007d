"""A recipe file says what is wrong with it in one line, whatever it holds."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from archir.diag import BAD_INPUT, ArchirError
from archir.train.recipe import TrainConfig, check_config, make_recipe, read_recipe


def refusal(act: Any) -> str:
    with pytest.raises(ArchirError) as caught:
        act()
    assert caught.value.status == BAD_INPUT
    (found,) = caught.value.diagnostics
    assert found.code in ("A601", "A632")
    assert "\n" not in found.message
    return str(found)


def read(tmp_path: Path, text: str, **changes: Any) -> TrainConfig:
    file = tmp_path / "recipe.toml"
    file.write_text(text, "utf-8")
    return read_recipe(file, **changes)


def test_a_recipe_file_has_every_entry(tmp_path: Path) -> None:
    text = """
        epochs = 3                # whole numbers do for numbers as well
        lr = 1
        optimizer = "adamw"
        flip = true
        freeze = ["stem", "*.bias"]
        rates = { fc = 2, stem = 0.5 }
        schedule = "sgdr"
        keep = "best"
    """
    found = read(tmp_path, text, epochs=4)
    assert found == TrainConfig(
        epochs=4,
        lr=1.0,
        optimizer="adamw",
        flip=True,
        freeze=("stem", "*.bias"),
        rates=(("fc", 2.0), ("stem", 0.5)),
        schedule="sgdr",
        keep="best",
    )
    assert isinstance(found.lr, float)
    every = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    assert make_recipe(every, {}) == TrainConfig()


def test_the_record_of_a_recipe_is_that_recipe() -> None:
    made = TrainConfig(device="cpu", freeze=("a",), rates=(("b", 0.5),), compile=True)
    record = json.loads(json.dumps(made.record()))
    assert {"device", "compile"} == {f.name for f in dataclasses.fields(made)} - record.keys()
    assert make_recipe(record, {"device": "cpu", "compile": True}) == made


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epochs = 0", "epochs is 0, it should be from 1"),
        ("epochs = 1.5", "it should be a whole number"),
        ("epochs = true", "it should be a whole number"),
        ("epochs = 99999999999", "from 1 to 1e+06"),
        ("batch_size = -3", "from 1"),
        ("lr = nan", "lr is nan"),
        ("lr = inf", "lr is inf"),
        ("lr = '0.1'", "it should be a number"),
        ("lr = 1979-05-27", "it should be a number"),
        (f"lr = 1{'0' * 400}", "it should be a number"),
        (f"lr = 1{'0' * 5000}", "is no TOML"),
        ("momentum = 1.01", "from 0 to 1"),
        ("weight_decay = -1", "from 0 to 1000"),
        ("beta1 = -0.1", "from 0 to 1"),
        ("beta2 = 1.1", "from 0 to 1"),
        ("eps = -1e-9", "from 0 to 1"),
        ("seed = -1", "from 0"),
        ("seed = 1.0", "it should be a whole number"),
        ("seed = 9223372036854775808", "from 0"),
        ("device = 3", "it should be a string"),
        ("precision = 'f8'", "f32, bf16 or f16"),
        ("precision = 16", "it should be f32, bf16 or f16"),
        ("optimizer = 'adam'", "sgd or adamw"),
        ("nesterov = 1", "true or false"),
        ("decay_vectors = 'no'", "true or false"),
        ("freeze = 'stem'", "a list of strings"),
        ("freeze = [1]", "a list of strings"),
        ("rates = 3", "a table of numbers by glob"),
        ("rates = { stem = 'x' }", "a table of numbers by glob"),
        ("rates = { stem = nan }", "a table of numbers by glob"),
        ("rates = { stem = -1 }", "from 0 to 1e+06"),
        ("rates = [['stem']]", "a table of numbers by glob"),
        ("schedule = 'step'", "constant, cosine, sgdr or onecycle"),
        ("schedule = ['cosine']", "it should be constant, cosine, sgdr or onecycle"),
        ("warmup = -1", "from 0"),
        ("warmup = 20", "warmup takes 20 of 20 epochs"),
        ("lr_min = 1", "more than lr"),
        ("cycle = 0", "from 1e-06"),
        ("cycle_factor = 0.5", "from 1"),
        ("peak = 0", "from 1e-06 to 1"),
        ("flip = 1", "true or false"),
        ("crop = -1", "from 0"),
        ("crop = 1.5", "it should be a whole number"),
        ("cutout = -2", "from 0"),
        ("mixup = -1", "from 0"),
        ("loss = 3", "it should be a string"),
        ("label_smoothing = 1.1", "from 0 to 1"),
        ("ema = 1.0", "from 0 to 0.999999"),
        ("distill_weight = 2", "from 0 to 1"),
        ("temperature = 0", "from 0.001"),
        ("clip = nan", "clip is nan"),
        ("channels_last = 0", "true or false"),
        ("compile = 'yes'", "true or false"),
        ("keep = 'all'", "last or best"),
        ("log_every = -1", "from 0"),
        ("batch-size = 3", "did you mean `batch_size`?"),
        ("foo = 1", "docs/training.md lists the entries"),
        ("a.b.c = 1", "no entry `a`"),
        ("[lr]\nx = 1", "it should be a number"),
        ("lr = ", "is no TOML"),
        ("lr = 1\nlr = 2", "is no TOML"),
        ("\x00", "is no TOML"),
        (f"lr = {'[' * 10000}", "is no TOML"),
    ],
    ids=lambda text: text[:24],
)
def test_wrong_entries(tmp_path: Path, line: str, said: str) -> None:
    found = refusal(lambda: read(tmp_path, line))
    assert said in found
    assert "recipe.toml" in found


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "No such file" in refusal(lambda: read_recipe(tmp_path / "none.toml"))
    assert "directory" in refusal(lambda: read_recipe(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal(lambda: read_recipe(tmp_path / "binary"))


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 64.5}, {"epochs": True}, {"lr": "0.1"}, {"lr": math.nan}, {"clip": None}],
    ids=str,
)
def test_recipes_made_in_python(change: dict[str, Any]) -> None:
    name = next(iter(change))
    assert name in refusal(lambda: check_config(TrainConfig(**change)))
