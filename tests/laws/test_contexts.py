"""Laws over contexts: every entry of every table in every recipe that it says it can stand in.

An entry is tested through `prune` with edges, rows, N:M blocks, nodes and grouped convolutions, on
dense and on pruned inputs, in one step and in two. A new entry is tested as it comes; what refuses
it is its own declaration, and every entry must serve some context.
"""

import functools
import itertools

import pytest
import torch

import prunus
from laws import networks
from laws.families import ARGUMENTS
from prunus.allocation import ALLOCATIONS
from prunus.compensation import COMPENSATIONS
from prunus.granularity import GRANULARITIES, NM, Blocks, Edge, EdgePerRow, Experts, Node, pooled
from prunus.joint import JOINTS
from prunus.layer import layer_of
from prunus.recipe import Recipe
from prunus.schedules import SCHEDULES, Iterative
from prunus.scores import SCORES, BlockCosine, Reap
from prunus.selection import SELECTIONS

TABLES = {
    "granularity": GRANULARITIES, "score": SCORES, "allocation": ALLOCATIONS,
    "selection": {**SELECTIONS, **JOINTS}, "compensation": COMPENSATIONS, "schedule": SCHEDULES,
}  # fmt: skip
SMALLER = {
    "AtInit": {"rounds": 2}, "Refine": {"rounds": 2}, "Planned": {},
    "EdgePopup": {"epochs": 1},
}  # fmt: skip
ENTRIES = [  # parts that read the steps of a training: tests/training/test_laws.py
    (field, name)
    for field, table in TABLES.items()
    for name, make in table.items()
    if not getattr(make, "gathers", ())
]
CONTEXTS = {
    "edges": ("linear", Edge()),
    "rows": ("linear", EdgePerRow()),
    "blocks": ("linear", NM(2, 4)),
    "nodes": ("linear", Node()),
    "edges of grouped convolutions": ("grouped", Edge()),
    "blocks of grouped convolutions": ("grouped", NM(2, 4)),
    "nodes of grouped convolutions": ("grouped", Node()),
    "residual blocks": ("residual", Blocks()),
    "experts": ("mixture", Experts()),
}
# Scores of the units that no weight tells.
OF_ITS_KIND = {
    "blocks": BlockCosine,
    "experts": Reap,
}  # scores of units that Magnitude does not know


def part_of(field, name):
    return TABLES[field][name](**SMALLER.get(name, ARGUMENTS.get(name, {})))


network = functools.cache(networks.network)


def recipe_of(field, name, context, inputs, steps):
    """The recipe, or None where the parts refuse each other."""
    fields = {"granularity": CONTEXTS[context][1], "inputs": inputs}
    if steps == 2:
        fields["schedule"] = Iterative(rounds=2)
    fields[field] = part_of(field, name)
    units = fields["granularity"].units
    if units in OF_ITS_KIND:
        fields.setdefault("score", OF_ITS_KIND[units]())
    try:
        return Recipe(**fields)
    except ValueError:
        return None


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("field", "name"), ENTRIES)
def test_every_part_in_every_context_it_serves(field, name, context):
    for inputs, steps in itertools.product(("dense", "pruned"), (1, 2)):
        recipe = recipe_of(field, name, context, inputs, steps)
        if recipe is None or (field == "schedule" and steps == 2):
            continue
        if field == "granularity" and CONTEXTS[context][1] != Edge():
            continue  # it stands in the context's own place: once for each network
        home = {"blocks": "residual", "experts": "mixture"}.get(recipe.units)
        if home is not None and CONTEXTS[context][0] != home:
            continue  # the others have none
        if recipe.allocation.measures_curves and (inputs == "pruned" or steps == 2):
            continue  # refused by `prune`: tests/engine/test_prune.py
        kind = CONTEXTS[context][0]
        if (repr(recipe), kind) not in HELD:
            held(recipe, *network(kind))
            HELD.add((repr(recipe), kind))


HELD = set()  # prunings that went well: the defaults of all tables are one recipe


def held(recipe, model, x, y):
    """One pruning: exact counts, zeros that are the masks', rounds that nest, finite outputs."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rounds = []

    def train(work, step):
        rounds.append({k: p.detach() != 0 for k, p in work.named_parameters()})

    density = None if recipe.granularity.fixed else 0.5
    data = [(x[:16], y[:16]), (x[16:], y[16:])]
    pruned = prunus.prune(
        model, recipe, density, data=data, train=train if recipe.schedule.trains else None
    )
    parameters = dict(pruned.model.named_parameters())
    dense = dict(model.named_parameters())
    assert pruned.layers or recipe.units == "experts"  # which no view knows
    for name, mask in pruned.masks.items():
        assert not parameters[name].detach()[~mask].any()
    for layer, result in pruned.layers.items():
        weight = parameters[f"{layer}.weight"].detach()
        mask = pruned.masks[f"{layer}.weight"]
        assert torch.equal(weight.flatten(1), result.weight)
        assert torch.equal(mask.flatten(1), result.mask)
        assert not weight[~mask].any()
        assert result.error is None or 0 <= result.error < float("inf")
        if not recipe.refits and result.scale is None:
            assert torch.equal(weight[mask], dense[f"{layer}.weight"].detach()[mask])
        for earlier in rounds[:-1]:
            assert not (mask & ~earlier[f"{layer}.weight"]).any()
    if recipe.units == "edges":
        kept = {k: int(r.mask.sum()) for k, r in pruned.layers.items()}
        for key, counts in pruned.plan.kept.items():
            assert kept[key] == (counts if isinstance(counts, int) else sum(counts))
        for layer, result in pruned.layers.items():
            own = layer_of(layer, model.get_submodule(layer))
            pools = pooled(recipe.granularity, own, result.mask.double())
            assert recipe.granularity.fixed is None or bool((pools.sum(1) == 2).all())
        total = sum(r.mask.numel() for r in pruned.layers.values())
        if recipe.allocation.minimum == 1:
            assert abs(sum(kept.values()) - 0.5 * total) <= len(kept) / 2
    else:
        assert 0.2 < pruned.cost_after.density <= 0.5
    assert bool(torch.isfinite(pruned.model(x)).all())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(("field", "name"), ENTRIES)
def test_every_part_serves_some_context(field, name):
    assert any(recipe_of(field, name, context, "dense", 1) for context in CONTEXTS)
