"""Channels that emptied go, also where the code holds to the numbers of others, which stay."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import prunus
from pinned_models import NETS, Attention, Depthwise, Flattened, Halves, Written, build
from prunus import Recipe
from prunus.coupling import couple
from prunus.granularity import NM, Node
from prunus.surgery import CompactionError, compact
from prunus.surgery.compact import compact_groups
from prunus.surgery.dead import dead_units
from prunus.surgery.pinned import PinnedChannels


def entries(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def compacted(pruned):
    """The smaller network and what was said of channels that stay."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", PinnedChannels)
        small = pruned.compact()
    return small, " ".join(str(w.message) for w in told if w.category is PinnedChannels)


@pytest.mark.parametrize(("recipe", "density"), [("wanda", 0.1), ("magnitude", 1e-4)])
@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_all_goes_but_what_the_code_holds_to(kind, recipe, density):
    """Equal also at other inputs; layers beside the ones held to have no dead class left."""
    model, x = build(kind)
    _, held = NETS[kind]
    pruned = prunus.prune(model, recipe, density, data=x)
    small, told = compacted(pruned)
    far = 100 * torch.randn(7, *x.shape[1:], generator=torch.Generator().manual_seed(2)).double()
    for batch in (x, x[:3], far):
        assert_close(small(batch), pruned.model(batch), rtol=1e-9, atol=1e-9)
    groups = couple(small, x).groups
    alive = {g.name: torch.ones(g.size, dtype=torch.bool) for g in groups}
    for group, dead in zip(groups, dead_units(small, groups, alive, x), strict=True):
        free = not held & {*group.producers}
        assert int(dead.units.sum()) <= (1 if free else group.size)  # one stays where all died
        if int(dead.units.sum()) > 1:
            assert any(f" {name}" in told for name in group.producers)
    for name in held:
        layer, before = small.get_submodule(name), model.get_submodule(name)
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        if kind is not Halves and f"of {name} (" in told:
            assert layer.weight.shape[axis] == before.weight.shape[axis]
    if density == 1e-4 and kind is not Halves:  # everything died, so that something has to stay
        assert told
    if density == 1e-4 and kind not in (Written, Attention):
        assert entries(small) < entries(model)


def test_patterns_of_n_in_m_leave_channels_of_code_too():
    model, x = build(Flattened)
    with torch.no_grad():  # what 2:4 does not empty by itself
        model.c2.weight[3], model.c2.bias[3], model.c1.weight[:2], model.c1.bias[:2] = 0, 0, 0, 0
    recipe = Recipe(granularity=NM(2, 4))
    pruned = prunus.prune(model, recipe, data=x, layers=["c2", "f1"])
    small, told = compacted(pruned)
    assert "1 of 12 channels of c2" in told
    assert (small.c1.out_channels, small.c2.out_channels) == (6, 12)
    assert_close(small(x), pruned.model(x))


def test_halves_lose_as_many_as_the_one_that_lost_fewer():
    model, x = build(Halves)
    with torch.no_grad():
        model.a.weight[:5], model.a.bias[:5] = 0, 0
        model.b.weight[:3], model.b.bias[:3] = 0, 0
    with pytest.warns(PinnedChannels, match="2 of 24 channels of a .*as many channels as others"):
        small = compact(model, x)
    assert small.a.out_features == small.b.out_features == 21
    assert small.c.in_features == small.d.in_features == 21
    assert_close(small(x), model(x))


def test_constants_that_emptied_channels_emit_are_folded_though_they_stay():
    """A unit behind them that reads nothing else dies, and goes."""
    model, x = build(Depthwise)
    with torch.no_grad():
        model.e.weight[:20], model.f.weight[0] = 0, 0
        model.f.weight[1, 20:] = 0  # reads constants alone
    with pytest.warns(PinnedChannels, match="20 of 24 channels of q, e"):
        small = compact(model, x)
    assert (small.q.out_channels, small.f.in_features, small.f.out_features) == (24, 24, 10)
    assert_close(small(x), model(x))
    assert not small.e.weight[:20].any()
    assert not small.f.weight[:, :20].any()


def test_a_channel_of_another_group_is_tried_where_it_can_go():
    """k layers of n that the code holds to: all others lose theirs, by about 2 k log₂ n trials."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(17))
            self.runs = 0

        def forward(self, x):
            self.runs += 1
            for i, layer in enumerate(self.layers):
                x = F.relu(layer(x))
                if i in (3, 12):
                    x = x.view(len(x), 8)
            return x

    torch.manual_seed(0)
    model, x = Deep().double(), torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.layers[:-1]:
            layer.weight[2], layer.bias[2] = 0, 0
    with pytest.warns(PinnedChannels) as told:
        small = compact(model, x)
    assert "of layers.3 (" in str(told[0].message)
    assert "of layers.12 (" in str(told[0].message)
    assert str(told[0].message).count("channels of") == 2
    widths = [layer.out_features for layer in small.layers[:-1]]
    assert widths == [8 if i in (3, 12) else 7 for i in range(16)]
    assert_close(small(x), model(x))


def test_what_does_not_equal_itself_is_an_error():
    """Nothing is smaller and equal where the network gives no numbers to be compared."""
    model, x = build(Flattened)
    with torch.no_grad():
        model.c1.weight[0], model.c1.bias[0] = 0, 0
        model.f2.bias[0] = torch.nan
    with pytest.raises(CompactionError, match="the outputs are nan on the data"):
        compact(model, x)


def test_without_being_asked_to_leave_channels_a_cut_that_fails_is_an_error():
    model, x = build(Flattened)
    with torch.no_grad():
        model.c2.weight[0], model.c2.bias[0] = 0, 0
    with pytest.raises(CompactionError, match=r"fails in layer `f1`"):
        compact_groups(model, couple(model, x).groups, x)


class Even(nn.Module):
    """Runs at widths that are multiples of eight, as some kernels do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        if x.shape[-1] % 8:
            raise ValueError("a multiple of eight is needed")
        return self.c(F.relu(self.b(x)))


def test_costs_are_those_of_the_network_that_keeps_what_was_planned_to_go():
    """Nodes too: the trial cut eight of sixteen, which the code takes; the plan cuts others."""
    torch.manual_seed(0)
    model, x = Even().eval(), torch.randn(16, 6)
    recipe = Recipe(granularity=Node())
    pruned = prunus.prune(model, recipe, 0.8, data=x)
    assert 0 < int((pruned.model.a.weight == 0).all(1).sum()) != 8
    small, told = compacted(pruned)
    assert "of 16 channels of a (" in told
    assert "a multiple of eight is needed" in told
    assert small.a.out_features == 16
    assert small.b.out_features < 12
    assert pruned.cost_after.parameters == entries(small)
    assert "keeps removed channels, which its costs count" in pruned.notes[-1]
    assert_close(small(x), pruned.model(x))
