"""What masks in a batch do to recipes that need statistics, and to those that need none."""

import pytest
import torch
from torch import nn

import prunus


class Tagged(nn.Module):
    """A convolution over positions, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids) * (1 if attention_mask is None else attention_mask[..., None])
        return self.head(self.conv(x.transpose(1, 2)).transpose(1, 2).relu())


def batch(hidden):
    ids = torch.arange(30).reshape(5, 6) % 20
    mask = torch.ones(5, 6).long()
    if hidden:
        mask[:2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_a_mask_that_hides_nothing_stops_no_recipe():
    torch.manual_seed(0)
    model = Tagged()
    for recipe in ("magnitude", "wanda+ls", "sparsegpt"):
        ours = prunus.prune(model, recipe, 0.5, data=batch(hidden=False))
        theirs = prunus.prune(model, recipe, 0.5, data={"input_ids": batch(False)["input_ids"]})
        for name, result in theirs.layers.items():
            assert torch.equal(ours.layers[name].mask, result.mask)
            assert ours.layers[name].error == result.error


def test_a_mask_that_is_not_clear_stops_only_what_needs_statistics():
    torch.manual_seed(0)
    model = Tagged()
    unclear = "An `attention_mask` does not say which patches of a convolution are padding"
    with pytest.raises(ValueError, match=unclear):
        prunus.prune(model, "wanda", 0.5, data=batch(hidden=True))
    pruned = prunus.prune(model, "magnitude", 0.5, data=batch(hidden=True))
    plain = prunus.prune(model, "magnitude", 0.5)
    for name, result in plain.layers.items():
        assert torch.equal(pruned.layers[name].mask, result.mask)
        assert pruned.layers[name].error is None
    assert [note for note in pruned.notes if unclear in note]
    some = prunus.prune(model, "wanda", 0.5, data=batch(hidden=True), exclude="conv")
    assert list(some.layers) == ["head"]
