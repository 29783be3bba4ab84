"""Flow along paths through networks with trained norms."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration import Reads, Statistic, calibrate
from prunus.calibration.batches import Batches
from prunus.calibration.flow import path_flow
from prunus.calibration.of_weights import layers_of_weights, reads_weights
from prunus.calibration.statistics import resolved
from prunus.surgery.connected import connection


class Norms(nn.Module):
    """Every norm of the library once, between layers."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = {
            "batch": lambda: nn.BatchNorm2d(4),
            "instance": lambda: nn.InstanceNorm2d(4, affine=True),
            "group": lambda: nn.GroupNorm(2, 4),
            "layer": lambda: nn.LayerNorm((4, 4, 4)),
            "layer-bare": lambda: nn.LayerNorm((4, 4, 4), elementwise_affine=False),
            "rms": lambda: nn.RMSNorm((4, 4, 4)),
        }[norm]()
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def trained(norm: str) -> nn.Module:
    torch.manual_seed(0)
    model = Norms(norm).double().eval()
    if norm == "batch":
        model.norm.running_mean.fill_(50.0)  # far above what |w| times ones can reach
        model.norm.running_var.fill_(4.0)
    return model


KINDS = ["batch", "instance", "group", "layer", "layer-bare", "rms"]


@pytest.mark.parametrize("norm", KINDS)
def test_the_flow_is_conserved_from_layer_to_layer(norm):
    """Σ w ∂R/∂w over any cut of the network is R (Tanaka et al. 2020, theorem 1)."""
    model = trained(norm)
    weights = {
        name: getattr(model, name.split(".")[0]).weight.detach().abs()
        for name in ("conv.weight", "fc.weight")
    }
    outputs, flow = path_flow(model, weights, torch.ones(1, 2, 6, 6, dtype=torch.float64))
    total = float(outputs.sum())
    assert total > 0
    for name, weight in weights.items():
        assert float((weight.double() * flow[name]).sum()) == pytest.approx(total, rel=1e-9)
        assert bool((flow[name] > 0).all())


@pytest.mark.parametrize("norm", KINDS)
def test_a_dense_network_is_connected_and_synflow_keeps_weights_everywhere(norm):
    model = trained(norm)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    masks = {n: masks[n] for n in ("conv.weight", "fc.weight")}
    assert connection(model, masks, x).whole
    pruned = prunus.prune(model, "synflow", 0.5, data=x)
    assert all(bool(result.mask.any()) for result in pruned.layers.values())
    masks["fc.weight"] = torch.zeros_like(masks["fc.weight"])
    assert connection(model, masks, x).collapsed  # negative control
    assert not any(module._forward_hooks for module in model.modules())


@dataclass(frozen=True)
class Twice(Statistic):
    """Of one's own: by the defaults a mean, here over the one reading of the weights."""

    name: ClassVar[str] = "twice"
    reads: ClassVar[Reads] = Reads(source="weights", axis="out", merges=False)

    def add(self, total, reading, layer):
        return 2 * reading.values

    def numbers(self, out, wide, groups):
        return out * wide


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_what_weights_tell_is_the_same_without_a_pass_over_the_data(norm):
    model = trained(norm)
    x = torch.randn(7, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = resolved(["flow", Twice()])
    full = calibrate(model, x, list(wanted.values()))
    assert reads_weights(wanted)
    assert not reads_weights({})
    assert not reads_weights(resolved(["flow", "gram"]))
    found = layers_of_weights(model, list(full), wanted, Batches(x))
    assert list(found) == list(full)
    for name, layer in found.items():
        own = full[name]
        assert torch.equal(layer.weight, own.weight)
        assert layer.weight.data_ptr() != model.get_submodule(name).weight.data_ptr()
        for key, value in own.statistics.items():
            assert torch.equal(layer.statistics[key], value)
        assert torch.equal(layer.statistics["twice"], 2 * layer.statistics["flow"])
    assert len(found) == 2


def test_later_rounds_of_synflow_read_no_data(monkeypatch):
    """The first round has told which layers run; masks are those of rounds that read again."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    recipe = prunus.recipes["synflow"]
    passes = []
    model[0].register_forward_pre_hook(lambda *_: passes.append(1))
    quick = prunus.prune(model, recipe, data=x, density=0.3, measure=False)
    few = len(passes)
    monkeypatch.setattr("prunus.engine.statistics.reads_weights", lambda _: False)
    passes.clear()
    slow = prunus.prune(model, recipe, data=x, density=0.3, measure=False)
    rounds = recipe.schedule.rounds
    assert len(passes) - few >= rounds - 2
    for name, mask in slow.masks.items():
        assert torch.equal(mask, quick.masks[name])
