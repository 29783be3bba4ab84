"""Multiply-adds against torch's own counter, against formulas, and by zeroing what is counted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import models
import prunus
from prunus.cost import anatomy, count_operations, edge_cost
from prunus.modes import evaluating


def macs(model, x):
    with evaluating(model), torch.no_grad():
        found = count_operations(model, lambda: (model(x), len(x))[1])
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return found, found.other + sum(sizes[name] * uses for name, uses in found.uses.items())


@pytest.mark.parametrize("name", [n for n in models.ZOO if n not in ("lstm", "attention")])
def test_agrees_with_torchs_counter(name):
    model, x = models.build(name)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    found, total = macs(model, x)
    assert not found.missing
    assert total * len(x) == counter.get_total_flops() / 2


RECURRENT = [
    (kind, layers, sides, bias, first, dtype)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for layers, sides in ((1, 1), (2, 1), (1, 2), (2, 2))
    for bias, first in ((True, True), (False, False))
    for dtype in (torch.float32, torch.float64)  # the fused kernel, and its parts
]


@pytest.mark.parametrize(("kind", "layers", "sides", "bias", "first", "dtype"), RECURRENT)
def test_recurrent_layers(kind, layers, sides, bias, first, dtype):
    model = kind(5, 7, num_layers=layers, bidirectional=sides == 2, bias=bias, batch_first=first)
    x = torch.randn(6, 6, 5, dtype=dtype)
    found, _ = macs(model.to(dtype), x)
    assert not found.missing
    assert found.other == 0
    assert found.uses == {n: 6.0 for n, p in model.named_parameters() if p.ndim == 2}


def test_attention():
    """Projections, scores, values, and the two linear layers, whatever the kernel."""
    tokens, wide, inner = 5, 16, 32
    model = nn.TransformerEncoderLayer(wide, 4, inner, batch_first=True)
    found, total = macs(model, torch.randn(3, tokens, wide))
    products = 2 * tokens * tokens * wide
    assert found.other == products
    assert total == tokens * (4 * wide * wide + 2 * wide * inner) + products
    assert found.uses["self_attn.in_proj_weight"] == tokens
    assert found.uses["self_attn.out_proj.weight"] == tokens

    class Functional(nn.Module):
        def forward(self, x):
            q, k, v = x[:, :, None].expand(-1, -1, 2, -1, -1).transpose(1, 2).chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v)

    class ByHand(Functional):
        def forward(self, x):
            q, k, v = x[:, :, None].expand(-1, -1, 2, -1, -1).transpose(1, 2).chunk(3, -1)
            return torch.einsum("bghqk,bghkd->bghqd", (q @ k.mT).softmax(-1), v)

    x = torch.randn(2, 3, 4, 12)
    assert macs(Functional(), x)[1] == macs(ByHand(), x)[1]


class Odd(nn.Module):
    """Weights used by functions, transposed, sliced, stacked, copied, and twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 6))
        self.stack = nn.Parameter(torch.randn(3, 6, 5))
        self.kernel = nn.Parameter(torch.randn(5, 2, 3))
        self.table = nn.Embedding(9, 4)
        self.pair = nn.Bilinear(5, 5, 2)

    def forward(self, ids):
        x = self.table(ids)  # (batch, 7, 4)
        x = x @ self.a  # all rows 7 times
        x = x + F.linear(x[:, :2].mean(1, keepdim=True), self.a.T @ self.a.new_ones(4, 6))
        y = torch.einsum("btd,gde->gbte", x, self.stack).sum(0)
        z = F.conv_transpose1d(y.transpose(1, 2), self.kernel.to(torch.float64).to(y.dtype))
        z = F.conv1d(F.pad(z, (0, 0)), self.kernel.transpose(0, 1).contiguous()[:, :2])
        return self.pair(y, y).sum(1), z


def test_weights_however_they_are_used():
    model, ids = Odd(), torch.randint(9, (3, 7))
    found, _ = macs(model, ids)
    assert not found.missing
    # rows of a: 7 tokens, and a product with a computed matrix of 6 columns, once per batch
    assert found.uses["a"] == 7 + 6 / 3
    assert found.uses["stack"] == 7
    assert found.uses["kernel"] == pytest.approx(7 + 7 * 2 * 2 * 3 / 30)
    assert found.uses["pair.weight"] == 7
    assert "table.weight" not in found.uses
    assert found.other == 6 * 6  # one token by the product of the two


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_by_counting_products(rank, transposed, groups):
    """Each weight is set to one alone: the sum of the outputs counts its products with ones."""
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{rank}d")
    model = kind(6, 6, 2, stride=2, groups=groups, bias=False).double()
    x = torch.ones(2, 6, *[4] * rank, dtype=torch.float64)
    found, _ = macs(model, x)
    with torch.no_grad():
        model.weight.zero_()
        model.weight.flatten()[0] = 1
        assert found.uses == {"weight": float(model(x).sum()) / len(x)}


def test_what_has_no_formula_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return torch.cdist(self.fc(x), self.fc.weight) + torch.fft.fft(x).real

    model, x = Net(), torch.randn(4, 6)
    found, _ = macs(model, x)
    assert found.missing == ("aten._cdist_forward", "aten._fft_r2c")
    pruned = prunus.prune(model, "magnitude", 0.5, data=x)
    assert "multiply-adds leave out aten._cdist_forward, aten._fft_r2c, for" in pruned.notes[-1]
    assert not [n for n in prunus.prune(models.MLP(), "magnitude", 0.5).notes if "multiply" in n]


def test_removed_entries_are_not_counted():
    model, x = models.build("lstm")
    cost = edge_cost(anatomy(model, lambda: (model(x), len(x))[1]), {"embed": 10})
    whole = edge_cost(anatomy(model, lambda: (model(x), len(x))[1]), {})
    assert whole.macs == 5 * 30 + 5 * 28 * (6 + 7) + 56 + 32
    assert whole.macs - cost.macs == 5 * 20


def test_a_product_of_two_parameters_belongs_to_neither():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x):
            return x @ (self.a @ self.b)

    found, _ = macs(Net(), torch.randn(2, 6))
    assert found.uses == {}
    assert found.other == (6 * 2 * 4 + 2 * 6 * 4) / 2
