"""Whole blocks out of folders: as in memory, and loaded by `from_pretrained`."""

import json

import pytest
import torch
from tests.folder.conftest import llama
from tests.folder.test_prune_folder import loaded
from tests.folder.test_resume import Stopped, contents, stopping
from transformers import AutoModelForCausalLM

import prunus
from prunus.folder import depth, folder_masks, prune_folder
from prunus.granularity import Blocks
from prunus.scores import BlockGap


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Five blocks of unlike weights, of which the second and the fourth do least."""
    folder = llama(tmp_path_factory.mktemp("deep") / "src", blocks=5, initializer_range=0.2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for number in (1, 3):
            block = model.model.layers[number]
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                layer.weight.mul_(0.02)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("recipe", ["block-cosine", "block-gap"])
def test_streamed_equals_in_memory(deep, ids, tmp_path, recipe):
    result = prune_folder(deep, tmp_path / "out", recipe, 0.6, data=ids)
    model = AutoModelForCausalLM.from_pretrained(deep)
    pruned = prunus.prune(model, recipe, 0.6, data=ids)
    small = pruned.compact(ids[0])
    found = loaded(tmp_path / "out")
    expected = small.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert result.gone == ("model.layers.1", "model.layers.3")
    emptied = {name.rpartition(".self_attn")[0] for name, m in pruned.masks.items() if not m.any()}
    assert set(result.gone) == {n for n in emptied if n.count(".") == 2}
    assert result.density == 0.6
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids[0]).logits, small(ids[0]).logits)
    assert folder_masks(reloaded, tmp_path / "out") == {}


def test_tied_heads_and_padding(ids, tmp_path):
    src = llama(tmp_path / "src", blocks=4, tie_word_embeddings=True, initializer_range=0.2)
    rows = torch.cat(ids)
    mask = torch.ones_like(rows)
    mask[:, 15:] = 0
    batch = {"input_ids": rows, "attention_mask": mask}
    result = prune_folder(src, tmp_path / "out", "block-gap", 0.75, data=[batch])
    model = AutoModelForCausalLM.from_pretrained(src)
    pruned = prunus.prune(model, "block-gap", 0.75, data=[batch])
    small = pruned.compact(batch).state_dict()
    for name, value in loaded(tmp_path / "out").items():
        assert torch.equal(small[name], value), name
    assert len(result.gone) == 1


def test_the_turn_of_padding_does_not_count(ids, tmp_path, monkeypatch):
    src = llama(tmp_path / "src", blocks=3, initializer_range=0.2)
    rows = torch.cat(ids)
    padded = torch.nn.functional.pad(rows, (0, 10), value=3)
    mask = torch.nn.functional.pad(torch.ones_like(rows), (0, 10))
    turns, passed = [], depth._passed

    def noted(walk, index):
        block = passed(walk, index)
        turns.append(block.turned)
        return block

    monkeypatch.setattr(depth, "_passed", noted)
    for number, data in enumerate((rows, {"input_ids": padded, "attention_mask": mask}, padded)):
        prune_folder(src, tmp_path / f"{number}", "block-cosine", 0.5, data=[data])
    alone, masked, unmasked = turns[:3], turns[3:6], turns[6:]
    assert masked == pytest.approx(alone, rel=1e-5)
    assert unmasked != pytest.approx(alone, rel=1e-2)  # the padding turns otherwise


@pytest.fixture(scope="module")
def whole(deep, ids, tmp_path_factory):
    """A run that is not stopped, and at how many places it could have been."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        count = stopping(patch, 10**6)
        prune_folder(deep, out, "block-gap", 0.6, data=ids)
    return out, count


@pytest.mark.parametrize("at", [6, -1])
def test_a_stopped_run_goes_on(deep, ids, whole, tmp_path, monkeypatch, at):
    undisturbed, count = whole
    with monkeypatch.context() as patch:
        stopping(patch, at if at > 0 else count[0] + at)  # all but the account
        with pytest.raises(Stopped):
            prune_folder(deep, tmp_path / "out", "block-gap", 0.6, data=ids)
    result = prune_folder(deep, tmp_path / "out", "block-gap", 0.6, data=ids)
    assert result.resumed == (2 if at > 0 else 0)
    assert contents(tmp_path / "out") == contents(undisturbed)
    again = prune_folder(deep, tmp_path / "out", "block-gap", 0.6, data=ids)
    assert again.gone == result.gone


def test_layers_say_which_may_go(deep, ids, tmp_path):
    only = ["model.layers.2.*", "model.layers.3.*"]
    result = prune_folder(deep, tmp_path / "out", "block-cosine", 0.5, data=ids, layers=only)
    assert result.gone == ("model.layers.3",)
    assert result.not_pruned["model.layers.0.mlp.up_proj"] == "not selected"


@pytest.mark.parametrize(
    ("recipe", "density", "message"),
    [
        ("block-cosine", 0.95, "leaves all 5 blocks. One less is 0.8"),
        ("block-cosine", {"*": 0.5}, "taken out by one density"),
        (
            prunus.Recipe(granularity=Blocks(part="mlp"), score=BlockGap()),
            0.5,
            "cannot say that the mlp of a block is missing",
        ),
    ],
)
def test_mistakes(deep, ids, tmp_path, recipe, density, message):
    with pytest.raises(ValueError, match=message):
        prune_folder(deep, tmp_path / "out", recipe, density, data=ids)
    assert not (tmp_path / "out").exists()
