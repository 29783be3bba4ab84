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
from prunus.surgery import configs
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


BUILT = []


class Scaled(Blocks):
    """Parallel blocks, with numbers of several kinds beside the tensors."""

    def __init__(self, config):
        super().__init__(config)
        BUILT.append(len(self.up))
        self.inner, self.factor = config.inner, 1.0
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, x):
        shares = [down(F.relu(up(x))) for up, down in zip(self.up, self.down, strict=True)]
        return x + self.factor * sum(shares) + self.shift


def scaled(**fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scaled(Config(**fields)).eval(), torch.randn(6, 8)


@pytest.fixture
def runs(monkeypatch):
    """How often a network built from a configuration ran beside the cut one."""
    found = []
    run = configs._gives
    monkeypatch.setattr(configs, "_gives", lambda *a: found.append(a) or run(*a))
    return found


def test_a_network_that_is_what_its_class_builds_runs_with_its_new_configuration(runs):
    """It has run, and nothing else has to: what its class makes of the configuration is it."""
    model, x = scaled(blocks=5)
    pruned = prunus.prune(model, ALIKE, 0.5, data=x)
    assert pruned.proved.said
    small = pruned.compact(x)
    assert not runs
    assert small.inner == small.config.inner == small.up[0].out_features < 24
    assert pruned.model.config.inner == model.config.inner == 24
    torch.testing.assert_close(small(x), pruned.model(x))
    again = Scaled(small.config)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again(x), small(x))
    torch.testing.assert_close(pruned.compact(x[:3])(x), small(x))
    assert not runs


@pytest.mark.parametrize("what", ["attribute", "buffer", "hook", "missing"])
def test_a_network_that_its_class_does_not_build_is_said(what, runs):
    model, x = scaled()
    if what == "attribute":
        model.factor = 2.0
    elif what == "buffer":
        model.shift += 1
    elif what == "hook":
        model.up[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        model.spare = None  # which a class without it does not read
    pruned = prunus.prune(model, ALIKE, 0.5, data=x)
    assert not pruned.proved.said
    if what == "missing":
        assert pruned.compact(x).config.inner < 24
    else:
        with pytest.warns(UnsaidWidths, match="cannot say what was cut"):
            small = pruned.compact(x)
        assert small.config.inner == 24
        torch.testing.assert_close(small(x), pruned.model(x))
    assert len(runs) == 1


class Reading(Scaled):
    """Reads the configuration as it runs."""

    def forward(self, x):
        return super().forward(x) / self.config.inner


def test_a_configuration_that_the_forward_pass_reads_is_run_with():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Reading(Config()).eval(), torch.randn(6, 8)
    pruned = prunus.prune(model, ALIKE, 0.5, data=x)
    assert not pruned.proved.said
    with pytest.warns(UnsaidWidths, match="cannot say what was cut"):
        small = pruned.compact(x)
    torch.testing.assert_close(small(x), pruned.model(x))


def test_one_block_is_built_for_each_set_of_fields_that_is_tried():
    model, x = scaled(blocks=5, wide=8, other=24, third=24)
    pruned = prunus.prune(model, ALIKE, 0.5, data=x)
    before = pruned.proved.small.config
    assert (before.other, before.third) == (24, 24)
    BUILT.clear()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    small = copy.deepcopy(pruned.proved.small)
    small.config.inner = 24
    assert configs.configured(small, shapes).change == {"inner": small.inner}
    assert BUILT.count(1) > BUILT.count(5) == 1


class Strict(Scaled):
    """Takes widths in one proportion alone, so that no field says anything by itself."""

    def __init__(self, config):
        if config.inner != 3 * config.wide:
            raise ValueError("the inner width is three times the outer one")
        super().__init__(config)


@pytest.mark.parametrize("blocks", [2, 4])
def test_fields_that_bear_on_one_another_are_tried_together(blocks):
    before = {n: t.shape for n, t in Strict(Config(blocks=blocks)).state_dict().items()}
    small = Strict(Config(wide=4, inner=12, blocks=blocks))
    small.config = Config(blocks=blocks)
    assert configs.configured(small, before).change == {"wide": 4, "inner": 12}


class Single(Scaled):
    """A network of one block has another inner width."""

    def __init__(self, config):
        alone = {**vars(config), "inner": 5} if config.blocks == 1 else vars(config)
        super().__init__(Config(**alone))
        self.config = config


def test_blocks_that_hang_on_their_number_are_all_built():
    model, x = Single(Config(blocks=3)).eval(), torch.randn(6, 8)
    BUILT.clear()
    small = prunus.prune(model, ALIKE, 0.5, data=x).compact(x)
    assert small.up[0].out_features == small.config.inner < 24
    assert BUILT[0] == 1
    assert set(BUILT[1:]) == {3}


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
