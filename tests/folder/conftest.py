"""A Llama of three small blocks in a folder, and token ids for it."""

import pytest
import torch

pytest.importorskip("transformers")


def llama(folder, *, blocks=3, width=32, ffn=48, dtype=torch.float32, seed=0, **options):
    """Write a Llama of random weights to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """The folder."""
    return llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def ids():
    """Twelve windows of twenty tokens in batches of four."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 64, (12, 20), generator=generator).split(4))
