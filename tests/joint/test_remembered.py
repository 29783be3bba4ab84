"""Eliminations that a calibration remembers: the same answers, and how often they run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus.elimination
from prunus.granularity import EdgePerRow
from prunus.joint import OBS
from prunus.layer import Layer
from prunus.scores import ObsPrice


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_that_remembers_runs_twice_at_most(groups, monkeypatch):
    """Not deep enough the first time, to the end the second; other layers start anew."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, groups, 12, generator=generator, dtype=torch.float64)
    gram = torch.einsum("ngi,ngj->gij", x, x) / 60
    layer = Layer(
        name="a", weight=torch.randn(6, 12, generator=generator), groups=groups,
        gram=gram if groups > 1 else gram[0],
    )  # fmt: skip
    runs = []
    run = prunus.elimination.obs_trace

    def counted(*args, **options):
        runs.append(options["least"])
        return run(*args, **options)

    monkeypatch.setattr(prunus.elimination, "obs_trace", counted)
    rule, kept = OBS(), {k: torch.full((6,), k) for k in (9, 10, 6, 3, 1)}
    bare = {k: rule(layer, EdgePerRow(), count) for k, count in kept.items()}
    assert runs == [9] * groups + [10] * groups + [6] * groups + [3] * groups + [1] * groups
    runs.clear()
    found = layer.remembering({})
    for k, count in kept.items():
        answer = rule(found, EdgePerRow(), count)
        assert torch.equal(answer.mask, bare[k].mask)
        assert torch.equal(answer.weight, bare[k].weight)
    assert torch.equal(ObsPrice(slope=False)(found), ObsPrice(slope=False)(layer))
    assert runs == [9] * groups + [0] * groups + [0] * groups  # the last is the bare layer's
    rule(replace(found, weight=2 * layer.weight), EdgePerRow(), kept[9])
    OBS(ridge=1e-2)(found, EdgePerRow(), kept[9])
    assert runs[3 * groups :] == [9] * groups * 2


def test_compare_eliminates_once_for_all_densities(monkeypatch):
    runs = []
    run = prunus.elimination.obs_trace

    def counted(*args, **options):
        runs.append(options["least"])
        return run(*args, **options)

    monkeypatch.setattr(prunus.elimination, "obs_trace", counted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.randn(50, 10)
    found = prunus.compare(
        model, ["obs-global", "obs", "obs+ls"], [0.6, 0.4, 0.2], data=x,
        evaluate=lambda m: float(m(x).detach().square().mean()), progress=False,
    )  # fmt: skip
    assert runs == [0, 0]  # two layers
    for name, density in (("obs-global", 0.4), ("obs+ls", 0.2)):
        alone = prunus.prune(model, name, density, data=x)
        value = float(alone.model(x).detach().square().mean())
        row = next(r for r in found.records if (r["recipe"], r["density"]) == (name, density))
        assert value == pytest.approx(row[found.metric], rel=1e-12)
