"""Training and adapters leave the zeros of a folder zero."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunus.folder import folder_masks, hold_folder, merge_adapter, prune_folder
from prunus.integrations import merge_adapters


@pytest.fixture
def pruned(source, tmp_path):
    """A folder at half the density."""
    return prune_folder(source, tmp_path / "out", "magnitude", 0.5).folder


def test_zeros_are_held_through_training(pruned, source):
    model = AutoModelForCausalLM.from_pretrained(pruned).train()
    masks = folder_masks(model, pruned)
    assert len(masks) == 21
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    with hold_folder(model, pruned, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        if name in masks:
            assert not bool(parameter[~masks[name]].any()), name
    dense = AutoModelForCausalLM.from_pretrained(source)
    with pytest.raises(ValueError, match=r"has 1024 weights that are not zero, .* kept 512"):
        hold_folder(dense, pruned)
    with pytest.raises(FileNotFoundError, match=r"prunus\.json is missing"):
        folder_masks(dense, source)


def test_merged_adapters_keep_zeros_and_lose_least():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weight[torch.rand(6, 8, generator=generator) < 0.5] = 0.0
    low = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    change = low @ torch.randn(2, 8, generator=generator, dtype=torch.float64)
    root = torch.randn(8, 40, generator=generator, dtype=torch.float64)
    gram = root @ root.T / 40
    plain, best = merge_adapter(weight, change), merge_adapter(weight, change, gram)
    kept = weight != 0
    assert torch.equal(plain, torch.where(kept, weight + change, 0.0))

    def error(merged):
        rest = weight + change - merged
        return float((rest @ gram * rest).sum())

    for row in range(6):  # the normal equations on the kept places
        s = kept[row]
        exact = torch.linalg.solve(gram[s][:, s], gram[s] @ (weight + change)[row])
        torch.testing.assert_close(best[row, s], exact, rtol=1e-5, atol=1e-6)
        assert not bool(best[row, ~s].any())
    assert error(best) < error(plain)
    with pytest.raises(ValueError, match="must have the weight's shape"):
        merge_adapter(weight, change.T)


# peft reads a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft_merge_into_a_folder(pruned, source, ids):
    peft = pytest.importorskip("peft")
    masks = folder_masks(AutoModelForCausalLM.from_pretrained(pruned), pruned)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(pruned), config)
    for options in ({}, {"data": ids}):
        merged = merge_adapters(model, **options)
        assert len(merged.layers) == 6
        state = dict(merged.model.named_parameters())
        before = AutoModelForCausalLM.from_pretrained(pruned).state_dict()
        for name, mask in masks.items():
            assert not bool(state[name][~mask].any()), name
            changed = not torch.equal(state[name], before[name])
            assert changed == ("q_proj" in name or "down_proj" in name), name
