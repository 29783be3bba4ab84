"""FFN channels and heads of folders: as in memory, and loaded by `from_pretrained`."""

import json
from dataclasses import replace

import pytest
import torch
from tests.folder.test_prune_folder import loaded
from transformers import AutoModelForCausalLM

import prunus
from prunus.folder import prune_folder
from prunus.folder.widths import merged_config


@pytest.mark.parametrize("layers", ["*.mlp.*", "*.self_attn.*"])
def test_nodes_equal_those_in_memory(source, ids, tmp_path, layers):
    recipe = "importance-node+ls"
    prune_folder(source, tmp_path / "out", recipe, 0.5, data=ids, inputs="dense", layers=layers)
    model = AutoModelForCausalLM.from_pretrained(source)
    pruned = prunus.prune(model, recipe, 0.5, data=ids, layers=layers)
    small = pruned.compact(ids[0])
    found = loaded(tmp_path / "out")
    for name, value in small.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    widths = (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads)
    assert widths == ((24, 4, 2) if "mlp" in layers else (48, 2, 1))


def test_a_configuration_changes_in_what_was_cut_alone():
    """Whatever else its class would write, and however the file spells what it says."""
    text = json.dumps({"act": "silu_", "text_config": {"width": 8, "own": [1]}})
    before = {"act": "silu", "eps": 1e-5, "text_config": {"width": 8, "heads": 2}}
    after = {"act": "silu", "eps": 1e-5, "text_config": {"width": 4, "heads": 2}}
    assert json.loads(merged_config(text, before, after)) == {
        "act": "silu_",
        "text_config": {"width": 4, "own": [1]},
    }


def test_blocks_may_see_pruned_ones_before_them(source, ids, tmp_path):
    recipe = replace(prunus.recipes["importance-node+ls"], inputs="pruned")
    result = prune_folder(source, tmp_path / "out", recipe, 0.5, data=ids, aim="dense")
    assert loaded(tmp_path / "out")["model.layers.2.mlp.down_proj.weight"].shape == (32, 24)
    assert result.layers["model.layers.2.mlp.down_proj"].error > 0
