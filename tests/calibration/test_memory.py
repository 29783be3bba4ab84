"""Memory grows with the square of the width, never with the number of samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus

CODE = """
import json, os, sys
import torch
from torch import nn
from prunus.calibration import batches, calibrate, vectors

def high():  # not ru_maxrss, which a child inherits from the process that started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

def added(model, shape, samples, whole):
    if whole:
        vectors.BLOCK_BYTES = 2**40
        batches.parts.__defaults__ = (2**40,)
    torch.manual_seed(0)
    model = eval(model)
    x = torch.rand(samples, *shape)
    calibrate(model, batches.first_of(x, 64), progress=False)
    before = high()
    calibrate(model, x, progress=False)
    return high() - before

for case in json.loads(sys.argv[1]):  # each in a child, whose peak is its own; one import for all
    child = os.fork()
    if child == 0:
        print(added(*case), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
CASES = {
    # 76 MiB of inputs in one batch, 153 MiB in float64
    "linear": ("nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 5))", (100,), 200_000),
    # 12 MiB of images in one batch, whose patches would take 420 MiB in float64
    "conv": ("nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))", (4, 16, 16), 6_000),
}


# MiB: a block of 32 MiB in float64, its patches in float32, and 1024 samples' activations
LIMIT = 130


@pytest.fixture(scope="module")
def peaks():
    """MiB above the data: of each case, and of the convolution where a batch is taken whole."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    cases = [*((*CASES[name], False) for name in CASES), (*CASES["conv"], True)]
    environment = {**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1])}
    command = [sys.executable, "-c", CODE, json.dumps(cases)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(zip((*CASES, "whole"), map(float, run.stdout.split()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_big_batch(name, peaks):
    assert peaks[name] < LIMIT, f"{peaks[name]:.0f} MiB above the data"


def test_the_same_measure_sees_a_batch_taken_whole(peaks):
    assert peaks["whole"] > 2 * LIMIT


@pytest.mark.parametrize("recipe", ["wanda", "magnitude"])  # statistics, and layer errors alone
def test_a_batch_of_all_samples_is_copied_in_parts(recipe, monkeypatch):
    from prunus.calibration import batches, collect
    from prunus.engine import errors

    copied = []

    def copies(batch, device):
        copied.append(batches.size_of(batch))
        return batches.to_device(batch, device)

    monkeypatch.setattr(collect, "to_device", copies)
    monkeypatch.setattr(errors, "to_device", copies)
    samples = 3 * batches.ROWS + 5
    prunus.prune(nn.Linear(4, 3), recipe, 0.5, data=torch.rand(samples, 4), progress=False)
    assert sum(size for size in copied if size < batches.ROWS) >= 5
    assert max(copied) == batches.ROWS
