"""Views that are not ours are held against the layer's own output."""

import re
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.layer import ConvView, LinearView, register_view


class Scaled(nn.Linear):
    """A layer that scales its input: its view is not a linear layer's."""

    def forward(self, x):
        return super().forward(x * torch.linspace(0.01, 3, x.shape[-1]).to(x))


@dataclass(frozen=True)
class ScaledView(LinearView):
    """The right view: the vectors are what the weight multiplies."""

    def vectors(self, module, inputs):
        scale = torch.linspace(0.01, 3, inputs.shape[-1]).to(inputs)
        return super().vectors(module, inputs * scale)


class SamePadding(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Inherits(nn.Linear):
    """Another constructor, the same forward."""

    def __init__(self, wide):
        super().__init__(wide, 4)


@pytest.fixture
def registered():
    undo = []
    yield lambda kind, view: undo.append(register_view(kind, view))
    for back in reversed(undo):  # the last first, as each restores what it found
        back()


def test_a_view_that_sees_other_vectors_is_refused(registered):
    torch.manual_seed(0)
    net, x = nn.Sequential(Scaled(16, 8)), torch.randn(64, 16)
    registered(Scaled, LinearView())
    pattern = (
        r"^The view of layer '0' \(\S*Scaled\) gives W x \+ b up to \d\S* away from the layer's "
        r"own outputs, which reach \d\S*: its forward does more, or other vectors are multiplied\. "
        r"Register a view whose `vectors` are what the weight multiplies, or exclude the layer\.$"
    )
    for recipe in ("wanda+ls", "magnitude"):
        with pytest.raises(ValueError, match=pattern):
            prunus.prune(net, recipe, 0.5, data=x)
    assert prunus.prune(net, "magnitude", 0.5).cost_after.density == 0.5  # needs no vectors
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_right_view_passes_in_every_precision(registered, dtype):
    torch.manual_seed(0)
    net, x = nn.Sequential(Scaled(64, 8)).to(dtype), torch.randn(256, 64, dtype=dtype)
    registered(Scaled, ScaledView())
    pruned = prunus.prune(net, "wanda+ls", 0.5, data=x)
    with torch.no_grad():
        measured = (net(x) - pruned.model(x)).double().square().sum(1).mean()
    rel = 1e-6 if dtype == torch.float64 else 1e-3 if dtype == torch.float32 else 0.05
    assert pruned.layers["0"].error == pytest.approx(float(measured), rel=rel)


def test_outputs_of_another_shape(registered):
    registered(SamePadding, ConvView())
    message = (
        "gives outputs of shape (9, 1, 4), and the layer gives (25, 1, 4) (positions, groups, "
        "outputs of a group). Register a view whose `vectors` are what the weight multiplies, or "
        "exclude the layer."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        prunus.calibrate(SamePadding(2, 4, 3), torch.randn(2, 2, 5, 5))


def test_a_model_that_takes_no_single_sample(registered):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = Scaled(6, 3)

        def forward(self, x):
            return self.fc(x.view(8, 6))

    registered(Scaled, ScaledView())
    assert prunus.calibrate(Fixed(), torch.randn(8, 6))["fc"].samples == 8
    registered(Scaled, LinearView())
    with pytest.raises(ValueError, match="gives W x"):
        prunus.calibrate(Fixed(), torch.randn(8, 6))


def test_a_view_that_does_not_come_back(registered):
    class Twice(LinearView):
        def parameter(self, module, matrix):
            return 2 * matrix

    registered(Scaled, Twice())
    with pytest.raises(ValueError, match=r"Register a view whose `parameter` undoes its `matrix`"):
        prunus.prune(nn.Sequential(Scaled(6, 3)), "magnitude", 0.5)


def test_a_forward_of_its_own_on_one_object():
    """Some libraries replace a module's forward; what it computes decides."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), torch.randn(30, 6)
    plain = prunus.prune(net, "wanda+ls", 0.5, data=x)
    net[0].forward = partial(nn.Linear.forward, net[0])
    same = prunus.prune(net, "wanda+ls", 0.5, data=x)
    assert torch.equal(same.layers["0"].mask, plain.layers["0"].mask)
    torch.testing.assert_close(same.model(x), plain.model(x))
    net[0].forward = partial(lambda module, y: nn.Linear.forward(module, y).relu(), net[0])
    with pytest.raises(ValueError, match=r"The view of layer '0' \(Linear\) gives W x \+ b up to"):
        prunus.prune(net, "wanda+ls", 0.5, data=x)


def test_a_forward_that_a_copy_would_share_is_refused():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    net[0].forward = lambda y, forward=net[0].forward: forward(y)
    message = (
        "The forward of module '0' was replaced by a function that calls this very object, as a "
        "copy of the model would too. Subclass Linear instead."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prunus.prune(net, "magnitude", 0.5)


def test_an_inherited_forward_is_the_known_type():
    torch.manual_seed(0)
    net, x = nn.Sequential(Inherits(8), nn.ReLU(), Inherits(4)).eval(), torch.randn(40, 8)
    twin = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    twin.load_state_dict(net.state_dict())
    for recipe in ("wanda+ls", "importance-node"):
        ours, theirs = (prunus.prune(m, recipe, 0.5, data=x) for m in (net, twin))
        assert ours.cost_after == theirs.cost_after
        for name, result in theirs.layers.items():
            assert torch.equal(ours.layers[name].mask, result.mask)
