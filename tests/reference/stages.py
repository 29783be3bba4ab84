"""Small networks as stages, whose gaps are known by hand."""

import torch

from prunus.theory.gap import LinearPair, Pointwise, activation, leaky_relu
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.stages import run

__all__ = ["EXACT", "POSITIVE", "act", "gap_at", "product", "scalar", "tensor"]

EXACT = {"rel": 1e-9}
POSITIVE = ["identity", "relu", "leaky_relu"]  # of slope 1 where all values are positive


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(name, w, v, b=None, c=None):
    """A layer of width 1."""

    def bias(value):
        return None if value is None else tensor([value])

    return LinearPair(name=name, weight=tensor([[w]]), pruned_weight=tensor([[v]]),
                      bias=bias(b), pruned_bias=bias(c))  # fmt: skip


def act(name):
    return Pointwise(name="act", activation=leaky_relu(0.3) if name == "leaky_relu" else
                     activation(name))  # fmt: skip


def product(stages, radius, centre):
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=centre, pruned_centre=centre)
    return product_bound(stages, start)


def gap_at(stages, x):
    return float((run(stages, x) - run(stages, x, pruned=True)).norm())
