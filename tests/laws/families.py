"""An instance of every entry of every table, so that new entries are tested as they come."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.calibration import STATISTICS, calibrate
from prunus.coupling import Group, Slot
from prunus.layer import Layer
from prunus.nodes import ClassView, class_view

CURVES = {  # of tests/models.py's "cnn-relu"
    "conv1": ((1, 3.0), (20, 1.0)),
    "conv2": ((1, 4.0), (50, 3.0), (100, 0.5)),
    "fc1": ((1, 2.0), (90, 1.0)),
    "fc2": ((1, 1.5), (10, 1.4)),
}
ARGUMENTS = {  # entries that cannot be made, or used, without arguments
    "NM": {"n": 2, "m": 4},
    "Planned": {"curves": CURVES},
}


def instances(table: dict[str, Any]) -> dict[str, Any]:
    return {name: cls(**ARGUMENTS.get(name, {})) for name, cls in table.items()}


def linear_layer(seed: int = 0, out: int = 6, wide: int = 12, samples: int = 40) -> Layer:
    """A linear layer with every statistic of correlated inputs."""
    return own(_linear(seed, out, wide, samples))


def conv_layer(seed: int = 0, groups: int = 1, bias: bool = True) -> Layer:
    """A convolution, grouped or not, with every statistic."""
    return own(_conv(seed, groups, bias))


def own(layer: Layer) -> Layer:
    """A copy: statistics are collected once for all tests, none of which may change another's."""
    return replace(
        layer,
        weight=layer.weight.clone(),
        bias=None if layer.bias is None else layer.bias.clone(),
        statistics={name: value.clone() for name, value in layer.statistics.items()},
    )


@functools.cache
def _linear(seed: int, out: int, wide: int, samples: int) -> Layer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(wide, out)).double()
        x = torch.randn(samples, wide, dtype=torch.float64) @ torch.randn(wide, wide).double() + 1
    return calibrated(model, x)


@functools.cache
def _conv(seed: int, groups: int, bias: bool) -> Layer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(4, 8, 2, groups=groups, bias=bias)).double()
        x = torch.randn(12, 4, 5, 5, dtype=torch.float64) + 0.5
    return calibrated(model, x)


def calibrated(model: nn.Module, x: torch.Tensor) -> Layer:
    wanted = [name for name, made in STATISTICS.items() if made().reads.source != "pair"]
    y = torch.zeros(len(x), dtype=torch.int64)
    return calibrate(
        model, (x, y), wanted, loss=lambda out, batch: out.square().flatten(1).sum(1).mean()
    )["0"]


def class_group(pools: int, units: int) -> ClassView:
    """A group of pools × units classes, one column of a linear consumer each."""
    layer = linear_layer(out=6, wide=pools * units, samples=4 * pools * units)
    every = torch.arange(pools * units)
    slot = Slot("0.weight", 1, "in", index=every, unit=every)
    group = Group(
        name="fc", size=len(every), slots=(slot,), producers=(), consumers=("0",), norms=(),
        exact=True, pools=pools,
    )  # fmt: skip
    return class_view(group, {"0": layer})
