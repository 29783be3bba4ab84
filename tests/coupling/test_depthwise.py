"""Convolutions without a layer: filters that are raw parameters, buffers or constants."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from coupling_checks import moved
from prunus.coupling import couple

BLUR = torch.tensor([1.0, 2.0, 1.0])
BLUR = BLUR[:, None] * BLUR / 16


class Blur(nn.Module):
    """Halves a map without aliases; the filter is the same for all channels."""

    def __init__(self, form, channels):
        super().__init__()
        self.form, self.channels = form, channels
        kernel = BLUR[None, None].repeat(channels if form == "stored" else 1, 1, 1, 1)
        self.register_buffer("kernel", kernel.clone(), persistent=form != "unsaved")

    def forward(self, x):
        wide = self.channels if self.form == "counted" else x.shape[1]
        kernel = BLUR[None, None].to(x) if self.form == "written" else self.kernel
        kernel = kernel if self.form == "stored" else kernel.expand(wide, -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=wide)


FORMS = ("stored", "expanded", "unsaved", "written", "counted")


@pytest.mark.parametrize("form", FORMS)
def test_filters_that_no_layer_holds_pass_channels_on(form, tmp_path):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.ReLU(), Blur(form, 8), nn.Conv2d(8, 6, 3), nn.ReLU(),
            Blur(form, 6), nn.Conv2d(6, 3, 1),
        ).eval()  # fmt: skip

    model, x, fresh = build(), torch.randn(8, 2, 14, 14), torch.randn(3, 2, 17, 21)
    group, _ = couple(model, x).groups
    assert (group.size, group.producers, group.consumers, group.raw) == (8, ("0",), ("3",), ())
    assert moved(model.double(), group.classes[2], x.double()) <= 1e-12
    pruned = prunus.prune(model.float(), "importance-node", 0.5, data=x)
    small = pruned.compact()
    assert small[0].out_channels < 8
    assert small[3].out_channels < 6
    torch.testing.assert_close(small(fresh), pruned.model(fresh))
    again = prunus.load(pruned.save(tmp_path / "net"), build)
    torch.testing.assert_close(again.compact()(fresh), small(fresh))


@pytest.mark.parametrize("product", [False, True])
def test_filters_that_differ_and_that_nothing_stores_stay(product):
    class Differ(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.own = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 2, 1), torch.randn(6, 1, 3)

        def forward(self, x):
            x = self.a(x)
            own = (
                (torch.arange(1.0, 7)[:, None] @ torch.ones(1, 3))[:, None] if product else self.own
            )
            return self.b(F.conv1d(x, own[: x.shape[1]], groups=x.shape[1]))

    coupling = couple(Differ().eval(), torch.randn(2, 2, 9))
    assert coupling.groups == ()
    assert coupling.refused["a"] == "its weights are computed in the forward pass"


class Raw(nn.Module):
    """One convolution by a parameter of its own between two layers."""

    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b = form, nn.Conv1d(2, 8, 1), nn.Conv1d(8, 3, 1)
        shape = {"plain": (8, 8, 3), "grouped": (8, 4, 3), "turned": (8, 8, 3), "each": (8, 1, 3)}
        self.own = nn.Parameter(torch.randn(shape[form]))
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.form == "turned":
            made = F.conv_transpose1d(x, self.own, self.shift, stride=2)
        else:
            groups = {"plain": 1, "grouped": 2, "each": x.shape[1]}[self.form]
            made = F.conv1d(x, self.own, self.shift, padding=1, groups=groups)
        return self.b(F.relu(made))


@pytest.mark.parametrize("form", ["plain", "grouped", "turned", "each"])
def test_raw_parameters_of_convolutions_are_cut_where_they_are_asked_for(form):
    torch.manual_seed(0)
    model, x = Raw(form).eval(), torch.randn(16, 2, 9)
    group = couple(model, x).groups[-1]
    assert (group.raw, group.consumers) == (("own",), ("b",))
    assert group.size == (4 if form == "grouped" else 8)
    assert moved(model.double(), group.classes[1], x.double()) <= 1e-12
    rest = [m for m in group.classes[1] if m.parameter != "b.weight"]
    assert moved(model, rest, x.double()) > 1e-6  # negative control
    with pytest.raises(ValueError, match=r"without a layer|code that multiplies by `own`"):
        prunus.prune(model.float(), "importance-node", 0.5, data=x)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    small, fresh = pruned.compact(), torch.randn(3, 2, 14)
    assert len(small.shift) == 4
    torch.testing.assert_close(small(fresh), pruned.model(fresh))
