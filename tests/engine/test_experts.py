"""Experts as units of a recipe: what goes, what the masked network is, and how far it gets."""

import copy

import pytest
import torch
from torch.nn import functional as F

import prunus
from laws.networks import Mixtures
from prunus import Recipe
from prunus.granularity import Experts
from prunus.schedules import Iterative
from prunus.scores import ExpertGap, ExpertLoad, Reap
from prunus.surgery.experts import expert_gaps, expert_scores
from prunus.surgery.mixtures import mixtures
from surgery.test_experts import GROUPED, IDS, Barred, built

FAMILIES = {  # what they add to the models of tests/surgery/test_experts.py
    "MixtralForCausalLM": {},
    "Qwen2MoeForCausalLM": {
        "num_experts": 5, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 12,
    },
    "OlmoeForCausalLM": {"eos_token_id": None},
    "DeepseekV3ForCausalLM": GROUPED,
}  # fmt: skip


def own(seed=0):
    torch.manual_seed(seed)
    model = Mixtures().double().eval()
    return model, torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).double()


def stays_of(pruned, key):
    return pruned.masks[f"{key}.gate.weight"].any(1)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_from_the_recipe_to_the_folder(name, tmp_path):
    """Masked = router logits −∞ = compact = saved = loaded by `from_pretrained`, cached or not."""
    model = built(name, **FAMILIES[name])
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    batch["attention_mask"][1, 5:] = 0
    pruned = prunus.prune(model, "reap", 0.5 if name.startswith("Deep") else 0.6, data=[batch])
    layers = mixtures(model)
    assert set(pruned.plan.kept) == set(layers)
    masked = pruned.model(**batch).logits
    if not name.startswith("Deep"):  # whose choice is made by more than the logits
        gone = {
            id(model.get_submodule(m.router).weight): ~stays_of(pruned, n)
            for n, m in layers.items()
        }
        with Barred(gone):
            expected = model(**batch).logits
        torch.testing.assert_close(masked, expected, rtol=1e-6, atol=1e-6)
    zeroed = copy.deepcopy(model)
    zeroed.load_state_dict(pruned.model.state_dict())
    assert float((zeroed(**batch).logits - masked).abs().max()) > 1e-3  # zeros are not removal
    small = pruned.compact(batch)
    torch.testing.assert_close(small(**batch).logits, masked, rtol=1e-5, atol=1e-5)
    assert pruned.cost_after.parameters == sum(p.numel() for p in small.parameters())
    assert not [n for n in pruned.not_pruned if n.endswith((".experts", ".gate"))]
    pruned.save(tmp_path / "own", example=batch)
    again = prunus.load(tmp_path / "own", built(name, **FAMILIES[name]))
    assert torch.equal(again.model(**batch).logits, masked)
    assert torch.equal(again.compact()(**batch).logits, small(**batch).logits)
    found = pruned.save_hf(tmp_path / "hf", example=batch)
    assert found.notes == ("All blocks have the widths that the configuration says.",)
    loaded = type(model).from_pretrained(tmp_path / "hf").eval()
    torch.testing.assert_close(loaded(**batch).logits, small(**batch).logits, rtol=1e-6, atol=1e-6)
    options = {"max_new_tokens": 5, "do_sample": False}
    runs = [
        network.generate(IDS, use_cache=cache, **options)
        for network in (pruned.model, loaded)
        for cache in (True, False)
    ]
    assert all(torch.equal(run, runs[0]) for run in runs[1:])


@torch.no_grad()
def test_scores_from_the_definition():
    model, x = own()
    pruned = {
        score: prunus.prune(model, Recipe(granularity=Experts(), score=score), 0.5, data=x)
        for score in (Reap(), ExpertLoad(), ExpertLoad("gate"), ExpertGap())
    }
    stream = model.stem(x)
    for number, layer in enumerate(model.layers):
        logits = stream @ layer.gate.weight.T
        outputs = torch.stack(
            [
                (stream @ up.T).relu() @ down.T
                for up, down in zip(layer.experts.up, layer.experts.down, strict=True)
            ]
        )

        def mixed(logits, outputs=outputs):
            gates, index = logits.topk(2, -1)
            gates = torch.zeros_like(logits).scatter_(1, index, gates.softmax(-1))
            return gates, torch.einsum("ne,end->nd", gates, outputs)

        gates, whole = mixed(logits)
        routed = gates > 0
        tokens = routed.sum(0)
        reap = (gates * outputs.norm(dim=-1).T).sum(0) / tokens
        gaps = []
        for expert in range(4):
            less = logits.clone()
            less[:, expert] = -torch.inf
            gaps.append((whole - mixed(less)[1]).square().sum(1).mean())
        expected = (reap, tokens.double(), gates.sum(0) / tokens, torch.stack(gaps))
        for (score, found), values in zip(pruned.items(), expected, strict=True):
            best = set(values.argsort(descending=True)[:2].tolist())
            kept = stays_of(found, f"layers.{number}").nonzero().flatten().tolist()
            assert set(kept) == best, score
        stream = stream + whole


@torch.no_grad()
def test_padding_has_no_part_in_what_is_lost_without_an_expert():
    model = built("MixtralForCausalLM")
    mask = torch.ones_like(IDS)
    mask[:, 4:] = 0
    other = torch.where(mask == 0, (IDS + 7) % 39 + 1, IDS)
    gaps = [expert_gaps(model, {"input_ids": ids, "attention_mask": mask}) for ids in (IDS, other)]
    unmasked = expert_gaps(model, {"input_ids": other})
    for name, found in gaps[0].items():
        torch.testing.assert_close(found, gaps[1][name])
        assert not torch.allclose(found, unmasked[name], rtol=0.05)


@torch.no_grad()
def test_every_round_keeps_some_of_what_the_one_before_kept():
    model, x = own()
    seen = []

    def train(network, step):
        seen.append({n: bool(network.layers[int(n)].gate._forward_hooks) for n in "01"})

    recipe = Recipe(granularity=Experts(), score=Reap(), schedule=Iterative(rounds=2))
    pruned = prunus.prune(model, recipe, 0.5, data=x, train=train)
    once = prunus.prune(model, recipe, 0.75, data=x, train=train)
    for key in pruned.plan.kept:
        assert int(stays_of(pruned, key).sum()) == 2
        assert int(stays_of(once, key).sum()) == 3
    assert seen[0] == {"0": True, "1": True}  # barred while it trains
    torch.testing.assert_close(pruned.compact(x)(x), pruned.model(x))
    assert set(expert_scores(pruned.model, x)) == set(pruned.plan.kept)
    for key, found in expert_scores(pruned.model, x).items():
        assert not found.tokens[~stays_of(pruned, key)].any()


@torch.no_grad()
def test_what_went_once_stays_gone():
    model, x = own()
    once = prunus.prune(model, "reap", 0.5, data=x)
    again = prunus.prune(once.model, "reap", 0.75, data=x)  # which has two experts alone
    torch.testing.assert_close(again.model(x), once.model(x), rtol=0, atol=0)
    assert again.cost_after.parameters == once.cost_after.parameters
    torch.testing.assert_close(again.compact(x)(x), once.compact(x)(x))


def test_counts_are_equal_multiples_and_enough():
    model, x = own()
    multiple = Recipe(granularity=Experts(multiple_of=2), score=Reap())
    assert set(prunus.prune(model, multiple, 0.9, data=x).plan.kept.values()) == {2}
    uneven = prunus.prune(model, "reap", {"layers.0": 0.5, "layers.1": 1.0}, data=x)
    assert set(uneven.plan.kept.values()) == {2}  # one number for all
    budget = prunus.Budget(parameters=550)
    found = prunus.prune(model, "reap", budget, data=x)
    assert found.cost_after.parameters <= 550
    assert found.plan.value == found.cost_after.parameters
    with pytest.raises(ValueError, match=r"at least 2 of 4 must stay, got 1\. Give a density of 0"):
        prunus.prune(model, "reap", 0.25, data=x)


def test_bad_input():
    model, x = own()
    with pytest.raises(ValueError, match="Leave out `layers` and `exclude`"):
        prunus.prune(model, "reap", 0.5, data=x, exclude="layers.0*")
    with pytest.raises(ValueError, match="no layers of experts"):
        prunus.prune(torch.nn.Sequential(torch.nn.Linear(8, 8)).double(), "reap", 0.5, data=x)
    with pytest.raises(ValueError, match="Pass batches as data"):
        prunus.prune(model, "reap", 0.5, data=prunus.calibrate(model, x))
    with pytest.raises(ValueError, match="chooses all experts at once"):
        prunus.prune(model, "reap", 0.5, data=x, blocks="auto")
    with pytest.raises(ValueError, match="`inputs` must be 'dense'"):
        Recipe(granularity=Experts(), score=Reap(), inputs="pruned")
    with pytest.raises(ValueError, match="serves experts, so `granularity` must not be"):
        Recipe(score=Reap())
    with pytest.raises(ValueError, match="'gates'"):
        ExpertLoad("gates")

    class Short(Reap):
        def experts(self, view):
            return super().experts(view)[1:]

    with pytest.raises(ValueError, match=r"must give 4 numbers for the experts of 'layers\.0'"):
        prunus.prune(model, Recipe(granularity=Experts(), score=Short()), 0.5, data=x)
    model.layers[1].experts.up.data[2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        prunus.prune(model, "reap", 0.5, data=x)


class Listed(torch.nn.Module):
    """Experts as single modules, each called with the tokens that it is sent."""

    def __init__(self, wide=8, inner=12, count=4):
        super().__init__()
        self.top_k = 2
        self.gate = torch.nn.Linear(wide, count, bias=False)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(wide, inner), torch.nn.SiLU(), torch.nn.Linear(inner, wide)
            )
            for _ in range(count)
        )

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        gates, index = self.gate(tokens).softmax(-1).topk(self.top_k, -1)
        found = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            rows, place = torch.where(index == e)
            found.index_add_(0, rows, expert(tokens[rows]) * gates[rows, place, None])
        return found.view_as(x)


@torch.no_grad()
def test_channels_of_experts_in_a_list_are_nodes():
    """Each of its own width; whole experts are refused, and the message says what goes instead."""
    torch.manual_seed(0)
    model, x = Listed().double(), torch.randn(16, 5, 8, dtype=torch.float64)
    found = prunus.prune(model, "l1-filter+ls", 0.5, data=x)
    small = found.compact(x)
    assert [expert[0].out_features for expert in small.experts] == [6] * 4
    torch.testing.assert_close(small(x), found.model(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"nn\.ModuleList stay, all of them: use Node\(\)"):
        prunus.prune(model, "reap", 0.5, data=x)


@torch.no_grad()
def test_what_is_made_of_the_result(tmp_path):
    model, x = own()
    pruned = prunus.prune(model, "reap", 0.5, data=x)
    assert "layers.0.experts.up" in pruned.summary()
    assert "6 parameters, density 0.5" in repr(pruned)
    assert pruned.report(tmp_path / "page.html").stat().st_size > 1000
    timed = pruned.measured(x, seconds=0.01)
    assert timed.cost_after.latency_share > 0
    packed = prunus.export.compress(pruned, tmp_path / "net.prunus", example=x)
    back = prunus.export.decompress(packed.path, model)
    torch.testing.assert_close(back.model(x), pruned.model(x))
    half = copy.deepcopy(pruned.model).to(torch.float32)
    assert float((half(x.float()) - pruned.model(x).float()).abs().max()) < 1e-4
    assert F.mse_loss(pruned.model(x), model(x)) > 0
