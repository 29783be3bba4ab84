"""FPGM against its definition, and what it is for."""

import pytest
import torch
from torch import nn

import prunus
from models import build
from prunus.granularity import Edge, Node
from prunus.recipe import Recipe
from prunus.scores.fpgm import FPGM, sum_of_distances


def test_the_papers_distances():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    expected = torch.tensor([6.0, 5 + 18**0.5, 1 + 18**0.5], dtype=torch.float64)
    torch.testing.assert_close(sum_of_distances(rows), expected)


def test_near_rows_far_from_zero_keep_their_distance():
    """Through inner products, 1e6² in float64, these gaps of 1e-3 would be lost."""
    rows = 1e6 + 1e-3 * torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    expected = 1e-3 * torch.tensor([4.0, 3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(sum_of_distances(rows), expected, atol=1e-9, rtol=0)


def test_the_filter_that_others_resemble_goes_first():
    model, x = build("cnn-relu")
    with torch.no_grad():
        weight = model.conv1.weight
        weight[3] = weight.mean(0)  # near the median of the six
    pruned = prunus.prune(model, "fpgm", {"conv1": 5 / 6, "conv2": 1.0, "fc1": 1.0}, data=x)
    gone = ~pruned.layers["conv1"].mask.any(1)
    assert gone.nonzero().flatten().tolist() == [3]
    filters = weight.detach().double().flatten(1)
    slow = torch.stack([(filters - f).square().sum(1).sqrt().sum() for f in filters])
    assert int(slow.argmin()) == 3


def test_filters_of_several_producers_count_together():
    model, x = build("resnet20-conv")
    pruned = prunus.prune(model, "fpgm", 0.5, data=x)
    assert pruned.cost_after.density <= 0.5
    small = pruned.compact(x)
    torch.testing.assert_close(small(x), pruned.model(x))


def test_single_weights_have_no_median():
    with pytest.raises(ValueError, match=r"^FPGM\(\) serves nodes, so `granularity` must not be"):
        Recipe(granularity=Edge(), score=FPGM())
    with pytest.raises(ValueError, match=r"^FPGM\(\) scores whole nodes, got the weights of layer"):
        FPGM()(prunus.calibrate(nn.Linear(3, 2), torch.randn(4, 3))[""])
    assert Recipe(granularity=Node(), score=FPGM()).statistics == ()
