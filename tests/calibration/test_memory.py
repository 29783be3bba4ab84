"""Memory grows with the square of the width, never with the number of samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunus

CODE = """
import torch
from torch import nn
from prunus.calibration import calibrate
from prunus.calibration.batches import first_of

def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

{before}
model, shape = {model}, {shape}
x = torch.rand({samples}, *shape)
calibrate(model, first_of(x, 64), progress=False)
before = peak()
calibrate(model, x, progress=False)
print(peak() - before)
"""
CASES = {
    # 76 MiB of inputs in one batch, 153 MiB in float64
    "linear": ("nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 5))", (100,), 200_000),
    # 12 MiB of images in one batch, whose patches would take 420 MiB in float64
    "conv": ("nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))", (4, 16, 16), 6_000),
}


# MiB: a block of 32 MiB in float64, its patches in float32, and 1024 samples' activations
LIMIT = 130
WHOLE = """
from prunus.calibration import batches, vectors
vectors.BLOCK_BYTES = 2**40
batches.parts.__defaults__ = (2**40,)
"""


def peak_of(name, before=""):
    model, shape, samples = CASES[name]
    code = CODE.format(model=model, shape=shape, samples=samples, before=before)
    environment = {**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("name", CASES)
def test_one_big_batch(name):
    peak = peak_of(name)
    assert peak < LIMIT, f"{peak:.0f} MiB above the data"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_same_measure_sees_a_batch_taken_whole():
    assert peak_of("conv", WHOLE) > 2 * LIMIT
