"""Heads of attention cut out of real classes: what modules count follows, at every length."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import Recipe
from prunus.coupling import couple
from prunus.granularity import Node
from prunus.surgery.compact import compact_groups
from prunus.surgery.cut import cut
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.probe import cuttable

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
KV = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "LlamaForCausalLM": KV,
    "Phi3ForCausalLM": KV,
    "Qwen3ForCausalLM": {**KV, "head_dim": 8},
    "GPT2LMHeadModel": {
        "vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32
    },
    "OPTForCausalLM": {
        "vocab_size": 50, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32, "word_embed_proj_dim": 32,
    },
    "GPTNeoXForCausalLM": SMALL,
    "BertForSequenceClassification": SMALL,
}  # fmt: skip


def built(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**MODELS[name])).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def tokens(length: int = 10, samples: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(samples, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    ids = torch.randint(1, 50, (samples, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def heads_of(model, batch, heads):
    groups = [g for g in couple(model, batch, heads).groups if g.heads]
    return groups, [name for g in groups for name in g.producers]


def whole(batch):
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


@pytest.mark.filterwarnings("ignore:The configuration of")
@pytest.mark.parametrize("heads", ["kv", "query"])
@pytest.mark.parametrize("name", MODELS)
def test_compact_equals_masked_at_every_length(name, heads):
    model, example = built(name), whole(tokens())
    _, layers = heads_of(model, example, heads)
    recipe = Recipe(granularity=Node(heads=heads, alike="blocks"))
    pruned = prunus.prune(model, recipe, 0.5, data=example, layers=layers)
    small = pruned.compact(example)
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
    for batch in (tokens(), tokens(7), tokens(3, 3)):
        with torch.no_grad():
            expected, got = pruned.model(**batch).logits, small(**batch).logits
            dense = model(**batch).logits
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
        assert float((dense - expected).abs().max()) > 1e-3
    if name.endswith("LM"):
        ids = tokens()["input_ids"]
        with_cache, without = (
            small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
        assert torch.equal(with_cache, without)


@pytest.mark.filterwarnings("ignore:The configuration of")
@pytest.mark.parametrize("name", ["Phi3ForCausalLM", "GPT2LMHeadModel"])
def test_what_modules_were_told_is_saved(name, tmp_path):
    model, example = built(name), whole(tokens())
    _, layers = heads_of(model, example, "kv")
    pruned = prunus.prune(model, Recipe(granularity=Node()), 0.5, data=example, layers=layers)
    pruned.save(tmp_path, example=example)
    again = prunus.load(tmp_path, lambda: built(name)).compact()
    with torch.no_grad():
        torch.testing.assert_close(
            again(**example).logits, pruned.compact(example)(**example).logits
        )


def test_configurations_say_heads():
    model, example = built("LlamaForCausalLM"), whole(tokens())
    for heads, expected in (("kv", (2, 1)), ("query", (2, 2))):
        _, layers = heads_of(model, example, heads)
        recipe = Recipe(granularity=Node(heads=heads, alike="blocks"))
        small = prunus.prune(model, recipe, 0.5, data=example, layers=layers).compact(example)
        config = small.config
        assert (config.num_attention_heads, config.num_key_value_heads) == expected
        assert config.head_dim == 8
        built_again = type(small)(config).double().eval()
        built_again.load_state_dict(small.state_dict())
        with torch.no_grad():
            assert torch.equal(built_again(**example).logits, small(**example).logits)


class Attend(nn.Module):
    """Grouped-query attention that splits one projection by its own counts."""

    def __init__(self, heads=6, shared=3, literal=False):
        super().__init__()
        self.heads, self.kv_heads, self.wide, self.literal = heads, shared, 4, literal
        self.qkv = nn.Linear(6, 4 * (heads + 2 * shared))
        self.o = nn.Linear(4 * heads, 3)

    def forward(self, x):
        parts = [24, 12, 12] if self.literal else [4 * n for n in self.counts]
        q, k, v = (
            part.unflatten(2, (-1, 4)).transpose(1, 2) for part in self.qkv(x).split(parts, -1)
        )
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o(found.transpose(1, 2).flatten(2))

    @property
    def counts(self):
        return self.heads, self.kv_heads, self.kv_heads


@pytest.mark.parametrize(("heads", "left"), [("kv", (2, 1)), ("query", (3, 3))])
def test_uneven_parts_of_one_projection(heads, left):
    torch.manual_seed(0)
    model, x = Attend().double().eval(), torch.randn(4, 5, 6, dtype=torch.float64)
    recipe = Recipe(granularity=Node(heads=heads))
    density = 1 / 3 if heads == "kv" else 0.5
    pruned = prunus.prune(model, recipe, {"*": density}, data=x)
    small = pruned.compact()
    assert (small.heads, small.kv_heads) == left
    assert model.heads == 6
    torch.testing.assert_close(small(x), pruned.model(x))
    if heads == "query":  # as many of every kv head's
        kept = pruned.masks["o.weight"][0].view(3, 2, 4)[:, :, 0]
        assert kept.sum(1).tolist() == [1, 1, 1]


def test_literal_parts_stay_and_are_named():
    model, x = Attend(literal=True).double().eval(), torch.randn(4, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert (group.heads, group.size) == ("kv", 3)
    found = cuttable(model, [group], x)
    assert not found.groups
    assert "split_sizes" in found.refused["qkv"]


def test_query_heads_of_a_pool_go_in_equal_numbers():
    model, x = Attend().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x, "query").groups
    assert (group.size, group.pools, group.heads) == (6, 3, "query")
    gone = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    assert group.balanced(gone).tolist() == [True, False, False, True, False, True]
    assert group.spread(3).view(3, 2).sum(1).tolist() == [1, 1, 1]
    for dead, rows in (([0, 1, 3], 48), ([0, 3, 4], 36)):
        work = copy.deepcopy(model)
        with torch.no_grad():
            work.o.weight.view(3, 6, 4)[:, dead] = 0
        assert compact_groups(work, [group], x).model.qkv.out_features == rows
    one = torch.zeros(6, dtype=torch.bool)
    one[0] = True
    cut(model, [group], {"qkv": one}, x)  # negative control: unequal numbers do not run
    with pytest.raises(RuntimeError):
        model(x)


def test_a_guess_that_is_wrong_is_refused():
    class Wrong(Attend):
        def forward(self, x):
            out = super().forward(x)
            return out * (self.heads == 6)  # another number of heads computes something else

    model, x = Wrong().double().eval(), torch.randn(4, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert "not equal to the masked one" in cuttable(model, [group], x).refused["qkv"]


def test_sequences_of_another_length_are_tried():
    class Fixed(nn.Module):
        """Equal at the example's length alone, which is the number of channels left."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            y = self.a(x)
            return self.b(y * (1 if y.shape[-1] in (8, x.shape[1]) else 2))

    model = Fixed().double().eval()
    (group,) = couple(model, torch.randn(2, 4, 6, dtype=torch.float64)).groups
    with torch.no_grad():
        model.b.weight[:, :4].zero_()
    with pytest.warns(PinnedChannels, match="4 of 8 channels of a .*shorter sequences"):
        small = prunus.compact(model, torch.randn(2, 4, 6, dtype=torch.float64))
    assert small.a.out_features == 8


def test_heads_are_checked():
    with pytest.raises(ValueError, match="`heads` must be 'kv' or 'query', got 'all'"):
        Node(heads="all")
