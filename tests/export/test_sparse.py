"""Sparse forms of layers: the same numbers, and only where the clock says so."""

import pytest
import torch
from torch import nn

import prunus
from prunus.cost import Speedup
from prunus.export import sparse, sparse_layers


def net(zeros, wide=64):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, wide), nn.ReLU(), nn.Linear(wide, wide), nn.Linear(wide, 3))
    with torch.no_grad():
        for layer in (model[0], model[2], model[3]):
            layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) > zeros)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_compressed_rows_compute_the_layer(dtype, shape, bias):
    layer = nn.Linear(16, 7, bias=bias).to(dtype)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(7, 16) > 0.8)
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(sparse.CSRLinear(layer)(x), layer(x))


def judged(monkeypatch, verdicts):
    """Replace the clock's word by ours, layer by layer."""
    said = iter(verdicts)

    def compared(before, after):
        verdict = next(said)
        ratio = {"faster": 2.0, "slower": 0.5, "no benefit": 1.0}[verdict]
        return Speedup(ratio=ratio, low=ratio, high=ratio, verdict=verdict)

    monkeypatch.setattr(sparse, "compared_times", compared)


def test_layers_are_replaced_where_the_clock_says_so(monkeypatch):
    model, x = net(0.95), torch.randn(4, 16)
    judged(monkeypatch, ["faster", "no benefit", "slower", "faster"])
    found = sparse_layers(model, x, seconds=0.01)
    assert list(found.layers) == ["0"]
    assert found.refused == {
        "2": "no benefit: 1.00× dense (1.00 to 1.00)",
        "3": "slower: 0.50× dense (0.50 to 0.50)",
    }
    assert isinstance(found.model[0], sparse.CSRLinear)
    assert type(found.model[2]) is nn.Linear
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), model(x))


def test_dense_layers_are_not_even_tried():
    model, x = net(0.5), torch.randn(4, 16)
    found = sparse_layers(prunus.prune(model, "magnitude", 0.4, data=x), x, seconds=0.01)
    assert not found.layers
    assert all("90% that compressed rows need" in why for why in found.refused.values())


def test_half_precision_and_missing_examples():
    model = net(0.95).to(torch.bfloat16)
    found = sparse_layers(model, torch.randn(4, 16, dtype=torch.bfloat16), seconds=0.01)
    assert set(found.refused.values()) == {"no kernel for torch.bfloat16"}
    with pytest.raises(ValueError, match="Measuring needs an example batch"):
        sparse_layers(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_two_of_four_on_a_gpu():
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).half().cuda()
    x = torch.randn(64, 256, dtype=torch.half, device="cuda")
    pruned = prunus.prune(model, prunus.Recipe(granularity=prunus.granularity.NM(2, 4)))
    found = sparse_layers(pruned, x)
    assert set(found.layers) | set(found.refused) == {"0", "1"}
    torch.testing.assert_close(found.model(x), pruned.model(x), rtol=1e-2, atol=1e-2)
