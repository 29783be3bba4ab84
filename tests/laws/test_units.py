"""Laws over kinds of units: whatever goes, the same is asked of what is left.

A row for each kind. Masks are zeros (and barred routers), counts are the plan's, the compact
network is the masked one and as small as the account says, files bring both back, and every weight
is either the plan's or has a reason.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import prunus
from laws.networks import network
from prunus import Recipe
from prunus.engine.kinds import KINDS
from prunus.granularity import GRANULARITIES, NM, Blocks, Edge, EdgePerRow, Experts, Node
from prunus.parts import UNITS
from prunus.scores import BlockGap, ExpertGap, Magnitude, Reap
from prunus.surgery.removals import REMOVALS
from prunus.weights import weights_of
from real_networks import NETWORKS


@dataclass(frozen=True)
class Row:
    """A kind of unit.

    Attributes:
        recipe: that removes them.
        make: () -> a network in float64 with its inputs.
        count: (masks of one key's parameters by their names' ends) -> units kept.
        density: asked for.
        options: of `prune`.
    """

    recipe: Recipe
    make: Callable
    count: Callable
    density: float | None = 0.5
    layers: str | None = None


def tiny(kind):
    return lambda: network(kind)[:2]


def real(name):
    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = NETWORKS[name].make().double().eval()
            return model, NETWORKS[name].examples()[0].double()

    return make


def entries(key, pruned):
    return int(pruned.layers[key].mask.sum())


def rows(key, pruned):
    """Rows of a producer that are not empty; heads are several rows each."""
    group = next(g for g in pruned.coupling.groups if g.name == key)
    slot = next(s for s in group.slots if s.role == "out" and s.layer == key)
    mask = pruned.masks[slot.parameter].movedim(slot.axis, 0).flatten(1).any(1)
    units = torch.zeros(group.size, dtype=torch.bool)
    units[slot.unit] = mask[slot.index]
    return int(units.sum())


def writing(key, pruned):
    """Blocks of a chain that write something to the stream."""
    own = [bool(m.any()) for n, m in pruned.masks.items() if n.startswith(key) and m.ndim > 1]
    return sum(own)


def sent_to(key, pruned):
    return int(pruned.masks[f"{key}.gate.weight"].any(1).sum())


L1 = Magnitude()
ROWS = {
    "weights": Row(Recipe(granularity=Edge()), tiny("linear"), entries),
    "weights of rows": Row(Recipe(granularity=EdgePerRow()), tiny("linear"), entries),
    "two of four": Row(Recipe(granularity=NM(2, 4)), tiny("linear"), entries, None),
    "channels": Row(Recipe(granularity=Node(), score=L1), tiny("linear"), rows),
    "channels of grouped convolutions": Row(Recipe(granularity=Node()), tiny("grouped"), rows),
    "channels of transposed convolutions": Row(Recipe(granularity=Node()), real("U-Net"), rows),
    "heads": Row(Recipe(granularity=Node()), real("einsum attention"), rows),
    "hidden units": Row(Recipe(granularity=Node()), real("LSTM"), rows, layers="*"),
    "blocks": Row(Recipe(granularity=Blocks(), score=BlockGap("mse")), tiny("residual"), writing),
    "experts": Row(Recipe(granularity=Experts(), score=Reap()), tiny("mixture"), sent_to),
    "experts by their gap": Row(
        Recipe(granularity=Experts(), score=ExpertGap()), tiny("mixture"), sent_to, 0.75
    ),
}


def pruned_by(row):
    model, x = row.make()
    return model, x, prunus.prune(model, row.recipe, row.density, data=x, layers=row.layers)


def test_every_kind_has_a_row():
    assert {row.recipe.units for row in ROWS.values()} == set(UNITS) == set(KINDS)
    assert {type(row.recipe.granularity) for row in ROWS.values()} == set(GRANULARITIES.values())
    assert set(REMOVALS) < set(UNITS)


@torch.no_grad()
@pytest.mark.parametrize("name", ROWS)
def test_masks_counts_and_reasons(name):
    row = ROWS[name]
    model, x = row.make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prunus.prune(model, row.recipe, row.density, data=x, layers=row.layers)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert list(pruned.model.state_dict()) == list(before)
    parameters = dict(pruned.model.named_parameters())
    for key, mask in pruned.masks.items():
        assert mask.shape == parameters[key].shape
        assert not parameters[key][~mask].any()
        assert torch.equal(parameters[key][mask], before[key][mask])
    assert any(not bool(mask.all()) for mask in pruned.masks.values())
    for key, kept in pruned.plan.kept.items():
        assert row.count(key, pruned) == (kept if isinstance(kept, int) else sum(kept))
    known = {*pruned.layers, *pruned.not_pruned}
    silent = [
        layer
        for layer, weight in weights_of(model).items()
        if layer not in known
        and weight.path not in pruned.masks
        and not any(layer.startswith(f"{part}.") for part in (*known, *pruned.plan.kept))
    ]
    assert not silent
    assert all(why.strip() for why in pruned.not_pruned.values())


@torch.no_grad()
@pytest.mark.parametrize("name", ROWS)
def test_compact_is_the_masked_network_and_costs_what_is_said(name):
    row = ROWS[name]
    model, x, pruned = pruned_by(row)
    masked = pruned.model(x)
    assert float((masked - model(x)).abs().max()) > 1e-6  # something went
    if not row.recipe.granularity.shrinks:
        gone = sum(int((~mask).sum()) for mask in pruned.masks.values())
        assert pruned.cost_after.parameters == sum(p.numel() for p in model.parameters()) - gone
        return
    small = pruned.compact(x)
    torch.testing.assert_close(small(x), masked, rtol=1e-9, atol=1e-10)
    count = sum(p.numel() for p in small.parameters())
    assert pruned.cost_after.parameters == count < sum(p.numel() for p in model.parameters())
    assert pruned.cost_after.macs <= pruned.cost_before.macs
    assert 0 < pruned.cost_after.density <= row.density
    assert type(small) is type(model)


@torch.no_grad()
@pytest.mark.parametrize("name", ROWS)
def test_files_and_copies_bring_it_back(name, tmp_path):
    row = ROWS[name]
    model, x, pruned = pruned_by(row)
    shrinks = row.recipe.granularity.shrinks
    pruned.save(tmp_path, example=x if shrinks else None)
    again = prunus.load(tmp_path, copy.deepcopy(model))
    assert torch.equal(again.model(x), pruned.model(x))
    assert torch.equal(copy.deepcopy(pruned.model)(x), pruned.model(x))
    assert (again.plan.kept, again.recipe) == (pruned.plan.kept, pruned.recipe)
    assert dict(again.not_pruned) == dict(pruned.not_pruned)
    assert set(again.masks) == set(pruned.masks)
    for key, mask in pruned.masks.items():
        assert torch.equal(again.masks[key], mask)
    if shrinks:
        torch.testing.assert_close(again.compact()(x), pruned.compact(x)(x), rtol=0, atol=0)
        torch.testing.assert_close(prunus.compact(again, x)(x), pruned.model(x))


@pytest.mark.parametrize("name", ROWS)
def test_training_leaves_them_gone(name):
    row = ROWS[name]
    _, x, pruned = pruned_by(row)
    optimizer = torch.optim.AdamW(pruned.model.parameters(), lr=0.05, weight_decay=0.1)
    with pruned.hold(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            pruned.model(x).square().mean().backward()
            optimizer.step()
    parameters = dict(pruned.model.named_parameters())
    assert not any(bool(parameters[k].detach()[~m].any()) for k, m in pruned.masks.items())
    if row.recipe.granularity.shrinks:
        with torch.no_grad():
            torch.testing.assert_close(pruned.compact(x)(x), pruned.model(x), rtol=1e-8, atol=1e-9)
