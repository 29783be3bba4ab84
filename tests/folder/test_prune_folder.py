"""Folders pruned block by block: equal to what happens in memory, and to the published loop."""

import json
from dataclasses import replace

import pytest
import torch
from tests.folder.conftest import llama
from transformers import AutoModelForCausalLM

import prunus
from prunus.folder import prune_folder
from prunus.folder.streams import Streams
from prunus.granularity import NM

BLOCKS = "model.layers.[0-9]"


def loaded(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).state_dict()


def in_memory(source, ids, recipe, inputs, blocks):
    model = AutoModelForCausalLM.from_pretrained(source)
    method = replace(prunus.recipes[recipe], inputs=inputs)
    return prunus.prune(model, method, 0.5, data=ids, blocks=blocks, exclude="lm_head").model


@pytest.mark.parametrize(
    ("recipe", "options", "blocks"),
    [
        ("sparsegpt", {"inputs": "dense"}, BLOCKS),
        ("wanda+ls", {"aim": "dense"}, BLOCKS),
        ("wanda+ls", {"aim": "dense", "within": "layers"}, None),
    ],
    ids=["dense", "blocks", "layers"],
)
def test_streamed_equals_in_memory(source, ids, tmp_path, recipe, options, blocks):
    result = prune_folder(source, tmp_path / "out", recipe, 0.5, data=ids, **options)
    found = loaded(tmp_path / "out")
    inputs = options.get("inputs", "pruned")
    expected = in_memory(source, ids, recipe, inputs, blocks).state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name] != 0, value != 0), name
        # Sums over batches of the same numbers in another order of blocks.
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert len(result.layers) == 21
    assert result.kept == result.total // 2


def wanda_loop(model, batches):
    """Sun et al. (2024): each block on the outputs of the pruned blocks before it."""
    streams = [model.model.embed_tokens(ids) for ids in batches]
    positions = torch.arange(batches[0].shape[1])[None]
    for block in model.model.layers:
        seen = {}

        def hook(module, args, output, seen=seen):
            rows = args[0].flatten(0, 1).double()
            total, count = seen.get(module, (0, 0))
            seen[module] = total + rows.square().sum(0), count + len(rows)

        def run(stream, block=block):
            rotary = model.model.rotary_emb(stream, position_ids=positions)
            return block(stream, position_embeddings=rotary, position_ids=positions)

        linear = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
        hooks = [m.register_forward_hook(hook) for m in linear]
        for stream in streams:
            run(stream)
        for handle in hooks:
            handle.remove()
        for module, (total, count) in seen.items():
            metric = module.weight.double().abs() * (total / count).sqrt()
            gone = metric.argsort(dim=1, stable=True)[:, : metric.shape[1] // 2]
            module.weight.scatter_(1, gone, 0.0)
        streams = [run(stream) for stream in streams]


def test_the_published_loop(source, ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        wanda_loop(model, ids)
    prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    found = loaded(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_memory_limit_takes_one_input_after_another_and_changes_nothing(source, ids, tmp_path):
    whole = prune_folder(source, tmp_path / "a", "sparsegpt", 0.5, data=ids)
    limit = whole.needs.total - 1
    less = prune_folder(source, tmp_path / "b", "sparsegpt", 0.5, data=ids, memory=limit)
    assert less.needs.total <= limit
    assert less.needs.seconds > whole.needs.seconds
    one, two = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6, msg=name)
    with pytest.raises(MemoryError, match=r"Gram matrices .* factorisation .* more than memory="):
        prune_folder(source, tmp_path / "c", "sparsegpt", 0.5, data=ids, memory=1000)
    assert not list(tmp_path.glob("c*"))
    options = {"recipe": "wanda", "density": 0.5, "data": ids}
    free = prune_folder(source, tmp_path / "d", **options)
    tight = prune_folder(source, tmp_path / "e", **options, memory=free.needs.total)
    assert tight.needs == free.needs  # what fits to the byte takes no more passes


def test_nothing_but_the_layers_of_blocks_changes(source, tmp_path):
    result = prune_folder(source, tmp_path / "out", "magnitude", 0.25)
    before, after = loaded(source), loaded(tmp_path / "out")
    for name, value in before.items():
        layer = name.removesuffix(".weight")
        if layer in result.layers:
            kept = result.layers[layer].kept
            assert int((after[name] != 0).sum()) == kept == value.numel() // 4
        else:
            assert torch.equal(value, after[name]), name
    assert "lm_head" not in result.layers
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    facts = json.loads((tmp_path / "out" / "prunus.json").read_text())
    assert facts["layers"]["model.layers.0.mlp.down_proj"]["kept"] == 32 * 48 // 4
    assert not list(tmp_path.glob("*.part"))


def test_densities_by_glob_and_left_out_layers(source, ids, tmp_path):
    densities = {"model.layers.0.*": 0.25, "*.mlp.*": 0.5}
    result = prune_folder(
        source, tmp_path / "out", "wanda", densities, data=ids, exclude="model.layers.2.*q_proj"
    )
    assert result.layers["model.layers.0.mlp.up_proj"].kept == 32 * 48 // 4
    assert result.layers["model.layers.1.mlp.up_proj"].kept == 32 * 48 // 2
    assert result.layers["model.layers.1.self_attn.q_proj"].kept == 32 * 32
    assert result.not_pruned["model.layers.2.self_attn.q_proj"] == "not selected"


def test_named_layers_alone_are_pruned(source, ids, tmp_path):
    result = prune_folder(
        source, tmp_path / "out", "wanda", 0.5, data=ids, layers="model.layers.[01].mlp.*",
        exclude="*.down_proj",
    )  # fmt: skip
    expected = {f"model.layers.{i}.mlp.{kind}_proj" for i in (0, 1) for kind in ("gate", "up")}
    assert {n for n, own in result.layers.items() if own.kept < own.total} == expected
    before, after = loaded(source), loaded(tmp_path / "out")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {f"{n}.weight" for n in expected}


def test_streams_go_when_they_have_been_read(source, ids, tmp_path, monkeypatch):
    """Of the blocks as they became and of the dense ones, two at a time: one in, one out."""
    most = []
    behind = Streams.behind

    def counted(self, *given):
        behind(self, *given)
        most.append(sorted(p.name for p in self.folder.glob("*stream-*")))

    monkeypatch.setattr(Streams, "behind", counted)
    prune_folder(source, tmp_path / "out", "wanda+ls", 0.5, data=ids, aim="dense")
    assert max(map(len, most)) == 4
    assert any(name.startswith("dense-") for names in most for name in names)
    assert not list((tmp_path / "out").glob("*stream-*"))


def test_windows_of_a_text_are_no_longer_than_the_model_reads(ids, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    src = llama(tmp_path / "src", blocks=1)  # which reads 64 tokens
    words = {f"w{i}": i for i in range(63)} | {"[UNK]": 63}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(src)
    text = [" ".join(f"w{i * i % 63}" for i in range(64 * 3 + 5))]
    result = prune_folder(src, tmp_path / "out", "wanda", 0.5, text=text, samples=8)
    assert "the text has 3 windows of 64 tokens, fewer than samples=8" in result.notes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, ids, dtype):
    src = llama(tmp_path / "src", dtype=dtype, blocks=2)
    recipe = replace(prunus.recipes["sparsegpt"], granularity=NM(2, 4))
    result = prune_folder(src, tmp_path / "out", recipe, data=ids)
    found = loaded(tmp_path / "out")
    for name in result.layers:
        weight = found[f"{name}.weight"]
        assert weight.dtype == dtype
        assert bool(((weight != 0).view(len(weight), -1, 4).sum(2) <= 2).all())


def test_padding_is_left_out(source, ids, tmp_path):
    rows = torch.cat(ids)
    padded = torch.nn.functional.pad(rows, (0, 5), value=3)
    mask = torch.nn.functional.pad(torch.ones_like(rows), (0, 5))
    batch = {"input_ids": padded, "attention_mask": mask}
    prune_folder(source, tmp_path / "a", "wanda", 0.5, data=[rows])
    prune_folder(source, tmp_path / "b", "wanda", 0.5, data=[batch])
    one, two = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    differing = sum(int(((one[n] != 0) != (two[n] != 0)).sum()) for n in one)
    assert differing <= 4  # of 20 000: attention under another mask rounds otherwise
