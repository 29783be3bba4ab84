"""Zero slices by their definition, along every axis."""

import pytest
import torch
from torch import nn

from prunus.surgery import compact
from prunus.surgery.zeros import Zeros


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 5), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slices_without_an_entry_beside_zero(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    tensor = torch.randn(shape, generator=generator).to(dtype)
    for axis, size in enumerate(shape):
        if size > 2:
            tensor.select(axis, 2).zero_()
    if tensor.numel():
        tensor.flatten()[0] = -0.0
    zeros = Zeros({"t": tensor})
    for axis in range(tensor.ndim):
        rows = tensor.movedim(axis, 0).unbind()
        expected = torch.tensor([bool((row == 0).all()) for row in rows], dtype=torch.bool)
        assert torch.equal(zeros.slices("t", axis), expected)


def test_what_is_cut_shares_no_memory_with_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for layer in (model[0].weight, model[0].bias):  # two units go, the last layer stays whole
            layer[:2] = 0
        model[2].weight[:, :2] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = compact(model, torch.randn(3, 4))
    assert small[0].weight.shape == (4, 4)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_no_number_is_not_zero() -> None:
    tensor = torch.zeros(3, 2, 2)
    tensor[1, 0, 1], tensor[2, 1, 0] = torch.nan, -torch.inf
    zeros = Zeros({"t": tensor})
    assert zeros.slices("t", 0).tolist() == [True, False, False]
    assert zeros.slices("t", 1).tolist() == [False, False]
    assert zeros.slices("t", 2).tolist() == [False, False]
    assert "t" in zeros
    assert "u" not in zeros


def test_entries_of_any_sign_and_kind_are_no_zeros() -> None:
    below = -torch.rand(3, 2, 2)
    below[1] = 0
    turned = torch.zeros(3, 2, dtype=torch.complex64)
    turned[0, 1] = 1j
    zeros = Zeros({"below": below, "turned": turned})
    assert zeros.slices("below", 0).tolist() == [False, True, False]
    assert zeros.slices("below", 1).tolist() == [False, False]
    assert zeros.slices("turned", 0).tolist() == [False, True, True]
    assert zeros.slices("turned", 1).tolist() == [True, False]
