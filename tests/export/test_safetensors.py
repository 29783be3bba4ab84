"""Our own folder as an export."""

import pytest
import torch
from torch import nn

import prunus


@pytest.fixture
def pruned():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
        x = torch.randn(8, 6)
    return lambda recipe: prunus.prune(net, recipe, 0.8, data=x), x


def test_a_compact_network_comes_back(pruned, tmp_path):
    make, x = pruned
    found = make("importance-node").export(tmp_path / "net", "safetensors", example=x)
    assert found.compact
    assert [check.inputs["input"] for check in found.checked] == [(1, 6), (8, 6), (17, 6)]
    assert {file.suffix for file in found.files} == {".json", ".safetensors"}
    assert found.bytes == sum(file.stat().st_size for file in found.files)
    (timing,) = found.latency
    assert timing.engine == "torch"
    assert timing.gain.verdict in found.verdict
    assert "input 8×6" in found.summary()


def test_zeros_in_place_are_said_to_save_nothing(pruned, tmp_path):
    make, x = pruned
    found = make("magnitude").export(tmp_path / "net", "safetensors", example=x, measure=False)
    assert not found.compact
    assert found.notes[0] == "Its zeros lie in dense tensors and save no time."
    assert found.latency == ()
    assert found.verdict == ""


def test_an_unknown_format(pruned, tmp_path):
    make, _ = pruned
    with pytest.raises(ValueError, match=r"format"):
        make("magnitude").export(tmp_path / "net", "gguf")
