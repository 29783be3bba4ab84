"""Flow along paths through networks with trained norms."""

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration.flow import path_flow
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
