"""Residual blocks and halves of them: what goes, in which order, and what is left."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from laws.networks import network
from prunus import Recipe
from prunus.granularity import Blocks
from prunus.scores import BlockCosine, BlockGap, BlockShapley
from prunus.surgery.depth import skippable, without, zeros_of
from prunus.surgery.masked import apply_masks
from prunus.surgery.stacks import renumber


class Residual(nn.Module):
    """x + down(relu(up(norm(x)))), with a norm behind the sum where `post`."""

    def __init__(self, wide=6, inner=10, post=False):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(wide), nn.Linear(wide, inner), None
        self.down, self.post = nn.Linear(inner, wide), post

    def forward(self, x):
        if self.post:
            return self.norm(x + self.down(F.relu(self.up(x))))
        return x + self.down(F.relu(self.up(self.norm(x))))


class Tower(nn.Module):
    def __init__(self, blocks=4, post=False):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.layers = nn.ModuleList(Residual(post=post) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def tower(blocks=4, **options):
    torch.manual_seed(3)
    model = Tower(blocks, **options).double().eval()
    for i, layer in enumerate(model.layers):
        layer.down.weight.data.mul_((0.3, 2.0, 0.6, 1.2)[i % 4])
    return model, torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).double()


def skipping(model, gone):
    """The network's output without some blocks, from the definition."""

    def run(x):
        x = model.stem(x)
        for i, layer in enumerate(model.layers):
            x = x if i in gone else layer(x)
        return model.head(x)

    return run


def kl(model, x, gone):
    p, q = model(x).log_softmax(-1), skipping(model, gone)(x).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def gone_of(pruned):
    return {
        int(name.split(".")[1])
        for name, mask in pruned.masks.items()
        if name.endswith("down.weight") and not mask.any()
    }


@torch.no_grad()
def test_cosine_from_the_definition():
    model, x = tower()
    stream, turned = model.stem(x), []
    for layer in model.layers:
        after = layer(stream)
        turned.append(float(1 - (F.normalize(stream) * F.normalize(after)).sum(-1).mean()))
        stream = after
    for count in (1, 2, 3):
        pruned = prunus.prune(model, "block-cosine", 1 - count / 4, data=x)
        assert gone_of(pruned) == set(sorted(range(4), key=turned.__getitem__)[:count])


@torch.no_grad()
def test_greedy_gap_from_the_definition():
    model, x = tower()
    gone: tuple[int, ...] = ()
    for count in (1, 2, 3):
        left = [i for i in range(4) if i not in gone]
        gone = (*gone, min(left, key=lambda i: kl(model, x, {*gone, i})))
        pruned = prunus.prune(model, "block-gap", 1 - count / 4, data=x)
        assert gone_of(pruned) == set(gone)
        torch.testing.assert_close(pruned.model(x), skipping(model, gone)(x))


@torch.no_grad()
def test_truncated_shapley_value_against_all_subsets():
    """400 draws of each block; the mean lies within 5 standard errors (false alarm 4 · 6e-7)."""
    model, x = tower()
    found = {}

    class Kept(BlockShapley):
        def blocks(self, view):
            draws = self.drawn(view)
            found["mean"], found["error"] = draws.mean(1), draws.std(1) / math.sqrt(self.orders)
            return draws.mean(1)

    recipe = Recipe(granularity=Blocks(), score=Kept(orders=400))
    prunus.prune(model, recipe, 0.5, data=x)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        exact = (
            sum(
                sum(kl(model, x, {*s, i}) - (kl(model, x, set(s)) if s else 0.0) for s in sets)
                / len(sets)
                for size in (0, 1)
                if (sets := list(itertools.combinations(others, size)))
            )
            / 2
        )
        assert abs(float(found["mean"][i]) - exact) <= 5 * float(found["error"][i])
    prunus.prune(model, Recipe(granularity=Blocks(), score=Kept(orders=3)), 0.75, data=x)
    assert float(found["error"].max()) == 0.0  # of one block to go there is nothing to draw
    expected = torch.tensor([kl(model, x, {i}) for i in range(4)], dtype=torch.float64)
    torch.testing.assert_close(found["mean"], expected)


@torch.no_grad()
def test_compact_lacks_the_blocks_and_costs_are_counted(tmp_path):
    model, x = tower()
    pruned = prunus.prune(model, "block-gap", 0.5, data=x)
    small = pruned.compact()
    assert len(small.layers) == 2
    assert len(model.layers) == 4
    torch.testing.assert_close(small(x), pruned.model(x), rtol=0, atol=0)
    assert pruned.cost_after.parameters == sum(p.numel() for p in small.parameters())
    assert pruned.cost_after.macs == 5 * 6 + 2 * 2 * 60 + 24
    assert pruned.cost_after.density == pruned.plan.density == 0.5
    pruned.save(tmp_path, example=x)
    again = prunus.load(tmp_path, Tower(4).double())
    torch.testing.assert_close(again.compact()(x), small(x), rtol=0, atol=0)
    torch.testing.assert_close(prunus.compact(again, x)(x), small(x), rtol=0, atol=0)


def test_padding_does_not_count():
    class Masked(Tower):
        def forward(self, x, attention_mask=None):
            return super().forward(x)

    torch.manual_seed(3)
    model, x = Masked().double().eval(), torch.randn(3, 6, 5).double()
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[:, 4:] = 0
    wild = x.clone()
    wild[:, 4:] = 1e3
    plans = []
    for recipe in ("block-cosine", Recipe(granularity=Blocks(), score=BlockGap("mse"))):
        for values in (x, wild):
            pruned = prunus.prune(model, recipe, 0.5, data={"x": values, "attention_mask": mask})
            plans.append(gone_of(pruned))
    assert plans[0] == plans[1]
    assert plans[2] == plans[3]


def test_what_is_not_the_identity_is_refused():
    model, x = tower(post=True)
    with pytest.raises(ValueError, match="a norm behind the sum acts again"):
        prunus.prune(model, "block-cosine", 0.5, data=x)
    flat = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match="The model has no blocks"):
        prunus.prune(flat, "block-cosine", 0.5, data=x)


def test_bad_input():
    model, x = tower()
    with pytest.raises(ValueError, match=r"part of a block 'head'"):
        Blocks("head")
    with pytest.raises(ValueError, match="Use BlockGap"):
        Recipe(granularity=Blocks("mlp"), score=BlockCosine())
    with pytest.raises(ValueError, match="`inputs` must be 'dense'"):
        Recipe(granularity=Blocks(), score=BlockGap(), inputs="pruned")
    with pytest.raises(ValueError, match="serves blocks, so `granularity` must not be"):
        Recipe(score=BlockGap())
    with pytest.raises(ValueError, match="Pass batches as data"):
        prunus.prune(model, "block-gap", 0.5, data=prunus.calibrate(model, x))
    with pytest.raises(ValueError, match="chooses all blocks at once"):
        prunus.prune(model, "block-gap", 0.5, data=x, blocks="auto")

    class Nowhere(BlockGap):
        def blocks(self, view):
            return super().blocks(view) / 0

    class Short(BlockGap):
        def blocks(self, view):
            return super().blocks(view)[1:]

    for score, said in ((Nowhere(), "gave NaN or infinite numbers"), (Short(), "give 4 numbers")):
        with pytest.raises(ValueError, match=said):
            prunus.prune(model, Recipe(granularity=Blocks(), score=score), 0.5, data=x)
    whole = prunus.prune(tower()[0], "block-gap", 1.0, data=x)
    assert not gone_of(whole)
    assert len(gone_of(prunus.prune(tower()[0], "block-gap", 0.01, data=x))) == 3


REAL = {
    "LlamaForCausalLM": ("model.layers", {"num_key_value_heads": 2}),
    "GPT2LMHeadModel": ("transformer.h", {"n_layer": 3, "n_head": 4, "n_embd": 32}),
    "Gemma3ForCausalLM": (
        "model.layers",
        {
            "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "MixtralForCausalLM": ("model.layers", {"num_key_value_heads": 2, "num_local_experts": 4}),
    "ViTForImageClassification": ("vit.layers", {"image_size": 8, "patch_size": 4}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("part", ["block", "attention", "mlp"])
@pytest.mark.parametrize("name", REAL)
def test_real_blocks(name, part):
    transformers = pytest.importorskip("transformers")
    chain, settings = REAL[name]
    kind = getattr(transformers, name)
    small = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0, **settings,
    }  # fmt: skip
    if name.startswith("GPT2"):
        small = {"vocab_size": 40, "n_positions": 32, **settings}
    torch.manual_seed(0)
    model = kind(kind.config_class(**small)).eval()
    batch = {"input_ids": torch.randint(1, 40, (2, 9))}
    if name.startswith("ViT"):
        batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    found, refused = skippable(model, batch, part)
    cached = part == "attention" and hasattr(model, "generate")
    assert [p.name for p in found] == [f"{chain}.{i}" for i in range(int(cached), 3)]
    assert ("cache of keys" in refused.get(f"{chain}.0", "")) == cached
    masked = prunus.modes.copied(model)
    apply_masks(masked, zeros_of(masked, found[:1]))
    less = without(masked, found[:1], part, batch)
    torch.testing.assert_close(less(**batch).logits, masked(**batch).logits, rtol=0, atol=0)
    assert float((less(**batch).logits - model(**batch).logits).abs().max()) > 1e-6
    if hasattr(model, "generate"):
        ids, options = batch["input_ids"], {"max_new_tokens": 6, "do_sample": False}
        runs = [less.generate(ids, use_cache=cache, **options) for cache in (True, False)]
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(runs[0], masked.generate(ids, **options))
    if part == "block":
        if name.startswith("Gemma3"):
            assert less.config.layer_types == ["full_attention", "sliding_attention"]
        again = kind(less.config).eval()
        again.load_state_dict(less.state_dict())
        torch.testing.assert_close(again(**batch).logits, less(**batch).logits, rtol=0, atol=0)


class Numbered:
    """A configuration that names blocks by their numbers."""

    def __init__(self):
        self.num_hidden_layers, self.mlp_only_layers = 4, [1, 3]

    def to_dict(self):
        return vars(self)


def test_lists_of_block_numbers_follow_those_that_stay():
    model = network("residual")[0]
    model.config = Numbered()
    renumber(model, "blocks", {"1"})
    assert vars(model.config) == {"num_hidden_layers": 3, "mlp_only_layers": [2]}
    renumber(model, "blocks", {"0"})
    assert vars(model.config) == {"num_hidden_layers": 2, "mlp_only_layers": [1]}
