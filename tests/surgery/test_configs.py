"""Configurations that follow what was cut: by a library of our own, and by Hugging Face's."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import Recipe
from prunus.granularity import Node
from prunus.surgery.configs import UnsaidWidths

ALIKE = Recipe(granularity=Node(alike="blocks"))


class Config:
    """What a library keeps of an architecture."""

    def __init__(self, **fields):
        self.wide, self.inner, self.blocks, self.nested = 8, 24, 2, None
        self.__dict__.update(fields)

    def to_dict(self):
        return dict(vars(self))


class Blocks(nn.Module):
    """Residual blocks of one inner width, which the configuration holds."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up = nn.ModuleList(nn.Linear(config.wide, config.inner) for _ in range(config.blocks))
        self.down = nn.ModuleList(
            nn.Linear(config.inner, config.wide) for _ in range(config.blocks)
        )

    def save_pretrained(self, folder):
        raise NotImplementedError

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)))
        return x


def setup(**fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blocks(Config(**fields)).eval(), torch.randn(6, fields.get("wide", 8))


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_the_configuration_follows(density):
    model, x = setup()
    small = prunus.prune(model, ALIKE, density, data=x).compact(x)
    assert small.config.inner == small.up[0].out_features == small.up[1].out_features < 24
    assert model.config.inner == 24
    again = Blocks(small.config)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again(x), small(x))


def test_a_width_that_two_fields_hold():
    """Of two fields with the old value the one is set from which the right model comes."""
    model, x = setup(wide=24)
    small = prunus.prune(model, ALIKE, 0.5, data=x).compact(x)
    assert (small.config.wide, small.config.inner) == (24, small.up[0].out_features)


def test_uneven_blocks_are_said():
    model, x = setup()
    plan = prunus.Plan(kept={"up.0": 10, "up.1": 12})
    pruned = prunus.prune(model, Recipe(granularity=Node()), plan, data=x)
    with pytest.warns(UserWarning, match=r"of Blocks cannot say what was cut \(up\.\*\.weight has "
                      r"widths 10, 12\).*Node\(alike='blocks'\)"):  # fmt: skip
        small = pruned.compact(x)
    assert small.config.inner == 24


def test_a_configuration_without_the_width_is_said():
    model, x = setup(blocks=1)
    del model.config.inner
    pruned = prunus.prune(model, ALIKE, 0.5, data=x)
    with pytest.warns(UserWarning, match=r"cannot say what was cut \(up\.\*\.weight: 24 to \d+"):
        pruned.compact(x)


def test_a_loaded_compact_network_has_its_configuration(tmp_path):
    model, x = setup()
    prunus.prune(model, ALIKE, 0.5, data=x).save(tmp_path, example=x)
    small = prunus.load(tmp_path, copy.deepcopy(model)).compact()
    assert small.config.inner == small.up[0].out_features < 24


def test_groups_of_all_blocks_keep_one_count():
    model, x = setup(blocks=5)
    for how in (0.37, prunus.Budget(parameters=1000), prunus.Budget(macs=900)):
        pruned = prunus.prune(model, ALIKE, how, data=x)
        assert len(set(pruned.plan.kept.values())) == 1
        assert pruned.plan.value <= pruned.plan.limit
        assert pruned.cost_after.parameters == sum(
            p.numel() for p in pruned.compact(x).parameters()
        )
    free = prunus.prune(model, "importance-node", 0.37, data=x)
    assert len(set(free.plan.kept.values())) == 2
    with pytest.raises(ValueError, match="A gap budget plans each group by itself"):
        prunus.prune(model, ALIKE, prunus.Budget(gap=0.1), data=x)
    with pytest.raises(ValueError, match="`alike` must be None or 'blocks', got 'layers'"):
        Node(alike="layers")


def families():
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4)  # fmt: skip
    return {
        "llama": (transformers.LlamaForCausalLM,
                  transformers.LlamaConfig(**sizes, num_key_value_heads=2), "intermediate_size"),
        "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4), "n_inner"),
        "neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**sizes),
                 "intermediate_size"),
        "opt": (transformers.OPTForCausalLM, transformers.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32), "ffn_dim"),
    }  # fmt: skip


@pytest.mark.slow  # imports transformers, when it is there
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "opt"])
def test_hugging_face_models_come_back(name, tmp_path):
    kind, config, field = families()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, ids = kind(config).eval(), {"input_ids": torch.randint(3, 60, (4, 12))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        options = {}
        if name != "llama":  # its heads are as wide as the stream has room for each
            with pytest.warns(UnsaidWidths, match="cannot say what was cut"):
                prunus.prune(model, ALIKE, 0.7, data=ids).compact(ids)
            options = {"exclude": "*att*"}
        small = prunus.prune(model, ALIKE, 0.7, data=ids, **options).compact(ids).eval()
        small.save_pretrained(tmp_path)
        again = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for tokens in (ids["input_ids"], ids["input_ids"][:1, :5], ids["input_ids"].repeat(2, 2)):
            torch.testing.assert_close(again(tokens).logits, small(tokens).logits)
    assert getattr(small.config, field) == getattr(again.config, field) < 128
