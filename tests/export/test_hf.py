"""Folders that plain `from_pretrained` loads: compared, whole or absent; how widths are said."""

import json
import shutil

import pytest
import torch
from torch import nn

import prunus
from prunus import Plan, Recipe
from prunus.export import ExportError, to_hf
from prunus.granularity import Node
from prunus.surgery.alike import by_blocks, levelled
from prunus.surgery.configs import UnsaidWidths
from prunus.surgery.layered import per_layer
from real_networks import build

pytest.importorskip("transformers", reason="needs the extra `hf`")
NODES = Recipe(granularity=Node())


def pruned_llama(counts=None, name="Llama (sdpa)"):
    model, examples = build(name)
    plan = None if counts is None else Plan(kept=counts)
    return prunus.prune(model, NODES, plan or 0.6, data=examples[0]), examples


def blocks(kv, inner):
    return {
        f"model.layers.{i}.{part}": count
        for i in (0, 1)
        for part, count in (("self_attn.q_proj", kv[i]), ("mlp.gate_proj", inner[i]))
    }


def agree(pruned, folder, examples, kind=None):
    again = (kind or type(pruned.model)).from_pretrained(folder).eval()
    with torch.no_grad():
        for batch in examples:
            torch.testing.assert_close(
                again(**batch).logits, pruned.model(**batch).logits, rtol=1e-5, atol=1e-5
            )
    return again


def test_widths_alike_stand_in_the_configuration(tmp_path):
    pruned, examples = pruned_llama(blocks((1, 1), (20, 20)))
    found = pruned.save_hf(tmp_path / "net", example=examples[0])
    assert found.compact
    assert found.notes == ("All blocks have the widths that the configuration says.",)
    assert max(check.error for check in found.checked) <= 1e-6
    again = agree(pruned, tmp_path / "net", examples)
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (2, 1)
    assert (again.config.head_dim, again.config.intermediate_size) == (8, 20)
    account = json.loads((tmp_path / "net" / "prunus.json").read_text())
    assert account["parameters"] == sum(p.numel() for p in again.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_unequal_widths_are_padded(tmp_path):
    pruned, examples = pruned_llama(blocks((1, 1), (20, 30)))
    found = pruned.save_hf(tmp_path / "net", example=examples[0])
    assert found.notes[0].startswith("Padded: zero units stay so that all blocks are alike.")
    again = agree(pruned, tmp_path / "net", examples)
    assert again.config.intermediate_size == 30
    first = again.model.layers[0].mlp.down_proj.weight
    assert int((first == 0).all(0).sum()) == 10


def test_what_no_configuration_says_keeps_its_zeros(tmp_path):
    """BERT's heads: their width is hidden_size // heads."""
    pruned, examples = pruned_llama(name="BERT")
    found = pruned.save_hf(tmp_path / "net", example=examples[0])
    assert "it cannot say those of bert.encoder.layer.0.attention.self.query" in found.notes[0]
    again = agree(pruned, tmp_path / "net", examples)
    assert again.config.intermediate_size < 48
    assert again.config.num_attention_heads == 4


def test_single_weights_keep_their_zeros(tmp_path):
    model, examples = build("Llama (sdpa)")
    pruned = prunus.prune(model, "magnitude", 0.8, data=examples[0])
    found = pruned.export(tmp_path / "net", "hf", example=examples[0], measure=False)
    assert not found.compact
    assert found.notes == ("Its zeros lie in dense tensors and save no time.",)
    agree(pruned, tmp_path / "net", examples)


def test_our_own_folder_says_how_it_is_read(tmp_path):
    model, examples = build("ResNet")
    pruned = prunus.prune(model, NODES, 0.6, data=examples[0])
    found = pruned.save_hf(tmp_path / "net", example=examples[0])
    assert "`from_pretrained` does not load" in found.notes[0]
    readme = (tmp_path / "net" / "README.md").read_text()
    assert "prunus.load(FOLDER, transformers.ResNetForImageClassification(config))" in readme
    with pytest.warns(UnsaidWidths, match="cannot say what was cut"):
        small = prunus.load(tmp_path / "net", model).compact()
    torch.testing.assert_close(
        small(**examples[1]).logits, pruned.model(**examples[1]).logits, rtol=1e-4, atol=1e-5
    )


def test_what_loads_as_another_network_gets_no_name(tmp_path, monkeypatch):
    pruned, examples = pruned_llama(blocks((1, 1), (20, 20)))
    kind = type(pruned.model)
    real = kind.from_pretrained.__func__

    def spoiled(cls, *args, **options):
        model, said = real(cls, *args, **options)
        with torch.no_grad():
            model.lm_head.weight[3] += 0.01
        return model, said

    monkeypatch.setattr(kind, "from_pretrained", classmethod(spoiled))
    found = pruned.save_hf(tmp_path / "net", example=examples[0])
    assert "What was written is not equal to the network in torch" in found.notes[0]
    assert (tmp_path / "net" / "pruned.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    with pytest.raises(ExportError, match="not equal"):
        to_hf._written(pruned.compact(examples[0]), tmp_path / "aside", examples[0])


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    pruned, examples = pruned_llama(blocks((1, 1), (20, 20)))

    def full(folder):
        return shutil._ntuple_diskusage(100, 60, 40)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", full)
        with pytest.raises(OSError, match=r"has 40 bytes left and the network needs [\d,]+\. Free"):
            pruned.save_hf(tmp_path / "net", example=examples[0])
    with monkeypatch.context() as patched:
        patched.setattr(to_hf, "_beside", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pruned.save_hf(tmp_path / "net", example=examples[0])
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_something(tmp_path):
    pruned, examples = pruned_llama(blocks((1, 1), (20, 20)))
    target = tmp_path / "net"
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="Give a new or an empty folder"):
        pruned.save_hf(target, example=examples[0])
    (target / "thesis.tex").unlink()
    pruned.save_hf(target, example=examples[0])
    again = type(pruned.model).from_pretrained(target)
    twice = prunus.prune(again, NODES, 0.8, data=examples[0])
    with pytest.raises(ValueError, match="is the folder that the model came from"):
        twice.save_hf(target, example=examples[0])


def test_models_of_no_configuration(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    pruned = prunus.prune(net, NODES, 0.5, data=x)
    with pytest.raises(TypeError, match=r"with a configuration .*got Sequential\. Use Pruned"):
        pruned.save_hf(tmp_path / "net", example=x)


def test_levelling_leaves_the_least_loss():
    pruned, examples = pruned_llama(blocks((1, 2), (20, 31)))
    seen = {}

    def watch(groups, gone):
        level = levelled(by_blocks, lambda size: 4 if size == 48 else 1)(groups, gone)
        seen.update({g.name: (int(gone[g.name].sum()), int(level[g.name].sum())) for g in groups})
        assert all(bool((gone[g.name] | ~level[g.name]).all()) for g in groups)
        return level

    pruned.compact(examples[0], spare=watch)
    assert seen["model.layers.0.mlp.gate_proj"] == (28, 16)
    assert seen["model.layers.1.mlp.gate_proj"] == (17, 16)
    assert seen["model.layers.0.self_attn.q_proj"] == (1, 0)


def test_widths_of_single_layers():
    pruned, examples = pruned_llama(blocks((2, 2), (20, 30)))
    small = to_hf._compacted(pruned, examples[0], None)
    before = {name: tensor.shape for name, tensor in pruned.model.state_dict().items()}
    assert per_layer(small, before)
    assert small.config.per_layer_config[1].intermediate_size == 30
    assert not per_layer(to_hf._masked(pruned), before)
