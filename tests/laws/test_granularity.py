"""The laws of granularities, over the whole table."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws.families import instances
from prunus.granularity import GRANULARITIES, NM, Node

RULES = instances(GRANULARITIES)
each = pytest.mark.parametrize("name", RULES)


@each
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4))
def test_pools_hold_every_unit_once_and_come_back_in_place(name, rows, blocks):
    scores = torch.arange(rows * blocks * 4, dtype=torch.float64).view(rows, blocks * 4)
    pools = RULES[name].pool("fc", scores)
    assert sorted(pools.flatten().tolist()) == scores.flatten().tolist()
    mask = pools % 3 == 0
    back = RULES[name].unpool(mask, tuple(scores.shape))
    assert torch.equal(back, scores % 3 == 0)


def test_which_units_compete():
    scores = torch.arange(16.0).view(2, 8)
    shapes = {name: tuple(rule.pool("fc", scores).shape) for name, rule in RULES.items()}
    known = {"Edge": (1, 16), "EdgePerRow": (2, 8), "NM": (4, 4), "Node": (1, 16)}
    assert {name: shapes[name] for name in known} == known
    assert torch.equal(RULES["NM"].pool("fc", scores)[1], torch.tensor([4.0, 5.0, 6.0, 7.0]))


@pytest.mark.parametrize("width", [1, 6, 7, 13])
def test_widths_that_blocks_do_not_divide(width):
    message = (
        f"2:4 needs input widths divisible by 4, got {width} in layer 'fc'. Exclude the layer, or "
        f"choose another m."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NM(2, 4).pool("fc", torch.ones(3, width))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(0, 4), "`n` must be a whole number in [1, 4], got 0."),
        (lambda: NM(5, 4), "`n` must be a whole number in [1, 4], got 5."),
        (lambda: NM(1, 0), "`m` must be a whole number >= 1, got 0."),
        (lambda: Node(multiple_of=0), "`multiple_of` must be a whole number >= 1, got 0."),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
