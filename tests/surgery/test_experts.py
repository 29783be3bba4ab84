"""Experts that are taken out: the router without them, not their outputs set to zero."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunus.modes import copied
from prunus.surgery.experts import expert_scores, mixtures, without_experts
from prunus.surgery.mixtures import _least, bar_router, kept_experts

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 32, "pad_token_id": 0, "moe_intermediate_size": 12, "head_dim": 8,
}  # fmt: skip
MODELS = {
    "MixtralForCausalLM": {"num_local_experts": 5},
    "Qwen3MoeForCausalLM": {"num_experts": 5, "decoder_sparse_step": 1},
    "OlmoeForCausalLM": {"num_experts": 5},
}
GROUPED = {
    "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
    "head_dim": 4,
}  # fmt: skip
IDS = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(0))


def built(name, **options):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**SMALL, **MODELS.get(name, {}), **options})).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


class Barred(TorchFunctionMode):
    """Router logits of some experts are −∞."""

    def __init__(self, gone):
        super().__init__()
        self.gone = gone  # {id of a router's weight: True for experts that are gone}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is F.linear and id(args[1]) in self.gone:
            return found.masked_fill(self.gone[id(args[1])], -torch.inf)
        return found


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_removal_is_a_router_without_them(name):
    model = built(name)
    scores = expert_scores(model, {"input_ids": IDS})
    small, kept = without_experts(model, scores, 0.6)
    layers = mixtures(model)
    assert set(kept) == set(layers) == set(scores)
    gone = {id(model.get_submodule(m.router).weight): ~kept[n] for n, m in layers.items()}
    with Barred(gone):
        expected = model(IDS).logits
    torch.testing.assert_close(small(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    zeroed = copied(model)
    for layer, mixture in layers.items():
        zeroed.get_submodule(mixture.experts).down_proj[~kept[layer]] = 0
    far = (zeroed(IDS).logits - expected).abs().max() / expected.abs().max()
    assert float(far) > 1e-3  # zeroing is not removing, and the comparison sees it
    again = type(small)(small.config).eval()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(IDS).logits, small(IDS).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    runs = [small.generate(IDS, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(runs[0], runs[1])


@torch.no_grad()
def test_a_bias_of_the_choice_alone_finds_no_barred_expert():
    """DeepSeek-V3's correction is added after the sigmoid, where −∞ has become 0."""
    model = built("DeepseekV3ForCausalLM", **GROUPED)
    (mixture,) = mixtures(model).values()
    router = model.get_submodule(mixture.router)
    gone = torch.arange(8) % 4 == 1  # one of each group
    router.e_score_correction_bias[gone] = 3.0
    bar_router(router, gone)
    chosen = []
    handle = model.get_submodule(mixture.experts).register_forward_pre_hook(
        lambda module, args: chosen.append(args[1])
    )
    model(IDS)
    handle.remove()
    assert chosen
    assert not gone[chosen[0]].any()


def test_what_is_barred_stays_gone_whatever_a_mask_keeps():
    model = built("MixtralForCausalLM")
    layers = mixtures(model)
    first = next(iter(layers))
    router = f"{layers[first].router}"
    gone = torch.arange(5) == 3
    bar_router(model.get_submodule(router), gone)
    mask = torch.ones_like(model.get_submodule(router).weight, dtype=torch.bool)
    mask[1] = False
    kept = kept_experts(model, {f"{router}.weight": mask})
    assert {name: found.tolist() for name, found in kept.items()} == {
        first: [True, False, True, False, True]
    }


@torch.no_grad()
def test_scores_from_the_definition():
    model = built("MixtralForCausalLM")
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    scores = expert_scores(model, [{"input_ids": IDS, "attention_mask": mask}])
    seen = {}

    def keep(module, args):
        seen["x"] = args[0].clone()

    layer = model.model.layers[1].mlp
    handle = layer.gate.register_forward_pre_hook(keep)
    model(IDS, attention_mask=mask)
    handle.remove()
    x = seen["x"].reshape(-1, 16)
    gates, index = (x @ layer.gate.weight.T).softmax(-1).topk(2)
    gates = gates / gates.sum(-1, keepdim=True)
    real = mask.flatten() != 0
    for expert in range(5):
        values, own = [], layer.experts
        for token in real.nonzero().flatten().tolist():
            for place in range(2):
                if index[token, place] == expert:
                    gate, up = (own.gate_up_proj[expert] @ x[token]).chunk(2)
                    made = own.down_proj[expert] @ (F.silu(gate) * up)
                    values.append(float(gates[token, place] * made.norm()))
        found = scores["model.layers.1.mlp"]
        assert int(found.tokens[expert]) == len(values)
        mean = sum(values) / len(values) if values else 0.0
        assert float(found.reap[expert]) == pytest.approx(mean, rel=1e-4)


def test_bad_input():
    model = built("MixtralForCausalLM")
    scores = expert_scores(model, {"input_ids": IDS})
    with pytest.raises(
        ValueError, match=r"at least 2 of 5 must stay, got 1\. Give a density of 0\.4"
    ):
        without_experts(model, scores, 0.2)
    with pytest.raises(ValueError, match="no layers of experts"):
        mixtures(torch.nn.Linear(3, 3))
    grouped = built("DeepseekV3ForCausalLM", **{**GROUPED, "n_routed_experts": 4})
    with pytest.raises(ValueError, match=r"some of 2 groups, so that at least 4 of 4 must stay"):
        without_experts(grouped, expert_scores(grouped, {"input_ids": IDS}), 0.5)


def test_the_fewest_experts_of_a_group_that_a_router_finds_enough_in():
    """A token's experts lie in the groups that are chosen, and each group is ranked by two."""
    for top, chosen in itertools.product(range(1, 9), range(1, 5)):
        least = _least(top, 4, chosen)
        assert least * chosen >= top
        assert least == 2 or (least - 1) * chosen < top
    assert _least(3, None, 1) == 3
