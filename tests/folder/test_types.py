"""Every tensor of a folder comes back in its own type, whatever the model runs in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus.folder import prune_folder
from prunus.folder.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"


def kind_of(name: str) -> torch.dtype:
    """Norms in single precision, one block in another half precision than the rest."""
    if "norm" in name:
        return torch.float32
    return torch.float16 if "layers.1" in name else torch.bfloat16


@pytest.fixture(scope="module")
def mixed(source, tmp_path_factory):
    """The suite's Llama in three types, in two files; and its tensors."""
    folder = tmp_path_factory.mktemp("mixed") / "src"
    folder.mkdir()
    state = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name in state:  # norms that no shorter type holds
        if "norm" in name:
            state[name] = 1 + 0.1 * torch.randn(state[name].shape, generator=generator)
        state[name] = state[name].to(kind_of(name)).contiguous()
    table = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(table.values()):
        save_file({n: t for n, t in state.items() if table[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder, state


def written(folder):
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


@pytest.mark.parametrize("run", ["bfloat16", "float32"])
@pytest.mark.parametrize("recipe", ["magnitude", "wanda+ls", "importance-node"])
def test_types_stay_and_sizes_count_them(mixed, ids, tmp_path, recipe, run):
    src, state = mixed
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps({**config, "dtype": run, "torch_dtype": run}))
    result = prune_folder(src, tmp_path / "out", recipe, 0.5, data=ids)
    found = written(tmp_path / "out")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in state.items()}
    size = sum(t.numel() * t.element_size() for t in found.values())
    total = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]["total_size"]
    assert total == size
    same = [n for n, t in state.items() if n.removesuffix(".weight") not in result.layers]
    for name in same:  # what lost nothing has its bits, also norms in a model of shorter numbers
        if found[name].shape == state[name].shape:
            assert torch.equal(found[name], state[name])
    if recipe == "magnitude":  # kept weights too
        for name in result.layers:
            new, old = found[f"{name}.weight"], state[f"{name}.weight"]
            assert torch.equal(new[new != 0], old[new != 0])
            assert int((new != 0).sum()) == result.layers[name].kept


def test_memory_is_that_of_the_type_it_runs_in(mixed, ids, tmp_path):
    src, state = mixed
    needs = {}
    for run in ("bfloat16", "float32"):
        config = json.loads((src / "config.json").read_text())
        (src / "config.json").write_text(json.dumps({**config, "dtype": run, "torch_dtype": run}))
        needs[run] = prune_folder(src, tmp_path / run, "magnitude", 0.5, data=ids).needs
    block = sum(t.numel() for n, t in state.items() if "layers.1." in n)
    assert needs["float32"].memory["block"] == 2 * 4 * block
    assert needs["bfloat16"].memory["block"] == 2 * 2 * block


def test_a_tensor_is_read_from_the_file_that_the_index_names(mixed, tmp_path):
    """Another file may hold one of that name, of another type and value."""
    src, state = mixed
    folder = tmp_path / "twice"
    folder.mkdir()
    (folder / "config.json").write_text((src / "config.json").read_text())
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "x.safetensors")
    save_file({"a": torch.zeros(3, dtype=torch.bfloat16)}, folder / "y.safetensors")
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}})
    )
    whole = open_checkpoint(folder)
    assert [t.tolist() for _, t in whole.read(["a", "b"])] == [[1, 1], [1, 1]]
    table = {"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}}
    save_file({"a": torch.zeros(3), "c": torch.zeros(1)}, folder / "y.safetensors")
    (folder / INDEX).write_text(json.dumps(table))
    assert open_checkpoint(folder).shape("a") == (torch.float32, (2,))
