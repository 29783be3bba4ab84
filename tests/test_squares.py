"""Sums of squares in double precision, against exact fractions."""

from fractions import Fraction
from math import prod

import numpy as np
import pytest
import torch

from prunus import squares
from prunus.squares import square_sum


def exact(values, shift=None, axis=-1):
    if shift is not None:
        shape = [1] * values.ndim
        shape[axis] = -1
        shift = shift.view(shape).expand(values.shape).flatten().tolist()
    less = shift if shift is not None else [0.0] * values.numel()
    pairs = zip(values.flatten().tolist(), less, strict=True)
    return float(sum((Fraction(v) - Fraction(s)) ** 2 for v, s in pairs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((5, 6), -1), ((5, 6), 1), ((3, 4, 5, 2), 1), ((2, 3, 67), 1), ((1, 1), 0)],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_the_sum_is_exact_to_double_precision(dtype, shape, axis, shifted, monkeypatch):
    monkeypatch.setattr(squares, "PIECE", {"cpu": 24})  # many pieces, and rows that are longer
    g = torch.Generator().manual_seed(prod(shape))
    values = (3 + torch.randn(shape, generator=g)).to(dtype)
    shift = (3 + torch.randn(shape[axis], generator=g)).to(dtype) if shifted else None
    # Differences are as near as 1e-16 of the numbers, which are a few times larger.
    assert square_sum(values, shift, axis) == pytest.approx(exact(values, shift, axis), rel=1e-13)
    last = values.movedim(axis, -1)  # the same in another order
    assert square_sum(last, shift) == pytest.approx(exact(values, shift, axis), rel=1e-13)


def test_float32_is_not_what_it_is_summed_in():
    """The negative control: a million squares added up in single precision are off by more."""
    values = torch.full((1000, 1000), 1.1) + torch.linspace(0, 1e-3, 1000)
    right = float(values.double().square().sum())
    assert square_sum(values) == pytest.approx(right, rel=1e-13)
    one = np.add.accumulate(values.flatten().square().numpy())[-1]
    assert float(one) != pytest.approx(right, rel=1e-6)


def test_nothing_and_what_is_no_number():
    assert square_sum(torch.ones(0, 3)) == 0.0
    assert square_sum(torch.ones(0, 3), torch.ones(3)) == 0.0
    assert square_sum(torch.tensor([1.0, float("inf")])) == float("inf")
    assert square_sum(torch.tensor([3e38, 3e38])) == pytest.approx(2 * 9e76, rel=1e-6)
