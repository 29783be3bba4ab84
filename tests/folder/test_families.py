"""Families of transformers: blocks are called as the model's own code calls them."""

import pytest
import torch
import transformers
from tests.folder.test_prune_folder import loaded
from transformers import AutoModelForCausalLM

import prunus
from prunus.folder import prune_folder

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "bos_token_id": None,
             "eos_token_id": None},
    "OPT": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Gemma2": {**GROUPED, "sliding_window": 8},
    "GPTNeoX": {**SMALL, "intermediate_size": 48},
    "Qwen3": GROUPED,
    "Phi3": {**GROUPED, "original_max_position_embeddings": 64},
    "Bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "bos_token_id": None,
              "eos_token_id": None},
}  # fmt: skip
QUICK = ("GPT2", "Gemma2")


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_families_equal_what_happens_in_memory(ids, tmp_path, family):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "src")
    result = prune_folder(
        tmp_path / "src", tmp_path / "out", "wanda", 0.5, data=ids, inputs="dense"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "src")
    pruned = prunus.prune(model, "wanda", 0.5, data=ids, layers=list(result.layers))
    assert set(result.layers) == set(pruned.layers)
    found = loaded(tmp_path / "out")
    for name, value in pruned.model.state_dict().items():
        assert torch.equal(found[name], value), name
