"""Products with parameters that belong to no layer, as an attention of one's own writes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from coupling_checks import moved
from prunus import Recipe
from prunus.coupling import couple
from prunus.granularity import Node


class Own(nn.Module):
    """Attention whose three projections are one raw parameter, heads of width 4."""

    def __init__(self, form, cut="chunk", out="layer"):
        super().__init__()
        self.form, self.cut, self.num_heads, self.embed_dim = form, cut, 4, 16
        self.in_proj_weight = nn.Parameter(torch.randn(48, 6) / 2)
        self.in_proj_bias = nn.Parameter(torch.randn(48) / 4)
        if out == "layer":
            self.out_proj = nn.Linear(16, 5)
        else:
            self.out_weight = nn.Parameter(torch.randn(5, 16) / 4)
        self.head = nn.Linear(5, 3)

    def projected(self, x):
        if self.cut == "chunk":
            return F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        wide = len(self.in_proj_weight) // 3
        rows = [slice(i * wide, (i + 1) * wide) for i in range(3)]
        return [F.linear(x, self.in_proj_weight[r], self.in_proj_bias[r]) for r in rows]

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.projected(x)
        )
        if self.form == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(2, 3) / 2).softmax(3) @ v
        y = y.transpose(1, 2).flatten(2)
        made = self.out_proj(y) if hasattr(self, "out_proj") else y @ self.out_weight.T
        return self.head(F.relu(made))


@pytest.mark.parametrize("form", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", ["chunk", "slices"])
def test_heads_of_one_raw_parameter_are_units(form, cut):
    torch.manual_seed(0)
    model, x = Own(form, cut).double().eval(), torch.randn(8, 7, 6, dtype=torch.float64)
    inner, heads = couple(model, x).groups
    assert (heads.name, heads.size, heads.heads) == ("in_proj_weight", 4, "kv")
    assert (heads.producers, heads.raw, heads.consumers) == ((), ("in_proj_weight",), ("out_proj",))
    assert (inner.name, inner.size, inner.raw) == ("out_proj", 5, ())
    assert {s.parameter: len(s.index) for s in heads.slots} == {
        "in_proj_weight": 48, "in_proj_bias": 48, "out_proj.weight": 16
    }  # fmt: skip
    for members in heads.classes:
        assert moved(model, members, x) <= 1e-12
    rest = [m for m in heads.classes[0] if (m.parameter, m.index) != ("out_proj.weight", 0)]
    assert moved(model, rest, x) > 1e-6  # negative control: one column is left out


@pytest.mark.parametrize("form", ["sdpa", "eager"])
def test_they_are_cut_where_they_are_asked_for(form, tmp_path):
    torch.manual_seed(0)
    model, x = Own(form).eval(), torch.randn(32, 7, 6)
    recipe = Recipe(granularity=Node())
    whole = prunus.prune(model, recipe, 0.5, data=x)
    assert whole.plan.kept == {"out_proj": 2}  # as ever, without `layers`
    assert "has no weight view" in " ".join(whole.not_pruned.values())
    density = {"in_proj_weight": 0.5, "*": 1.0}
    pruned = prunus.prune(model, recipe, density, data=x, layers="*")
    assert pruned.plan.kept == {"in_proj_weight": 2, "out_proj": 5}
    assert "" not in pruned.not_pruned  # of the module that owns the parameter
    small = pruned.compact()
    assert (small.in_proj_weight.shape, small.in_proj_bias.shape) == ((24, 6), (24,))
    assert (small.num_heads, small.out_proj.in_features) == (2, 8)
    torch.testing.assert_close(small(x), pruned.model(x))
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
    again = prunus.load(pruned.save(tmp_path / "net"), Own(form))
    torch.testing.assert_close(again.compact()(x), small(x))


def test_heads_that_raw_parameters_alone_read_are_refused_by_name():
    model, x = Own("sdpa", out="raw").eval(), torch.randn(8, 7, 6)
    assert [group.name for group in couple(model, x).groups] == ["out_weight"]
    pruned = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=x, layers="*")
    assert list(pruned.plan.kept) == ["out_weight"]
    small = pruned.compact()
    torch.testing.assert_close(small(x), pruned.model(x))


def test_what_a_raw_parameter_reads_is_cut_with_the_rest():
    class Reads(nn.Module):
        """Two branches behind one layer: one reads it by a raw parameter."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
            self.own = nn.Parameter(torch.randn(4, 8))

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.b(h) + F.linear(h, self.own)

    torch.manual_seed(0)
    model, x = Reads().double().eval(), torch.randn(32, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert (group.producers, group.consumers, group.raw) == (("a",), ("b",), ("own",))
    for members in group.classes:
        assert moved(model, members, x) <= 1e-12
    with pytest.raises(ValueError, match="pruned only where `layers` names it"):
        prunus.prune(model, "importance-node", 0.5, data=x)
    with pytest.raises(ValueError, match="read by own, which code multiplies by without a layer"):
        prunus.prune(model, "taylor", 0.5, data=[(x, torch.arange(32) % 4)], layers="*")
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    small = pruned.compact()
    assert small.own.shape == (4, 4)
    torch.testing.assert_close(small(x), pruned.model(x))


def test_a_raw_parameter_used_both_ways_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.out = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(F.relu(F.relu(x @ self.w.T) @ self.w))

    coupling = couple(Tied(), torch.randn(4, 6))
    assert coupling.groups == ()


def test_a_buffer_is_refused_by_name():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
            self.register_buffer("turn", torch.randn(8, 8))

        def forward(self, x):
            return self.b(F.relu(self.a(x) @ self.turn))

    coupling = couple(Fixed(), torch.randn(4, 6))
    assert "`turn` is a buffer that the code multiplies by" in coupling.refused["a"]


def test_multihead_attention_of_torch_is_named():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.attn = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
            self.up, self.out = nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x):
            x = self.enter(x)
            return self.out(F.relu(self.up(self.attn(x, x, x, need_weights=False)[0])))

    model, x = Net().eval(), torch.randn(16, 7, 6)
    pruned = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=x, layers="*")
    assert list(pruned.plan.kept) == ["attn.out_proj", "up"]  # no heads
    assert "writes the number of its channels down" in pruned.not_pruned["attn.in_proj_weight"]
    torch.testing.assert_close(pruned.compact()(x), pruned.model(x))
