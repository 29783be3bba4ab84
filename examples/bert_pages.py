"""
A BERT that tells pages of Python's manual apart
================================================

Python ships its language reference as text. A small BERT learns which page a window of words is
from; it is then pruned by heads and feed-forward channels. BERT's configuration has no field for a
width of heads, so that in the folder for ``from_pretrained`` removed heads stay as zeros, and the
notes say so; the compact network and the ONNX file have lost them.
"""

import re
import tempfile
from pydoc_data.topics import topics

import torch
from _shipping import SMALL, fit, ship
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import prunus
from prunus.granularity import Node

LENGTH, PAGES = 32, 8
pages = sorted(topics.values(), key=len, reverse=True)[:PAGES]
words = [re.findall(r"[A-Za-z_]+|[^\sA-Za-z_]", page.lower())[: 800 if SMALL else None]
         for page in pages]  # fmt: skip
first = [page[: len(page) * 4 // 5] for page in words]  # to learn from; the rest is to be told
common = {}
for page in first:
    for word in page:
        common[word] = common.get(word, 0) + 1
known = {w: i + 1 for i, w in enumerate(sorted(common, key=lambda w: (-common[w], w))[:999])}


def windows(texts: list[list[str]], step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of word numbers, 0 for words that are not common, and the page of each."""
    found = [
        ([known.get(word, 0) for word in text[i : i + LENGTH]], page)
        for page, text in enumerate(texts)
        for i in range(0, len(text) - LENGTH, step)
    ]
    return torch.tensor([ids for ids, _ in found]), torch.tensor([page for _, page in found])


ids, labels = windows(first, 16)
test_ids, test_labels = windows([page[len(page) * 4 // 5 :] for page in words], LENGTH)

torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        num_labels=PAGES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
)


def loss(network: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(input_ids=ids[index]).logits, labels[index])


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float((network(input_ids=test_ids).logits.argmax(1) != test_labels).float().mean())


fit(model, loss, len(ids), epochs=1 if SMALL else 8, batch=32, rate=1e-3)
print(f"{len(ids)} windows of {PAGES} pages; guessing errs in {1 - 1 / PAGES:.0%}")

# %%
# Half of the heads and channels.

pruned = ship(
    model,
    prunus.Recipe(granularity=Node(alike="blocks")),
    0.5,
    data={"input_ids": ids[:256]},
    example={"input_ids": ids[:16]},
    error=error,
    retrain=lambda network: fit(
        network, loss, len(ids), epochs=1 if SMALL else 3, batch=32, rate=5e-4
    ),
    what="test error",
)

# %%
# The folder for ``from_pretrained``, and what could not be said in it.

with tempfile.TemporaryDirectory() as folder:
    saved = pruned.save_hf(f"{folder}/small", example={"input_ids": ids[:16]})
    print(saved.notes[0])

# %%
# What each layer keeps, and what it costs.

pruned
