"""What `print` shows of a result: a few lines, whatever its size, and no wall of tensors."""

import pytest
import torch

import models
import prunus
from prunus.bench.data import load_data
from prunus.budget import Budget, Plan
from prunus.coupling import couple
from prunus.dpp import KDPP


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model, x = models.MLP((120, 160, 100, 5)), torch.randn(32, 120)
    return prunus.prune(model, "importance-node+ls", 0.5, data=x)


def test_results_are_a_few_lines(pruned):
    layer = pruned.layers["layers.0"]
    shown = {
        "pruned": (pruned, 3),
        "layer": (layer, 1),
        "plan": (pruned.plan, 1),
        "group": (pruned.coupling.groups[0], 1),
        "calibration": (prunus.calibrate(pruned.dense, pruned.example), 1),
        "kdpp": (KDPP(torch.eye(300)), 1),
        "dataset": (load_data("digits"), 1),
    }
    for name, (thing, lines) in shown.items():
        for text in (repr(thing), str(thing)):
            assert len(text.splitlines()) <= lines, name
            assert len(text) < 400, name
            assert "tensor(" not in text, name
    assert "density 0.5" in repr(pruned) or f"{pruned.cost_after.density:.4g}" in repr(pruned)
    assert f"{pruned.cost_after.parameters:,}" in repr(pruned)
    assert repr(layer).startswith("LayerResult('layers.0': 160 × 120, density ")
    found = prunus.calibrate(pruned.dense, pruned.example)["layers.0"]
    assert repr(found).startswith("Layer('layers.0': 160 × 120, 8 input vectors; ")


def test_a_comparison_is_a_line():
    torch.manual_seed(0)
    model, x = models.MLP((6, 8, 3)), torch.randn(32, 6)
    found = prunus.compare(
        model, ["magnitude", "wanda"], [0.5, 0.25], data=x, evaluate=lambda m: {"loss": 1.5}
    )
    assert repr(found).startswith("Comparison(2 recipes × 2 densities, 4 runs, loss 1.5 dense;")


def test_what_is_not_met_is_in_the_first_lines():
    torch.manual_seed(0)
    model, x = models.MLP((4, 1, 3)), torch.randn(32, 4)
    pruned = prunus.prune(model, "importance-node", 0.1, data=x)
    assert "NOT MET" in repr(pruned).splitlines()[1]
    assert "NOT MET" in pruned.summary().splitlines()[1]
    plan = Plan(kept={"fc": (1,) * 1000}, limit=0.1, value=0.2, feasible=False)
    assert "NOT FEASIBLE" in repr(plan)
    assert len(repr(plan)) < 200
    assert Budget(density=0.5) == eval(repr(Budget(density=0.5)), {"Budget": Budget})


def test_groups_without_readers_have_words():
    found = couple(models.MLP((6, 8, 3)), torch.randn(2, 6))
    assert "read by" in repr(found.groups[0])
