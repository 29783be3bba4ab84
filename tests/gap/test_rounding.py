"""Certificates of float32 modules count the rounding that folding would hide."""

import copy
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.guarantee.bounds import Bounds
from prunus.theory.gap.rounding import rounding_error
from prunus.theory.gap.stages import LinearPair


@pytest.mark.filterwarnings("ignore")
def test_batch_norm_that_cancels_a_large_bias_does_not_beat_the_certificate() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm1d(30)
    model = nn.Sequential(nn.Linear(20, 30), norm, nn.ReLU(), nn.Linear(30, 5)).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 5)
        model[0].bias.fill_(1e6)
        norm.running_mean.fill_(1e6)
        norm.running_var.fill_(1e-4)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight.mul_(1 + 1e-3)
    x = torch.randn(300, 20, generator=generator)
    certificate = prunus.certify(model, pruned, data=x)
    with torch.no_grad():
        wide, thin = copy.deepcopy(model).double(), copy.deepcopy(pruned).double()
        exact = float((wide(x.double()) - thin(x.double())).norm(dim=1).max())
        computed = float((model(x) - pruned(x)).norm(dim=1).max())
    assert computed > 2 * exact  # rounding dominates, or the test shows nothing
    assert computed <= certificate.statements[0].value


def test_both_networks_round():
    """Each by its own weights: a pair is the mean of what two of either come to."""
    generator = torch.Generator().manual_seed(0)
    small, large = (
        [
            s * torch.randn(n, m, dtype=torch.float64, generator=generator)
            for n, m in ((9, 6), (4, 9))
        ]
        for s in (1.0, 30.0)
    )

    def error(one, other):
        stages = [
            LinearPair(name=f"fc{i}", weight=a, pruned_weight=b)
            for i, (a, b) in enumerate(zip(one, other, strict=True))
        ]
        return rounding_error(stages, 2.0, torch.zeros(1, 6, dtype=torch.float64), 2.0**-24)

    mixed = error(small, large)
    assert mixed == pytest.approx((error(small, small) + error(large, large)) / 2)
    assert mixed == pytest.approx(error(large, small))
    assert error(small, small) < mixed / 100


@pytest.mark.parametrize(("largest", "known"), [(5.01, True), (4.99, False)])
def test_the_range_ends_where_an_entry_of_the_ball_leaves_it(largest, known):
    """Entries of 3 within 2 of their centre reach 5, whose sums and outputs are as large."""
    one = torch.ones(1, 1, dtype=torch.float64)
    stages = [LinearPair(name="fc", weight=one, pruned_weight=one)]
    options = {"radius": 2.0, "centre": 3 * one, "unit": 2.0**-24}
    assert (rounding_error(stages, **options, largest=largest) < math.inf) == known


class Scaled(nn.Sequential):
    """Values grow by a factor in the first layer and shrink by it behind: outputs are of size 1."""

    def __init__(self, kind: str, factor: float) -> None:
        torch.manual_seed(0)
        if kind == "matrices":
            super().__init__(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
            after = self[2]
        elif kind == "norm":  # folded into the convolution before it, whose own values are large
            super().__init__(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
            self[1].running_var.fill_(factor**2)
            after = None
        elif kind == "sums":
            super().__init__(nn.Conv2d(2, 4, 1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3))
            after = self[3]
        with torch.no_grad():
            self[0].weight.mul_(factor)
            if after is not None:
                after.weight.div_(factor)
        self.eval()


@pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["matrices", "norm", "sums"])
def test_no_bound_where_values_of_the_ball_leave_the_range_of_the_numbers(kind, dtype):
    largest = torch.finfo(dtype).max
    factor = min(largest, 1e30) ** 0.5
    model = Scaled(kind, factor).to(dtype)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0, 0] = 0
    shape = (6,) if kind == "matrices" else (2, 4, 4)
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    near = prunus.certify(model, other, data=x)
    assert near.value < math.inf
    assert max(near.gaps) <= near.value
    far = prunus.certify(model, other, data=x, radius=1000 * largest / factor)
    assert far.value == math.inf
    assert "range" in far.of("sup")[0].reason
    assert far.summary()
    reached = x.double().mean(0) + 900 * largest / factor * torch.ones(1, *shape).double() / 8
    with torch.no_grad():
        outputs = model(reached.to(dtype))
    assert not torch.isfinite(outputs).all()  # and the gap there has no size at all
    if kind == "matrices":
        assert prunus.certify(model, other, radius=1000 * largest / factor).value == math.inf


@pytest.mark.parametrize("kind", ["mean_square", "sup"])
def test_numbers_that_a_type_cannot_hold_have_no_bound(kind):
    """400 w is 400 for w = 1, and beyond the 65504 of half precision for w = 300."""
    for size, finite in ((1.0, True), (300.0, False)):
        model = nn.Linear(2, 2, bias=False).half()
        with torch.no_grad():
            model.weight.fill_(size)
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            pruned.weight[0, 0] = 0
        bounds = Bounds(model, torch.full((3, 2), 200.0).half(), 250.0)
        assert math.isfinite(bounds.value(kind, pruned)) == finite
