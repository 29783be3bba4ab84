"""N:M of a convolution: blocks of input channels at one tap, or of the flattened patch."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration import calibrate
from prunus.compensation import LeastSquares, NoCompensation
from prunus.granularity import NM, pooled, unpooled
from prunus.joint import OBC, SparseGPT
from prunus.layer import Layer
from prunus.recipe import Recipe, parse
from prunus.selection import TopK

PARTS = {
    "magnitude": (TopK(), NoCompensation()),
    "least squares": (TopK(), LeastSquares()),
    "sparsegpt": (SparseGPT(), NoCompensation()),
    "obc": (OBC(), NoCompensation()),
}


def kept_by_channels(weight, m):
    """Kept weights of every block of m successive input channels at one tap."""
    out, channels = weight.shape[:2]
    blocks = weight.flatten(2).transpose(1, 2).reshape(out, -1, channels // m, m)
    return (blocks != 0).sum(-1)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_every_block_of_channels_keeps_n(name, groups):
    torch.manual_seed(0)
    selection, compensation = PARTS[name]
    net = nn.Sequential(nn.Conv2d(8, 6, (2, 3), groups=groups), nn.Flatten(), nn.Linear(72, 4))
    recipe = Recipe(granularity=NM(2, 4), selection=selection, compensation=compensation)
    x = torch.randn(16, 8, 4, 6)
    pruned = prunus.prune(net, recipe, data=x)
    assert bool((kept_by_channels(pruned.model[0].weight, 4) == 2).all())
    assert bool(((pruned.model[2].weight.view(4, -1, 4) != 0).sum(-1) == 2).all())
    flat = prunus.prune(net, replace(recipe, granularity=NM(2, 4, "columns")), data=x)
    rows = flat.model[0].weight.flatten(1)
    assert bool(((rows.reshape(len(rows), -1, 4) != 0).sum(-1) == 2).all())


@pytest.mark.parametrize("joint", [SparseGPT(), OBC()])
def test_a_joint_method_sees_the_columns_of_a_block_side_by_side(joint):
    """The answer is that of a linear layer whose inputs are the patch, sorted by tap."""
    torch.manual_seed(0)
    layer = calibrate(nn.Conv1d(4, 3, 3).double(), torch.randn(40, 4, 9).double())[""]
    order = torch.arange(12).view(4, 3).T.flatten()
    assert layer.gram is not None
    linear = Layer(
        name="", weight=layer.weight[:, order], gram=layer.gram[order][:, order], samples=280
    )
    kept = torch.full((9,), 2)
    found, wanted = (joint(one, NM(2, 4), kept) for one in (layer, linear))
    assert torch.equal(found.mask[:, order], wanted.mask)
    torch.testing.assert_close(found.weight[:, order], wanted.weight)
    assert not torch.equal(found.mask, joint(layer, NM(2, 4, "columns"), kept).mask)


def test_pools_and_back():
    weight = torch.arange(48.0).view(2, 24)  # 8 channels of 3 taps
    layer = Layer(name="conv", weight=weight, taps=3)
    pools = pooled(NM(2, 4), layer, weight)
    assert pools[0].tolist() == [0, 3, 6, 9]  # channels 0 to 3 at tap 0
    assert pools[3].tolist() == [13, 16, 19, 22]  # channels 4 to 7 at tap 1
    assert torch.equal(unpooled(NM(2, 4), layer, pools), weight)
    assert pooled(NM(2, 4, "columns"), layer, weight)[0].tolist() == [0, 1, 2, 3]
    linear = Layer(name="fc", weight=weight)
    assert torch.equal(
        pooled(NM(2, 4), linear, weight), pooled(NM(2, 4, "columns"), linear, weight)
    )


def test_channels_that_blocks_do_not_divide():
    message = (
        "2:4 needs input channels divisible by 4, got 3 in layer '0' (12 inputs: 3 channels of "
        "4 taps). Exclude the layer, choose another m, or pool along the whole patch with "
        "NM(2, 4, axis='columns')."
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 2))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prunus.prune(net, Recipe(granularity=NM(2, 4)))
    columns = prunus.prune(net, Recipe(granularity=NM(2, 4, "columns")))
    assert columns.cost_after.density == 0.5


def test_the_axis_in_text():
    assert repr(NM(2, 4)) == "NM(n=2, m=4)"  # as before the axis was there
    assert parse("Recipe(granularity=NM(n=2, m=4))").granularity == NM(2, 4, axis="channels")
    other = Recipe(granularity=NM(2, 4, axis="columns"))
    assert "NM(n=2, m=4, axis='columns')" in repr(other)
    assert parse(repr(other)) == other
    with pytest.raises(
        ValueError, match=r"^Unknown axis of N:M 'rows'\. Known: channels, columns\.$"
    ):
        NM(2, 4, axis="rows")
