"""What holds for every test."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

# Before anything loads BLAS or torch. The number of threads changes the order of float sums, so
# one makes results the same on every machine; the suite uses the cores through pytest-xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites the expected texts; look at the difference before you commit."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected texts")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@dataclass(frozen=True)
class Answer:
    """What a command line gave."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout, of a command with ``--json``."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def archir() -> Callable[..., Answer]:
    """Runs an archir command line in this process, as the console script does."""
    from archir.cli.main import run

    def call(*words: object) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run([str(word) for word in words])
        return Answer(status, out.getvalue(), err.getvalue())

    return call
