"""A search that is killed at any moment ends, once it is resumed, in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="forks and kills processes")
def test_a_search_that_is_killed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["operations"] > 300
    assert said["files"] > 30
    assert sum(run["kills"] for run in said["runs"]) >= 5
    assert [run["differ"] for run in said["runs"]] == [[]] * 4
