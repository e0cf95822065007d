"""What holds for every test."""

from __future__ import annotations

import os

# Before anything loads BLAS or torch. The number of threads changes the order of float sums, so
# one makes results the same on every machine; the suite uses the cores through pytest-xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
