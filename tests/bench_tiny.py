"""Tasks for tests of the benchmark: a small problem, one that fails, one that ends its process."""

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import bench_runs
from prunus.bench import TASKS, Dataset, Task, Training, evaluate, fit
from prunus.bench.data.models import mlp
from prunus.rng import generator_for


def data(*, data_dir=None):
    x = torch.randn(120, 6, generator=generator_for(0, "tiny"))
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Dataset(
        name="tiny", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:],
        fingerprint="tiny",
    )  # fmt: skip


def model():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(),
                         nn.Linear(12, 2))  # fmt: skip


def train(model, data, *, generator, hold=None, progress=None):
    again = Training(epochs=2, learning_rate=1e-2, batch=16)
    return fit(model, data, again, generator=generator, hold=hold, progress=progress)


GATE = "PRUNUS_TEST_GATE"  # names a file; see `bench_runs.Gate`


def slow(model, data):
    time.sleep(0.03)  # so that a kill finds a cell under way
    while GATE in os.environ and not bench_runs.is_open(Path(os.environ[GATE])):
        time.sleep(0.005)
    return evaluate(model, data)


tiny = Task(name="bench_tiny:tiny", title="tiny", data=data, model=model, train=train,
            retrain=train, definition="tiny 1")  # fmt: skip
lazy = replace(tiny, name="bench_tiny:lazy", evaluate=slow)


pause = time.sleep
SLEEP = 1.0  # seconds that the training of a sleepy network takes at least


def sleepily(model, data, *, generator, hold=None, progress=None):
    pause(SLEEP)
    return train(model, data, generator=generator)


sleepy = replace(tiny, name="bench_tiny:sleepy", train=sleepily)


def odd_scores(model, data):
    """One that is no number, one that is none for pruned networks alone, one as made here too."""
    whole = all(bool(p.all()) for p in model.parameters())
    return {
        **evaluate(model, data), "nothing": math.nan, "gain": 1.0 if whole else math.inf,
        "top2_accuracy": 0.0,
    }  # fmt: skip


odd = replace(tiny, name="bench_tiny:odd", evaluate=odd_scores)


def broken_retrain(model, data, *, generator, hold=None, progress=None):
    if not Path(os.environ["PRUNUS_TEST_MENDED"]).exists():
        raise RuntimeError("the rate was too high")
    return train(model, data, generator=generator)


broken = replace(tiny, name="bench_tiny:broken", retrain=broken_retrain)


def deadly_retrain(model, data, *, generator, hold=None, progress=None):
    os.kill(os.getpid(), signal.SIGKILL)


deadly = replace(tiny, name="bench_tiny:deadly", retrain=deadly_retrain)


def absent(*, data_dir=None):
    raise FileNotFoundError("tiny.npz is missing in data. Put it there.")


def shortly(model, data, *, generator, hold=None, progress=None):
    short = Training(epochs=15, learning_rate=3e-3, batch=64)
    return fit(model, data, short, generator=generator, progress=False)


def thin():
    return mlp((64, 60, 30, 10))


short_digits = replace(
    TASKS["digits-mlp"], name="bench_tiny:short_digits", train=shortly, model=thin,
    definition="short",
)  # fmt: skip
without_data = replace(tiny, name="bench_tiny:without_data", data=absent)
