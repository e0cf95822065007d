"""The commands of a report are true: what they make has the hashes of the members."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import archir
from archir.proof.certificate import read_certificate
from archir.search.encodings.encoding import encoding
from archir.search.nash import SMALL, make
from archir.search.report.gather import Gathered, gather
from archir.search.run import run_search
from archir.search.work import DataRef
from archir.train.data import load_data

from .made import write_run
from .test_report import member
from .toys import TEXT, write_data

pytest.importorskip("torch")
Archir = Callable[..., Any]
DATA_SEED = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real search in it, whose names have blanks."""
    folder = tmp_path_factory.mktemp("here")
    data = write_data(folder / "some data.npz")
    (folder / "toy.arch").write_text(TEXT, "utf-8")
    config = replace(
        SMALL, n_steps=2, n_neigh=3, n_nm=2, epoch_start=1, epoch_neigh=1, epoch_final=2,
        batch_size=16,
    )  # fmt: skip
    before = Path.cwd()
    os.chdir(folder)
    try:
        dataset = load_data(data.name, DATA_SEED)
        run_search(
            make(config),
            start=archir.load("toy.arch"),
            dataset=dataset,
            data=DataRef(data.name, DATA_SEED, dataset.sha256),
            run_dir=Path("a run"),
            device="cpu",
            settings={"data_seed": DATA_SEED},
        )
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Gathered:
    monkeypatch.chdir(place)
    return gather(Path("a run"))


def told(run: Gathered, number: int) -> list[list[str]]:
    """The commands of a member as words, without what sets the environment."""
    lines = run.data["members"][number]["commands"]
    return [
        shlex.split(line.replace("\\\n", "")) for line in lines if not line.startswith("export ")
    ]


def test_every_member_can_be_made_again(archir: Archir, run: Gathered) -> None:
    members = [m for m in run.journal.members if m.status == "scored" and m.same_as is None]
    kinds = {m.origin["kind"] for m in members}
    assert kinds == {"start", "parent", "rewrite"}
    assert members[-1].stage == "final"  # trained on validation images too
    for found in members:
        commands = told(run, found.number)
        assert [words[0] for words in commands] == ["archir"] * len(commands)
        expected = ["rewrite"] * (found.origin["kind"] == "rewrite") + ["train", "diff"]
        assert [words[1] for words in commands] == expected
        for words in commands:
            answer = archir(*words[1:])
            assert answer.status == 0, (words, answer.err, answer.out)
        assert "all equal" in answer.out
        name = f"{found.number:04d}.cert.json"
        one, two = (
            read_certificate(p).steps[-1] for p in (Path(name), Path("a run/members", name))
        )
        assert one.after == two.after


def test_as_a_shell_reads_it(run: Gathered) -> None:
    """Line ends, quotes and the number of threads: what is copied from the page runs as it is."""
    number = next(m.number for m in run.journal.members if m.origin["kind"] == "rewrite")
    lines = run.data["members"][number]["commands"]
    assert lines[0] == "export OMP_NUM_THREADS=1"
    script = "\n".join(line.replace("archir ", f"{sys.executable} -m archir ", 1) for line in lines)
    for name in (f"{number:04d}.arch", f"{number:04d}.made.arch"):
        for file in (
            Path(name),
            *(Path(name).with_suffix(s) for s in (".safetensors", ".cert.json")),
        ):
            file.unlink(missing_ok=True)
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


def test_certificates_are_checked_as_told(archir: Archir, run: Gathered) -> None:
    for found in run.data["members"]:
        assert archir(*shlex.split(found["verify"])[1:]).status == 0


def test_a_genome_is_decoded_to_the_same_text(
    archir: Archir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts, members = {}, []
    for number, name in enumerate(("nsga_micro", "nsga_macro", "nasbench201")):
        space = encoding(name)
        genome = space.highest
        origin = json.loads(json.dumps(space.origin(genome, classes=10, shape=(1, 32, 32))))
        members.append(member(number, origin=origin))
        texts[number] = space.program(genome, classes=10, shape=(1, 32, 32))
    run = gather(write_run(Path("run"), members, texts))
    for number, text in texts.items():
        for words in told(run, number):
            answer = archir(*words[1:])
            assert answer.status == 0, (words, answer.err)
        assert Path(f"{number:04d}.arch").read_text("utf-8") == text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nsga_micro", "--genome", "1 x"), "A609"),
        (("nsga_micro", "--genome", "1 2"), "A742"),
        (("nobody", "--genome", "1 2"), "A741"),
        (("nsga_micro", "--genome", "1 2", "--set", "shape=wide"), "A609"),
        (("nsga_micro", "--set", "classes=3"), "A609"),
        (("--genome", "1 2"), "A609"),
    ],
)
def test_wrong_genomes(archir: Archir, tmp_path: Path, words: tuple[str, ...], code: str) -> None:
    answer = archir("new", *words, "-o", tmp_path / "x.arch")
    assert (answer.status, code in answer.err) == (2, True), answer.err
    assert not (tmp_path / "x.arch").exists()


def test_a_recipe_of_a_certificate(archir: Archir, tmp_path: Path, place: Path) -> None:
    from archir.train.recipe import read_recipe

    file = place / "a run" / "members" / "0000.cert.json"
    assert read_recipe(file, epochs=7).epochs == 7
    assert read_recipe(file).record() == read_certificate(file).steps[-1].facts["config"]
    (tmp_path / "toy.arch").write_text(TEXT, "utf-8")
    assert archir("weights", "init", tmp_path / "toy.arch").status == 0
    words = ("train", tmp_path / "toy.arch", "-o", tmp_path / "x.arch", "--data", "digits")
    answer = archir(*words, "--recipe", tmp_path / "toy.cert.json")
    assert (answer.status, "A632" in answer.err) == (2, True)
