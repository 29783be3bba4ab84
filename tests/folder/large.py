"""Folders of random weights that are written block by block, and their pruning in a new process."""

import json
import shutil
import time

import torch

from prunus.folder.tensors import write_tensors


def random_llama(folder, *, blocks, width, ffn, heads=8, vocabulary=512, dtype=torch.float32):
    """Write a Llama of random weights, one block in memory at a time; the bytes of its tensors."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=width, intermediate_size=ffn, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocabulary,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    table, size = {}, 0

    def write(file, shapes):
        nonlocal size

        def tensors():
            for name, shape in shapes.items():
                drawn = torch.randn(shape, generator=generator) * 0.02
                yield name, (drawn if len(shape) > 1 else torch.ones(shape)).to(dtype)

        write_tensors(folder / file, {n: (dtype, s) for n, s in shapes.items()}, tensors())
        table.update(dict.fromkeys(shapes, file))
        size += sum(torch.Size(s).numel() for s in shapes.values()) * dtype.itemsize

    table_of = (vocabulary, width)
    rest = {"model.embed_tokens.weight": table_of, "model.norm.weight": (width,)}
    write("model-rest.safetensors", {**rest, "lm_head.weight": table_of})
    for i in range(blocks):
        start = f"model.layers.{i}."
        write(
            f"model-{i:03d}.safetensors",
            {
                f"{start}input_layernorm.weight": (width,),
                f"{start}post_attention_layernorm.weight": (width,),
                **{f"{start}self_attn.{k}_proj.weight": (width, width) for k in "qkvo"},
                f"{start}mlp.gate_proj.weight": (ffn, width),
                f"{start}mlp.up_proj.weight": (ffn, width),
                f"{start}mlp.down_proj.weight": (width, ffn),
            },
        )
    index = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def prepare(source, small, out, recipe, rows, length):
    """All that is imported and compiled once is so, by pruning a small folder likewise."""
    from prunus.folder import prune_folder

    torch.set_num_threads(1)
    prune_folder(small, f"{out}-warm", recipe, 0.5, data=torch.zeros(2, 8, dtype=torch.int64))
    shutil.rmtree(f"{out}-warm")
    ids = torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(0))
    return source, out, recipe, list(ids.split(1))


def work(source, out, recipe, batches):
    """The formula's bytes, kept and all weights, and seconds of processor time."""
    from prunus.folder import prune_folder

    begun = time.process_time()
    found = prune_folder(source, out, recipe, 0.5, data=batches)
    return found.needs.total, found.kept, found.total, time.process_time() - begun
