"""Bilinear layers: their outputs are channels, and what they read stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import prunus
from prunus.coupling import couple


class Products(nn.Module):
    def __init__(self, *, same=False, bias=True):
        super().__init__()
        self.same = same
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.both = nn.Bilinear(8, 8, 10, bias=bias)
        self.c = nn.Linear(10, 3)

    def forward(self, x):
        one, other = functional.relu(self.a(x)), functional.relu(self.b(x))
        return self.c(functional.relu(self.both(one, one if self.same else other)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("shape", [(9, 6), (9, 4, 6)])
def test_outputs_go_and_inputs_stay(same, bias, shape):
    torch.manual_seed(0)
    model, x = Products(same=same, bias=bias).eval(), torch.randn(shape)
    found = couple(model, x)
    assert [(g.name, g.size, g.raw, g.consumers) for g in found.groups] == [
        ("both", 10, ("both",), ("c",))
    ]
    assert found.refused["a"] == "`both` multiplies it by another input's channels"
    pruned = prunus.prune(model, "taylor", 0.5, data=x, layers="*", loss=square, progress=False)
    assert pruned.plan.kept == {"both": 5}
    small = pruned.compact()
    assert (small.both.out_features, small.both.in1_features, small.both.in2_features) == (5, 8, 8)
    assert small.both.weight.shape == (5, 8, 8)
    assert small.c.in_features == 5
    torch.testing.assert_close(small(x), pruned.model(x))


def square(output, batch):
    return output.square().mean()


def test_without_their_name_they_stay():
    model, x = Products().eval(), torch.randn(9, 6)
    with pytest.raises(ValueError, match=r"`both` multiplies it by another input's channels"):
        prunus.prune(model, "taylor", 0.5, data=x, loss=square, progress=False)


def test_other_forms_of_the_operation_have_no_rule():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Linear(6, 8), nn.Parameter(torch.randn(5, 8, 8))

        def forward(self, x):
            h = self.a(x)
            return torch._trilinear(h, self.w, h, [1, 3], [0], [1, 2], [3]).sum(2)

    found = couple(Sums().eval(), torch.randn(8, 6))
    assert list(found.groups) == []
    assert "_trilinear has no rule" in found.refused["a"]


def test_a_score_of_filters_says_that_there_are_none():
    model, x = Products().eval(), torch.randn(9, 6)
    with pytest.raises(ValueError, match=r"No layer makes the channels of 'both', so FPGM"):
        prunus.prune(model, "fpgm", 0.5, data=x, layers="*", progress=False)
