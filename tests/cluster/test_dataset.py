"""Blocks of rows on Ray Data."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import pyarrow as pa
from ray.data import ActorPoolStrategy
from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, stream
from atlas_ray.config import RayConfig

class Doubled:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, table):
        return pa.table({"x": [self.factor * x for x in table["x"].to_pylist()]})

if __name__ == "__main__":
    connect(RayConfig(num_cpus=2))
    found = stream(map_on_ray([pa.table({"x": [1, 2]})], Doubled, 2, workers=ActorPoolStrategy(size=1)), "doubling")
    print([table["x"].to_pylist() for table in found])
    sys.stderr.write("the end\\n")
"""


def test_a_pool_of_workers_brings_no_lines_of_rays_core_to_the_screen() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout == "[[2, 4]]\n", ended.stderr
    assert ended.stderr == "the end\n"
