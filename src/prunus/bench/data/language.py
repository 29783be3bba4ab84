"""A small language model on text that comes with Python: its corpus, tokenizer and training."""

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Generator, Tensor, nn
from torch.nn import functional

from prunus.bench.data.sets import Dataset
from prunus.likelihood import perplexity
from prunus.progress import progress_bar
from prunus.tokens import stream

__all__ = [
    "WINDOW",
    "documents",
    "python_text",
    "save_folder",
    "score",
    "test_stream",
    "tiny_llama",
    "tokenizer",
    "train",
]

WINDOW = 96  # tokens that the model is trained on and scored with
VOCABULARY = 512
END = "<|end|>"
PARTS = ("train", "test", "other")
LIBRARY = (
    "argparse", "asyncio", "csv", "decimal", "fractions", "heapq", "inspect", "json", "logging",
    "pathlib", "pickle", "random", "smtplib", "statistics", "subprocess", "tarfile", "threading",
    "unittest", "zipfile",
)  # fmt: skip


@cache
def documents(part: str = "train") -> tuple[str, ...]:
    """English text that every Python holds; nothing is downloaded.

    Args:
        part: "train" and "test" are pages of the language reference (`pydoc_data.topics`), every
            eighth of them "test"; "other" is the docstrings of modules of the standard library.
    """
    if part not in PARTS:
        raise ValueError(f"`part` must be one of {', '.join(PARTS)}, got {part!r}.")
    if part == "other":
        return tuple(filter(None, map(_docstrings, LIBRARY)))
    from pydoc_data.topics import topics

    names = sorted(topics)
    return tuple(topics[n] for i, n in enumerate(names) if (i % 8 == 0) == (part == "test"))


def _docstrings(name: str) -> str:
    """The docstrings in a module's source, which is read and not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(filter(None, found))


@cache
def tokenizer() -> Any:
    """A byte-level BPE of 512 tokens trained on the training pages, as transformers has it.

    Raises:
        ImportError: transformers (the extra `hf`) is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise ImportError(
            "The task tiny-llama needs transformers, which is not installed; it comes with an "
            "extra: pip install 'prunus[hf]'."
        ) from None
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(documents("train"), trainer)
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=made, eos_token=END)


@cache
def python_text(*, data_dir: str | Path | None = None) -> Dataset:
    """Windows of 96 tokens of the pages; a label is the number of the window's place.

    The windows of a part, joined, are its stream: each page followed by the end-of-text token.

    Args:
        data_dir: not read; the text comes with Python.
    """
    del data_dir
    digest = hashlib.blake2b(digest_size=16)
    windows: dict[str, Int64[Tensor, "windows length"]] = {}
    for part in ("train", "test"):
        ids = torch.tensor([i for piece in stream(documents(part), tokenizer()) for i in piece])
        windows[part] = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        digest.update(windows[part].numpy().data)
    return Dataset(
        name="python-text",
        x_train=windows["train"],
        y_train=torch.arange(len(windows["train"])),
        x_test=windows["test"],
        y_test=torch.arange(len(windows["test"])),
        fingerprint=digest.hexdigest(),
        note=f"pages of Python's language reference in windows of {WINDOW} tokens; every eighth "
        f"page is the test part",
    )


def test_stream() -> Int64[Tensor, " tokens"]:
    """The tokens of the test pages, in one stream."""
    return python_text().x_test.flatten()


def tiny_llama() -> nn.Module:
    """Four Llama blocks: width 128, FFN 352, 4 heads, 2 kv heads; 0.9 M parameters, untrained."""
    tokenizer()  # names the extra where transformers is missing
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    made: nn.Module = LlamaForCausalLM(config)
    return made


def train(
    model: nn.Module,
    data: Dataset,
    *,
    steps: int,
    learning_rate: float,
    batch: int = 8,
    generator: Generator,
    hold: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Train `model` in place on windows that begin anywhere in the training stream.

    AdamW, the rate rising over a twentieth of the steps and falling along a half cosine to zero,
    gradients clipped at norm 1.

    Args:
        model: gives logits of token ids.
        data: `python_text()`.
        steps: of the optimizer.
        learning_rate: the highest rate.
        batch: windows per step.
        generator: draws the windows.
        hold: called once with the optimizer, for example `pruned.hold`.
        progress: as in `progress_bar`.

    Raises:
        ValueError: the loss is no longer finite.
    """
    tokens, length = data.x_train.flatten(), data.x_train.shape[1]
    device = next(model.parameters()).device
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, learning_rate, weight_decay=0.01)
    rise = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, 1, rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise)),
        ],
        [rise],
    )
    if hold is not None:
        hold(optimizer)
    was_training = model.training
    model.train()
    try:
        with progress_bar("training", steps, progress=progress) as advance:
            for step in range(steps):
                starts = torch.randint(len(tokens) - length + 1, (batch,), generator=generator)
                rows = torch.stack([tokens[s : s + length] for s in starts.tolist()]).to(device)
                logits = model(rows, use_cache=False).logits[:, :-1].flatten(0, 1)
                loss = functional.cross_entropy(logits, rows[:, 1:].flatten())
                if not bool(torch.isfinite(loss)):
                    raise ValueError(
                        f"The training loss is {loss.item()} at step {step + 1}. Lower the "
                        f"learning rate, got {learning_rate}."
                    )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(learning, 1.0)
                optimizer.step()
                schedule.step()
                advance(1)
    finally:
        model.train(was_training)
    return model


def score(model: nn.Module, data: Dataset) -> Mapping[str, float]:
    """Perplexity on the test pages (window = stride = 96), and nats per token."""
    found = perplexity(model, data.x_test.flatten(), window=data.x_test.shape[1], batch=16)
    return {"perplexity": found.value, "cross_entropy": found.nats / found.tokens}


def save_folder(model: nn.Module, folder: str | Path) -> Path:
    """Write model and tokenizer as a folder that `from_pretrained` loads."""
    target: Any = model
    target.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)
