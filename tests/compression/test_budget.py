"""Budgets of compressed bytes, and the most that a compressed file can take."""

import pytest
import torch
from torch import nn

import prunus
from models import build
from prunus.budget import Budget
from prunus.coding.state import Coded, pack
from prunus.compression import compress
from prunus.cost.compressed import compressed_bytes
from prunus.report.headline import size_words


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-relu", "lstm"])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_files_take_at_most_what_the_cost_says(name, density, tmp_path):
    model, x = build(name)
    pruned = prunus.prune(model, "magnitude", density, data=[x])
    found = compress(pruned, tmp_path / "small.st")
    most = pruned.cost_after.compressed
    assert most is not None
    assert found.bytes <= most
    line = next(s for s in pruned.summary().splitlines() if "bytes compressed, at most" in s)
    assert size_words(most) in line


def test_many_large_tensors_beside_the_weights_have_lines_of_their_own(tmp_path):
    norms = [nn.LayerNorm(1100) for _ in range(60)]
    model = nn.Sequential(nn.Linear(8, 1100), *norms, nn.Linear(1100, 3))
    pruned = prunus.prune(model, "magnitude", 0.3)
    most = pruned.cost_after.compressed
    assert most is not None
    assert 0.99 * most < compress(pruned, tmp_path / "small.st").bytes <= most


@pytest.mark.parametrize("density", [0.003, 0.05, 0.5, 0.99])
def test_masks_without_structure_come_close_to_the_bound(density):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(300, 784, generator=generator) < density
    weight = mask * torch.randn(300, 784, generator=generator)
    packed = pack({"w": weight}, {"w": Coded(mask=mask)}, {"recipe": "Recipe()"})
    most = compressed_bytes([(("w", "float32", (300, 784)), int(mask.sum()))], [])
    assert len(packed.data) <= most <= 1.03 * len(packed.data) + 1100


def test_a_budget_of_compressed_bytes_is_met_and_used(tmp_path):
    model, x = build("mlp-relu")
    model, x = model.float(), x.float()
    dense = prunus.prune(model, "magnitude", 1.0, data=[x]).cost_after
    assert dense.compressed is not None
    limit = (dense.compressed + 2100) // 2
    pruned = prunus.prune(model, "magnitude", Budget(bytes=limit, coder="compressed"), data=[x])
    most = pruned.cost_after.compressed
    assert most is not None
    assert limit - 40 <= most <= limit
    assert compress(pruned, tmp_path / "small.st").bytes <= limit


def test_budgets_that_make_no_sense():
    with pytest.raises(
        ValueError, match="`coder` belongs to a budget of bytes, got one of density"
    ):
        Budget(density=0.5, coder="compressed")
    with pytest.raises(ValueError, match="Unknown coder 'zip'"):
        Budget(bytes=10, coder="zip")
    assert repr(Budget(bytes=10)).count("coder") == 0
    assert "coder='compressed'" in repr(Budget(bytes=10, coder="compressed"))
    model, x = build("cnn-relu")
    with pytest.raises(ValueError, match="compressed bytes counts single weights"):
        prunus.prune(model, "importance-node", Budget(bytes=9000, coder="compressed"), data=[x])
