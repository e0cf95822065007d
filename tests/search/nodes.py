"""Run as a script: a Ray of three machines on this one, until its input ends. FOLDER for theirs.

The first has no CPU; the other two have one each and say that they have a GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ray.cluster_utils import Cluster


def main(folder: str) -> None:
    os.environ["RAY_TMPDIR"] = folder  # where it notes its address
    Path(folder, "ray").mkdir()
    words = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster()
    for number in range(3):
        size = {"num_cpus": int(number > 0), "num_gpus": int(number > 0)}
        cluster.add_node(wait=False, temp_dir=f"{folder}/{number}", **words, **size)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
