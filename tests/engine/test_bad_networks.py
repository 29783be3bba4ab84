"""Networks and targets that cannot be had as asked: one clear line each."""

import pytest
import torch
from torch import nn

import prunus
from prunus import Recipe
from prunus.ambient import quiet
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


class Several(nn.Linear):
    """A linear layer of one's own with more than W x + b to give, as routers have."""

    def __init__(self, wide: int, out: int, kind: str) -> None:
        super().__init__(wide, out)
        self.kind = kind

    def forward(self, x):
        y = super().forward(x)
        return {"tuple": (y, y.softmax(-1)), "mapping": {"y": y}, "tensor": y.relu()}[self.kind]


class Around(nn.Module):
    """Two plain layers, that class between them, and one more behind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.own = nn.Linear(6, 8), Several(8, 7, kind)
        self.b, self.c = nn.Linear(7, 10), nn.Linear(10, 3)

    def forward(self, x):
        y = self.own(self.a(x).relu())
        y = y["y"] if isinstance(y, dict) else y[0] if isinstance(y, tuple) else y
        return self.c(self.b(y).relu())


@pytest.mark.parametrize("kind", ["tuple", "mapping", "tensor"])
@pytest.mark.parametrize("recipe", ["wanda+ls", "importance-node+ls", "taylor", "gap-gradient"])
def test_layers_of_own_classes_leave_the_others_to_prune(kind, recipe):
    torch.manual_seed(0)
    model, x = Around(kind).eval(), torch.randn(40, 6)
    pruned = prunus.prune(model, recipe, 0.5, data=[(x, torch.randint(0, 3, (40,)))])
    assert pruned.not_pruned["own"]  # whatever keeps it
    assert torch.equal(pruned.model.own.weight, model.own.weight)
    small = pruned.compact(x)
    assert small.b.out_features < 10 or "node" not in recipe
    torch.testing.assert_close(small(x), pruned.model(x), rtol=1e-5, atol=1e-6)


def test_a_group_of_one_class_says_why_it_stays():
    pytest.importorskip("transformers")
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**shape, eos_token_id=1, bos_token_id=1)).eval()
    pruned = prunus.prune(model, "l1-filter", 0.5, data={"input_ids": torch.arange(18).view(2, 9)})
    why = pruned.not_pruned["transformer.h.0.attn.c_attn"]  # one kv head, which all heads read
    assert why.endswith("all its channels go together, and some must stay")


def test_layers_without_numbers_and_data_without_numbers():
    with quiet():
        model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.ReLU(), nn.Linear(4, 2))
        pruned = prunus.prune(model, "magnitude", 0.5)
        alone = nn.Linear(4, 0)
    assert "holds no number" in pruned.not_pruned["0"]
    assert int((pruned.model[3].weight != 0).sum()) == 4
    with pytest.raises(ValueError, match=r"of shape \(0, 4\) holds no number"):
        prunus.prune(alone, "magnitude", 0.5)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="meta device, which has none"):
        prunus.prune(plain, "wanda", 0.5, data=torch.empty(3, 4, device="meta"))
    with pytest.raises(ValueError, match="names or globs, such as '0', got 0"):
        prunus.prune(plain, "magnitude", {0: 0.5})
    with pytest.raises(ValueError, match="does not run on the example"):
        prunus.prune(plain, "importance-node", 0.5, data=torch.ones(4))  # one vector
    batches = iter([torch.randn(3, 4)])
    prunus.prune(plain, "wanda", 0.5, data=batches)
    with pytest.raises(ValueError, match="an iterator, which is empty once it has been read"):
        prunus.prune(plain, "wanda", 0.5, data=batches)
