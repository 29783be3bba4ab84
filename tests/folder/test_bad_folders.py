"""What is wrong with a folder, a text or a recipe is said in one line, before any work."""

import json
import shutil

import pytest
import torch

from prunus.folder import prune_folder


@pytest.fixture
def copy(source, tmp_path):
    """A folder of one's own to break."""
    shutil.copytree(source, tmp_path / "src")
    return tmp_path / "src"


def refused(src, ids, match, *, error=ValueError, recipe="wanda", density=0.5, **options):
    out = src.parent / "out"
    with pytest.raises(error, match=match):
        prune_folder(src, out, recipe, density, **{"data": ids, **options})
    assert not out.exists()


def configured(folder, **changes):
    path = folder / "config.json"
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in facts.items() if v is not None}))


def test_folders(copy, ids, tmp_path):
    refused(tmp_path / "none", ids, "There is no folder", error=FileNotFoundError)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused(copy, ids, r"model.safetensors is truncated: its table speaks of \d+ bytes, it has")
    weights.write_bytes(whole[:5])
    refused(copy, ids, "is truncated, or no safetensors file")
    weights.write_bytes(whole)
    configured(copy, quantization_config={"quant_method": "fp8"})
    refused(copy, ids, r"is quantised \(fp8\). Prune the float checkpoint")
    configured(copy, quantization_config=None, auto_map={"AutoModel": "code.Model"})
    refused(copy, ids, "needs code that comes with it")
    configured(copy, auto_map=None, num_hidden_layers=4)
    refused(copy, ids, "has no tensor for the parameter 'model.layers.3")
    configured(copy, num_hidden_layers=3, intermediate_size=47)
    refused(copy, ids, "has shape .* the configuration asks for")
    configured(copy, intermediate_size=48, model_type="unheard-of")
    refused(copy, ids, "transformers builds no causal language model")
    (copy / "config.json").write_text("{")
    refused(copy, ids, "is truncated or no JSON")
    (copy / "config.json").unlink()
    refused(copy, ids, "config.json is missing", error=FileNotFoundError)


def test_indices(copy, ids):
    index = copy / "model.safetensors.index.json"
    table = {"weight_map": {"a": "model-1.safetensors"}}
    index.write_text(json.dumps(table))
    refused(copy, ids, "names model-1.safetensors, which is missing", error=FileNotFoundError)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    refused(copy, ids, "names the tensor 'a' in model.safetensors, which has no such tensor")
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(copy, ids, "is no file of the folder")
    index.unlink()
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    refused(
        copy,
        ids,
        r"has model-00001-of-00002.safetensors \(1 such files\) but no model.safetensors.index",
        error=FileNotFoundError,
    )
    (copy / "model-00001-of-00002.safetensors").rename(copy / "pytorch_model.bin")
    refused(copy, ids, "has pytorch_model.bin, which may hold code", error=FileNotFoundError)


def test_data(source, ids, tmp_path):
    src = tmp_path / "src"
    shutil.copytree(source, src)
    refused(src, [torch.tensor([[1, 64]])], r"must lie in \[0, 64\), the model's vocabulary")
    refused(src, [torch.zeros(1, 65, dtype=torch.int64)], "has 65 tokens, the model was made for")
    refused(src, [torch.zeros(1, 4)], "Token ids must be whole numbers")
    padded = {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.zeros(1, 4)}
    refused(src, [padded], "all padding")
    refused(src, None, "This recipe calibrates. Pass text=")
    refused(src, ids, "not both", text="a.txt")
    refused(src, None, "has no tokenizer that transformers loads", text=["a"])
    with pytest.raises(ValueError, match="`out` must be another folder"):
        prune_folder(src, src, "wanda", 0.5, data=ids)


def test_recipes(source, ids, tmp_path):
    src = tmp_path / "src"
    shutil.copytree(source, src)
    refused(src, ids, "cannot go block by block: .* compares the scores", recipe="magnitude-global")
    refused(src, ids, "cannot go block by block: it reads grad of the whole", recipe="snip")
    refused(src, ids, "`inputs` must be one of 'pruned', 'dense', got 'both'", inputs="both")
    refused(src, ids, "`within` must be one of", within="network")
    refused(src, ids, "Unknown layer or glob 'lm_hed'", exclude="lm_hed")
    refused(src, ids, r"Unknown layer or glob 'model.block\*'", density={"model.block*": 0.5})
    refused(src, ids, "No layer is left to prune", exclude="*")


def test_numbers_that_are_not(copy, ids):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    refused(copy, ids, "Block 1 of model.layers: .*model.layers.1.mlp.up_proj.weight")
    shutil.rmtree(copy.parent / "out.part")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 0.0
    tensors["model.embed_tokens.weight"][:] = torch.inf
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    refused(copy, ids, "The embedding gave NaN or infinite outputs", recipe="sparsegpt")


def test_ids_that_are_none(source, tmp_path):
    shape = r"whole numbers of shape \(samples, positions\), got "
    src = tmp_path / "src"
    src.symlink_to(source)
    refused(src, torch.ones(2, 0, dtype=torch.int64), shape + r"torch.int64 of shape \(\d+, 0\)")
    refused(src, "some text", shape + "str")
    refused(
        src, torch.ones(2, 5, dtype=torch.int64, device="meta"), "meta device, which holds none"
    )
