"""Networks and targets that cannot be had as asked: one clear line each."""

import pytest
import torch
from torch import nn

import prunus
from prunus import Recipe
from prunus.granularity import Node
from real_networks import build


def llama():
    pytest.importorskip("transformers")
    model, examples = build("Llama (sdpa)")
    return model, examples[0]


def test_counts_that_no_group_can_have_say_so():
    model, batch = llama()
    pruned = prunus.prune(model, "l1-filter", {"*q_proj": 0.2, "*": 1.0}, data=batch)
    name = "model.layers.0.self_attn.q_proj"
    assert pruned.plan.kept[name] == 1
    assert f"{name} keeps 1 of 2, where a density of 0.2 would be fewer" in " ".join(
        pruned.plan.notes
    )
    wide = prunus.prune(model, Recipe(granularity=Node(multiple_of=64)), 0.5, data=batch)
    assert wide.plan.kept["model.layers.0.mlp.gate_proj"] == 48
    assert (
        "multiple_of=64 leaves no smaller number than all 48"
        in (wide.not_pruned["model.layers.0.mlp.gate_proj"])
    )


def test_padding_alone_and_unknown_tokens():
    model, batch = llama()
    nothing = {**batch, "attention_mask": torch.zeros_like(batch["input_ids"])}
    with pytest.raises(ValueError, match="every position is padding"):
        prunus.prune(model, "importance-node", 0.5, data=nothing)
    with pytest.raises(ValueError, match="index out of range"):
        prunus.prune(model, "importance-node", 0.5, data={"input_ids": torch.full((2, 5), 10**6)})


@torch.no_grad()
def test_checkpointing_and_training_mode_change_nothing():
    model, batch = llama()
    plain = prunus.prune(model, "importance-node", 0.5, data=batch)
    model.activation_checkpointing_enable()
    model.train()
    other = prunus.prune(model, "importance-node", 0.5, data=batch)
    assert model.training
    assert "came in training mode" in " ".join(other.notes)
    for key, mask in plain.masks.items():
        assert torch.equal(other.masks[key], mask)


def test_a_decoder_without_inputs_is_told_what_it_lacks():
    pytest.importorskip("transformers")
    model, examples = build("T5")
    alone = {"input_ids": examples[0]["input_ids"]}
    with pytest.raises(ValueError, match=r"add `decoder_input_ids`.*, 0 \(`config"):
        prunus.prune(model, "importance-node", 0.5, data=alone)


class Started(nn.Module):
    """A recurrent layer with a state of its own to start from."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)
        self.start = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x):
        state = self.start.expand(1, len(x), 8).contiguous()
        return self.head(self.lstm(x, (state, state))[0])


def test_given_states_keep_recurrent_units():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="no nodes that can be cut out of it"):
        prunus.prune(Started(), "importance-node", 0.5, data=torch.randn(4, 5, 6), layers="*")


def test_a_quantised_network_is_named():
    class QuantLinear(nn.Module):
        """As libraries of four bits write it."""

        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.zeros(8, 4, dtype=torch.int8))

        def forward(self, x):
            return x @ self.qweight.T.to(x.dtype)

    with pytest.raises(ValueError, match="0 found"):
        prunus.prune(nn.Sequential(QuantLinear()), "magnitude", 0.5)
