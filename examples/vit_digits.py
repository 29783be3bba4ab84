"""
A vision transformer on handwritten digits
==========================================

Attention heads and channels of the feed-forward halves go together with all that makes and reads
them. The configuration of the Hugging Face model follows, so that ``from_pretrained`` loads the
folder that is written.
"""

import tempfile

import torch
from _shipping import SMALL, fit, ship
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import prunus
from prunus.bench import load_data
from prunus.granularity import Node

digits = load_data("digits")
count = 400 if SMALL else len(digits.x_train)
x, y = digits.x_train[:count], digits.y_train[:count]
x_test, y_test = digits.x_test, digits.y_test

torch.manual_seed(0)
model = ViTForImageClassification(
    ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=10,
        hidden_dropout_prob=0.0,
    )
)


def loss(network: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(pixel_values=x[index]).logits, y[index])


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float((network(pixel_values=x_test).logits.argmax(1) != y_test).float().mean())


fit(model, loss, len(x), epochs=2 if SMALL else 25, rate=1e-3)

# %%
# Half of all heads and channels, the same number in every block.

pruned = ship(
    model,
    prunus.Recipe(granularity=Node(multiple_of=2, alike="blocks")),
    0.5,
    data={"pixel_values": x[:256]},
    example={"pixel_values": x[:16]},
    error=error,
    retrain=lambda network: fit(network, loss, len(x), epochs=1 if SMALL else 8, rate=1e-3),
    what="test error",
)

# %%
# A folder for other software: loaded and compared before it gets its name.

with tempfile.TemporaryDirectory() as folder:
    saved = pruned.save_hf(f"{folder}/small", example={"pixel_values": x[:16]})
    again = ViTForImageClassification.from_pretrained(f"{folder}/small")
    print(saved.notes[0])
    print(f"{again.config.num_attention_heads} heads, {again.config.intermediate_size} channels")

# %%
# What each layer keeps, and what it costs.

pruned
