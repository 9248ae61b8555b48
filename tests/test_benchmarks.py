# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that this machine cannot run are at least tried."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.warm_python import WarmPython

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(python: WarmPython, *options: str) -> "subprocess.CompletedProcess[str]":
    return python.run(str(SCRIPT), *options, env=dict(os.environ))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["trainer", "hftune"])
def test_the_gpu_benchmark_runs_small(side: str, warm_python: WarmPython) -> None:
    done = run(warm_python, "--smoke", "--works", "llama_1b_full", "smollm2_lora", "--sides", side)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"tokens_per_second": ') == 2
    assert '"tokens_per_second": 0' not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_it_needs_one(warm_python: WarmPython) -> None:
    done = run(warm_python)
    assert done.returncode == 1
    assert "needs a GPU; --smoke" in done.stderr
