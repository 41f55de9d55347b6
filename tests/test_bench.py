"""The benchmarks run, small and once, so that they never rot; how fast anything is, is no test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from stores import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.torch]


@pytest.mark.parametrize(
    "name", ["import", "cold", "small", "again", "load", "ranks", "footprint", "memory", "chunks", "catalog", "recover"]
)
def test_benchmark_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", name],
        cwd=ROOT,
        env=os.environ | {"BENCH_QUICK": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "median" in done.stdout or "at the peak" in done.stdout or "proportional" in done.stdout


def test_the_store_at_size_is_measured() -> None:
    command = [sys.executable, "-m", "bench.scale"]
    environment = os.environ | {"BENCH_QUICK": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 checkpoints, 2000 blobs, made in ")
    assert "prune --dry-run" in done.stdout
