"""
A language model's folder, block by block
=========================================

A small Llama learns Python's language reference, which ships with Python, and is saved as a folder.
``prune_folder`` goes through that folder with the memory of one block and writes another one that
``from_pretrained`` loads. Perplexity is measured on pages that it has not seen.
"""

import tempfile
from pydoc_data.topics import topics

import torch
from _pictures import Picture
from _shipping import SMALL, fit
from transformers import LlamaConfig, LlamaForCausalLM

import prunus
from prunus.report.charts import bars

# %%
# Characters are the tokens. The last fifth of the text is for testing.

text = "".join(topics[name] for name in sorted(topics))[: 60_000 if SMALL else 400_000]
letters = sorted(set(text))
code = {letter: i for i, letter in enumerate(letters)}
ids = torch.tensor([code[letter] for letter in text])
split, length = len(ids) * 4 // 5, 64
windows = ids[: split // length * length].view(-1, length)
unseen = ids[split:][: 2_000 if SMALL else 20_000]

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(letters),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2 if SMALL else 4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        bos_token_id=None,
        eos_token_id=None,
    )
)


def loss(network: torch.nn.Module, index: torch.Tensor) -> torch.Tensor:
    return network(input_ids=windows[index], labels=windows[index]).loss


fit(model, loss, len(windows), epochs=1 if SMALL else 4, batch=16, rate=3e-3)
dense = prunus.perplexity(model, unseen, window=length)
print(f"dense: {dense}")

# %%
# Half of the weights of every block go, by three recipes.

results = {}
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(f"{folder}/dense")
    for name in ("magnitude", "wanda+ls", "sparsegpt"):
        results[name] = prunus.prune_folder(
            f"{folder}/dense", f"{folder}/{name}", name, 0.5, data=windows[:64], measure=True
        )
        sparse = LlamaForCausalLM.from_pretrained(f"{folder}/{name}")
        print(f"{name:10} {prunus.perplexity(sparse, unseen, window=length)}")

# %%
# What the layers lose under the last recipe, in squared output units.

losses = [
    {"layer": name.removeprefix("model.layers."), "error": layer.error}
    for name, layer in results["sparsegpt"].layers.items()
]
picture = bars(losses, label="layer", value="error", x_title="mean squared output error")
Picture({**picture, "width": 460, "autosize": {"type": "pad"}})
