"""Zeros where a mask says so, against `where`, to the bit."""

import pytest
import torch

from prunus import zeros
from prunus.zeros import put_zeros, with_zeros

ODD = [0.0, -0.0, 1.5, -2.0, float("inf"), -float("inf"), float("nan")]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def bits(values):
    return values.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "turned", "mask turned", "expanded"])
@pytest.mark.parametrize("few", [0, zeros.FEW])
def test_zeros_are_those_of_where(dtype, layout, few, monkeypatch):
    monkeypatch.setattr(zeros, "FEW", few)
    monkeypatch.setattr(zeros, "PIECE", 5)  # several pieces, the last one short
    values = torch.tensor(ODD * 4, dtype=dtype).view(4, 7)
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    if layout == "turned":
        values = values.T.contiguous().T
    elif layout == "mask turned":
        mask = mask.T.contiguous().T
    elif layout == "expanded":
        mask = mask[:1].expand(4, 7)
    expected = torch.where(mask, values, torch.zeros((), dtype=dtype))
    before = values.clone()
    made = with_zeros(values, mask)
    assert torch.equal(bits(made), bits(expected))
    assert torch.equal(bits(values), bits(before))
    put_zeros(values, mask)
    assert torch.equal(bits(values), bits(expected))


def test_a_parameter_and_nothing_at_all():
    parameter = torch.nn.Parameter(torch.ones(3))
    made = with_zeros(parameter, torch.tensor([True, False, True]))
    assert made.tolist() == [1.0, 0.0, 1.0]
    assert not made.requires_grad
    version = parameter._version
    with torch.no_grad():
        put_zeros(parameter, torch.tensor([True, False, True]))
    assert parameter.tolist() == [1.0, 0.0, 1.0]
    assert parameter._version > version  # autograd knows
    assert with_zeros(torch.ones(0, 3), torch.ones(0, 3, dtype=torch.bool)).shape == (0, 3)
