"""Masks of several groups on one parameter."""

from functools import reduce
from itertools import product

import pytest
import torch

from prunus.engine.write import merged

SHAPE = (4, 3, 2, 2)


def masks(name, axes, seed):
    """A mask that differs along some axes alone, which holds its entries once along all others."""
    sizes = [n if axis in axes else 1 for axis, n in enumerate(SHAPE)]
    drawn = torch.rand(sizes, generator=torch.Generator().manual_seed(seed)) < 0.6
    return {name: drawn.expand(SHAPE)}


AXES = [(), (0,), (1,), (0, 1), (0, 1, 2, 3)]


@pytest.mark.parametrize("axes", list(product(AXES, repeat=3)), ids=str)
def test_what_several_masks_leave_is_what_each_of_them_does(axes):
    every = [masks("w", own, seed) for seed, own in enumerate(axes)]
    found = merged(*every)["w"]
    assert torch.equal(found, reduce(torch.logical_and, [own["w"] for own in every]))
    assert found.is_contiguous()
    assert torch.equal(merged(merged(*every[:2]), every[2])["w"], found)


def test_masks_are_kept_by_name_and_none_is_written_to():
    one, other = masks("a", (0,), 0), {**masks("a", (1,), 1), **masks("b", (1,), 2)}
    before = {key: mask.clone() for key, mask in other.items()}
    found = merged(one, other)
    assert list(found) == ["a", "b"]
    assert torch.equal(found["b"], before["b"])
    found["b"].fill_(False)
    assert all(torch.equal(other[key], mask) for key, mask in before.items())


def test_axes_without_entries_stay():
    one = torch.ones(0, 3, dtype=torch.bool)
    other = torch.ones(1, dtype=torch.bool).expand(0, 3)
    assert merged({"w": one}, {"w": other})["w"].shape == (0, 3)
