"""Weights as matrices: the views we know, and those a user registers."""

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from models import build
from prunus.calibration import calibrate
from prunus.calibration.second_moment import add_second_moment, mirror
from prunus.engine import prune
from prunus.layer import Layer, LinearView, layer_of, register_view, view_of


class Transposed(nn.Module):
    """A linear layer that stores its weight as (in, out)."""

    def __init__(self, wide, out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(wide, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D = type("Conv1D", (Transposed,), {"__module__": "transformers.pytorch_utils"})
OtherConv1D = type("Conv1D", (Transposed,), {"__module__": "somewhere.else"})


def agrees(module, twin, x):
    """A transposed module and the linear layer with the same function prune alike."""
    with torch.no_grad():
        twin.weight.copy_(module.weight.T)
        twin.bias.copy_(module.bias)
    data = torch.randn(30, 6)
    ours = prune(nn.Sequential(module), "wanda+ls", 0.5, data=data)
    theirs = prune(nn.Sequential(twin), "wanda+ls", 0.5, data=data)
    torch.testing.assert_close(ours.model(x), theirs.model(x))
    torch.testing.assert_close(ours.model[0].weight, theirs.model[0].weight.T)
    assert int((ours.model[0].weight == 0).sum()) == 12
    assert ours.layers["0"].error == pytest.approx(theirs.layers["0"].error)


def test_hugging_faces_transposed_layer_is_known_without_importing_it():
    torch.manual_seed(0)
    module = Conv1D(6, 4)
    layer = layer_of("c_attn", module)
    assert torch.equal(layer.weight, module.weight.T)
    agrees(module, nn.Linear(6, 4), torch.randn(3, 6))
    assert view_of(OtherConv1D(6, 4)) is None


def test_a_registered_view_serves_like_our_own_until_it_is_taken_back():
    torch.manual_seed(0)
    module = Transposed(6, 4)
    assert view_of(module) is None
    undo = register_view(Transposed, LinearView(transposed=True))
    try:
        agrees(module, nn.Linear(6, 4), torch.randn(3, 6))
        again = register_view(Transposed, LinearView())
        assert view_of(module) == LinearView()
        again()
        assert view_of(module) == LinearView(transposed=True)
    finally:
        undo()
    assert view_of(module) is None


def test_only_the_exact_type_counts():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert view_of(Doubled(2, 2)) is None
    assert view_of(nn.Linear(2, 2)) == LinearView()
    assert view_of(nn.Bilinear(2, 2, 1)) is None
    message = "Layer 'up' is a Bilinear, which has no weight view."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        layer_of("up", nn.Bilinear(2, 2, 1))


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4),
        nn.Conv1d(4, 8, 3, groups=2),
        nn.Conv2d(4, 8, (2, 3), bias=False),
        nn.Conv3d(4, 4, 2, groups=4),
        Conv1D(6, 4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_matrices_go_back_to_parameters(module):
    view, layer = view_of(module), layer_of("m", module)
    assert torch.equal(view.parameter(module, layer.weight), module.weight)
    assert not layer.weight.requires_grad
    assert (layer.bias is None) == (module.bias is None)
    assert layer.weight.shape[0] % layer.groups == 0
    blocks = layer.blocks()
    assert torch.equal(torch.cat([b.weight for b in blocks]), layer.weight)
    if layer.bias is not None:
        assert torch.equal(torch.cat([b.bias for b in blocks]), layer.bias)


def test_blocks_carry_their_own_statistics():
    model, x = build("mixed")
    for name, layer in calibrate(model, x, ("gram", "mean", "max", "zeros")).items():
        if layer.groups == 1:
            assert layer.blocks() == [layer]
            continue
        for g, block in enumerate(layer.blocks()):
            assert block.groups == 1, name
            for key in ("gram", "mean", "max", "zeros"):
                assert torch.equal(getattr(block, key), getattr(layer, key)[g])


@pytest.mark.parametrize(("groups", "width"), [(1, 3), (1, 130), (1, 700), (5, 9)])
def test_second_moments_from_the_upper_panels_alone(groups, width):
    x = torch.randn(40, groups, width, dtype=torch.float64)
    total = torch.zeros(groups, width, width, dtype=torch.float64)
    for part in x.split(15):
        add_second_moment(total, part)
    gram = mirror(total)
    torch.testing.assert_close(gram, torch.einsum("ngi,ngj->gij", x, x))
    assert torch.equal(gram, gram.transpose(1, 2))


def test_the_attention_mask_of_a_convolution_is_refused():
    model, x = build("conv1d")

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, attention_mask):
            return self.net(x)

    message = (
        "An `attention_mask` does not say which patches of a convolution are padding. Leave the "
        "mask out of the batch, or exclude the convolutions."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calibrate(Masked(), {"x": x, "attention_mask": (torch.arange(10) < 8).expand(4, 10)})


def bare(**own):
    return Layer(name="fc", weight=torch.ones(4, 3), **own)


def test_a_layer_reads_its_statistics_as_attributes():
    gram, mine = torch.eye(3), torch.rand(3)
    layer = bare(gram=gram, mine=mine)
    assert layer.gram is gram
    assert layer.statistic("mine") is layer.mine is mine
    assert layer.mean is None  # those of version 0.1 read as None
    assert torch.equal(layer.diag, torch.ones(3))
    other = replace(layer, gram=None, mean=mine)
    assert (other.gram, other.diag) == (None, None)
    assert other.mean is mine is other.mine
    assert dict(replace(layer, statistics={}).statistics) == {}
    for ask in (
        lambda: layer.slope,
        lambda: layer.statistic("slope"),
        lambda: layer.require("slope"),
    ):
        with pytest.raises(
            ValueError,
            match=r"^Layer 'fc' has no statistic 'slope', which this method needs\. Pass data, or "
            r"calibrate with statistics=\('slope',\)\.$",
        ):
            ask()
    assert not hasattr(layer, "slope")
    assert not hasattr(layer, "_private")


def test_a_layer_is_copied_pickled_and_moved_whole():
    layer = bare(gram=torch.eye(3), mine=torch.rand(3), classes={"g": {"gate": torch.ones(2)}})
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        assert torch.equal(other.gram, layer.gram)
        assert torch.equal(other.mine, layer.mine)
        assert torch.equal(other.classes["g"]["gate"], layer.classes["g"]["gate"])
        assert other.axes == layer.axes
    far = layer.to("meta")
    assert {far.weight.device.type, far.gram.device.type, far.mine.device.type} == {"meta"}
    assert far.classes["g"]["gate"].device.type == "meta"


def test_blocks_need_to_know_what_a_first_axis_runs_over():
    mine = torch.rand(4, 3)
    layer = bare(groups=4, mine=mine, gram=torch.rand(4, 3, 3))
    with pytest.raises(
        ValueError,
        match=r"^Layer 'fc' does not say whether the first axis of 'mine' runs over convolution "
        r"groups or over rows\. Pass axes=\{'mine': 'group'\}\.$",
    ):
        layer.blocks()
    for axis, shape in (("group", (3,)), ("out", (1, 3))):
        blocks = replace(layer, axes={"mine": axis}).blocks()
        assert [b.mine.shape for b in blocks] == [shape] * 4
        assert torch.equal(torch.cat([b.mine.reshape(1, 3) for b in blocks]), mine)
        assert [b.gram.shape for b in blocks] == [(3, 3)] * 4
