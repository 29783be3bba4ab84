"""Weights that are zero already rank last in their pool, but for pools of zeros alone."""

import pytest
import torch

from prunus.engine.idle import filled_in, zeros_last
from prunus.granularity import NM, Edge, EdgePerRow, pooled
from prunus.layer import Layer

GRANULARITIES = [Edge(), EdgePerRow(), NM(2, 4)]
ZEROS = ["none", "one", "a few", "half", "a whole row", "all"]


def layer_with(zeros):
    g = torch.Generator().manual_seed(len(zeros))
    weight = torch.randn(5, 8, generator=g)
    if zeros == "one":
        weight[2, 3] = -0.0
    elif zeros == "a few":
        weight[[0, 1, 1], [7, 0, 4]] = 0.0
    elif zeros == "half":
        weight[torch.rand(5, 8, generator=g) < 0.5] = 0.0
    elif zeros == "a whole row":
        weight[3] = 0.0
    elif zeros == "all":
        weight.zero_()
    return Layer(name="layer", weight=weight), torch.rand(5, 8, generator=g)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("turned", [False, True])
def test_pools_are_those_of_the_definition(granularity, zeros, turned):
    layer, scores = layer_with(zeros)
    if turned:
        scores = scores.T.contiguous().T
    before = scores.clone()
    at = pooled(granularity, layer, torch.arange(40.0).view(5, 8)).long()
    weights, values = layer.weight.flatten().tolist(), scores.flatten().tolist()
    expected, filled = [], []
    for pool in at.tolist():
        filled.append(sum(weights[i] != 0 for i in pool))
        low = filled[-1] > 0
        expected.append([-float("inf") if low and weights[i] == 0 else values[i] for i in pool])
    assert zeros_last(granularity, layer, scores).tolist() == torch.tensor(expected).tolist()
    counts = filled_in(granularity, layer)
    assert counts.tolist() == filled
    assert counts.dtype == torch.int64
    assert torch.equal(scores, before)
