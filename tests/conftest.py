"""What holds for every test."""

from __future__ import annotations

import os

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
