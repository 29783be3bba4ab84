"""The laws of compensations, over the whole table, every granularity and kind of layer."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.families import conv_layer, instances, linear_layer
from prunus.compensation import COMPENSATIONS, LeastSquares, output_error
from prunus.granularity import GRANULARITIES
from prunus.layer import Layer
from prunus.selection import top_k_mask
from reference import least_squares as slow

RULES = instances(COMPENSATIONS) | {"LeastSquares+intercept": LeastSquares(intercept=True)}
each = pytest.mark.parametrize("name", RULES)
KINDS = {
    "linear": lambda seed: linear_layer(seed),
    "singular": lambda seed: linear_layer(seed, samples=7),  # fewer samples than inputs
    "conv": lambda seed: conv_layer(seed),
    "no bias": lambda seed: conv_layer(seed, bias=False),
    "grouped": lambda seed: conv_layer(seed, groups=2),
    "depthwise": lambda seed: conv_layer(seed, groups=4),
}


def mask_of(granularity, layer, seed, share):
    """A random mask with the same count in every pool; for nodes, whole columns."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(layer.weight.shape)
    rule = instances(GRANULARITIES)[granularity]
    if granularity == "Node":
        line = torch.rand(1, shape[1], generator=generator)
        kept = torch.tensor([max(1, round(share * shape[1]))])
        return top_k_mask(line, kept).expand(shape).clone()
    pools = rule.pool("fc", torch.rand(shape, generator=generator))
    k = rule.n if granularity == "NM" else max(1, round(share * pools.shape[1]))
    return rule.unpool(top_k_mask(pools, torch.full((len(pools),), k)), shape)


@each
@pytest.mark.parametrize("kind", KINDS)
@given(
    granularity=st.sampled_from(sorted(GRANULARITIES)),
    seed=st.integers(0, 3),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.9]),
    narrow=st.booleans(),
)
@settings(max_examples=8)
def test_zeros_outside_the_mask_and_never_a_larger_error(
    name, kind, granularity, seed, share, narrow
):
    layer = KINDS[kind](seed)
    if narrow:  # float32 weights beside float64 statistics
        bias = None if layer.bias is None else layer.bias.float()
        layer = replace(layer, weight=layer.weight.float(), bias=bias)
    mask = mask_of(granularity, layer, seed, share)
    before = layer.weight.clone(), layer.gram.clone(), mask.clone()
    weight, bias = RULES[name](layer, mask)
    for old, new in zip(before, (layer.weight, layer.gram, mask), strict=True):
        assert torch.equal(old, new)
    assert (weight[~mask] == 0).all()
    assert weight.dtype == layer.weight.dtype
    again = RULES[name](layer, mask)[0]
    assert torch.equal(weight, again)
    masked = output_error(layer, layer.weight * mask, layer.bias)
    after = output_error(layer, weight, bias)
    dense = output_error(layer, torch.zeros_like(layer.weight), layer.bias)
    # rounding of the objective itself: float64 sums, or weights rounded to float32
    assert after <= masked + (1e-10 if not narrow else 1e-6) * dense


@pytest.mark.parametrize("kind", ["linear", "singular"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("granularity", sorted(GRANULARITIES))
def test_the_objective_is_that_of_lstsq_on_the_data(kind, intercept, granularity):
    samples = 40 if kind == "linear" else 7
    torch.manual_seed(3)
    x = torch.randn(samples, 12, dtype=torch.float64) @ torch.randn(12, 12).double() + 1
    layer = linear_layer(3)
    layer = replace(layer, gram=x.T @ x / samples, mean=x.mean(0))
    mask = mask_of(granularity, layer, 1, 0.4)
    weight, bias = LeastSquares(intercept=intercept, ridge=1e-12)(layer, mask)
    ours = output_error(layer, weight, bias)
    if intercept:
        fitted, gain = slow.refit_with_intercept(layer.weight.numpy(), x.numpy(), mask.numpy())
        rest = x.numpy() @ (layer.weight.numpy() - fitted).T - gain
        best = (rest**2).mean(0).sum()
    else:
        fitted = slow.refit(layer.weight.numpy(), x.numpy(), mask.numpy())
        best = slow.error(layer.weight.numpy(), fitted, x.numpy()).sum()
    scale = output_error(layer, torch.zeros_like(layer.weight), layer.bias)
    assert abs(ours - best) <= 1e-6 * best + 1e-9 * scale


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_have_the_objective_of_lstsq_on_their_patches(groups):
    from torch import nn

    from prunus.calibration import calibrate
    from prunus.layer import view_of

    torch.manual_seed(1)
    module = nn.Conv2d(4, 8, 2, groups=groups).double()
    x = torch.randn(9, 4, 4, 4, dtype=torch.float64)
    layer = calibrate(nn.Sequential(module), x)["0"]
    mask = mask_of("EdgePerRow", layer, 2, 0.5)
    weight, bias = LeastSquares(ridge=1e-12)(layer, mask)
    vectors = view_of(module).vectors(module, x).numpy()
    best = 0.0
    for g, block in enumerate(layer.blocks()):
        rows = slice(g * 8 // groups, (g + 1) * 8 // groups)
        fitted = slow.refit(block.weight.numpy(), vectors[:, g], mask[rows].numpy())
        best += slow.error(block.weight.numpy(), fitted, vectors[:, g]).sum()
    assert output_error(layer, weight, bias) == pytest.approx(best, rel=1e-6)


@given(seed=st.integers(0, 200))
@settings(max_examples=20)
def test_keeping_a_superset_never_raises_the_error(seed):
    layer = linear_layer(seed)
    few = mask_of("EdgePerRow", layer, seed, 0.3)
    more = few | mask_of("EdgePerRow", layer, seed + 1, 0.3)
    rule = LeastSquares(ridge=1e-12)
    errors = [output_error(layer, *rule(layer, mask)) for mask in (few, more)]
    scale = output_error(layer, torch.zeros_like(layer.weight), layer.bias)
    assert errors[1] <= errors[0] + 1e-9 * scale


def test_the_error_is_what_the_data_say():
    torch.manual_seed(0)
    x, d = torch.randn(2, 30, 5, dtype=torch.float64)
    w, v = torch.randn(2, 3, 5, dtype=torch.float64)
    b, c = torch.randn(2, 3, dtype=torch.float64)
    plain = Layer(name="fc", weight=w, bias=b, gram=x.T @ x / 30, mean=x.mean(0))
    gap = x @ (w - v).T + b - c
    assert output_error(plain, v, c) == pytest.approx(float(gap.square().sum(1).mean()))
    rows = torch.tensor([True, False, True])
    assert output_error(plain, v, c, rows) == pytest.approx(
        float(gap[:, rows].square().sum(1).mean())
    )
    crossed = replace(plain, cross=d.T @ x / 30, dense_gram=d.T @ d / 30, dense_mean=d.mean(0))
    gap = d @ w.T + b - x @ v.T - c
    assert output_error(crossed, v, c) == pytest.approx(float(gap.square().sum(1).mean()))
    assert output_error(replace(plain, gram=None), v, c) is None
    assert output_error(replace(plain, mean=None), v, c) is None  # the bias moved
    assert output_error(replace(plain, mean=None), v, b) is not None


def test_bad_arguments():
    message = (
        "Layer '0' has no statistic 'gram', which this method needs. Pass data, or calibrate with "
        "statistics=('gram',)."
    )
    layer = linear_layer()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LeastSquares()(replace(layer, gram=None), layer.weight > 0)
    with pytest.raises(ValueError, match=r"^`ridge` must be a finite number > 0, got 0\.$"):
        LeastSquares(ridge=0)
    with pytest.raises(ValueError, match=r"^Unknown solver 'cholesky2'\. Did you mean cholesky\?$"):
        LeastSquares(solver="cholesky2")
