"""Perplexity of a language model on a text, with window, stride and count of tokens."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn import functional

from prunus.ambient import plainly
from prunus.check import whole
from prunus.modes import evaluating, private
from prunus.noise import passed
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.threads import sparing
from prunus.tokens import TokenSet

__all__ = ["Perplexity", "perplexity"]

DRAWS = 2000  # of the bootstrap over windows
LEVEL = 0.95


@dataclass(frozen=True, eq=False, kw_only=True)
class Perplexity:
    """exp of the mean negative log-likelihood of a text's tokens.

    Attributes:
        value: exp(nats / tokens).
        tokens: how many were scored.
        nats: −Σ log p(token | those before it in its window), over all scored tokens.
        interval: 95 % for `value`, by a bootstrap over windows; (value, value) of one window.
        window: tokens that the model sees at once.
        stride: tokens by which windows are apart.
        in_sample: windows that hold text which calibrated the model, where that was known.
        window_nats: the nats of every window.
        window_tokens: the scored tokens of every window.
    """

    value: float
    tokens: int
    nats: float
    interval: tuple[float, float]
    window: int
    stride: int
    in_sample: int = 0
    window_nats: Float64[Tensor, " windows"] = field(repr=False)
    window_tokens: Int64[Tensor, " windows"] = field(repr=False)

    def __str__(self) -> str:
        low, high = self.interval
        seen = f", {self.in_sample} of {len(self.window_tokens)} windows in-sample"
        return (
            f"perplexity {self.value:.4g} [{low:.4g}, {high:.4g}] (window {self.window}, stride "
            f"{self.stride}, {self.tokens} tokens{seen if self.in_sample else ''})"
        )


@plainly(autocast=True)
@sparing
def perplexity(
    model: nn.Module,
    ids: Any,
    *,
    window: int,
    stride: int | None = None,
    batch: int = 1,
    seen: TokenSet | None = None,
    progress: bool | None = None,
) -> Perplexity:
    """exp(−(1/N) Σ log p(tokenᵢ | the tokens before it in its window)) over N scored tokens.

    Windows start every `stride` tokens, and each token is scored once: in the first window that
    holds it, with at least window − stride tokens before it. Where windows do not overlap, the
    first token of each has none before it and is not scored. The last window may be shorter; it
    counts by its tokens. The value depends on window and stride: shorter contexts give more.

    Args:
        model: takes token ids (batch, positions) and gives logits (batch, positions, vocabulary),
            itself or as `.logits`; it comes back in the mode it had.
        ids: one stream of token ids, (tokens,) or (1, tokens).
        window: tokens that the model sees at once.
        stride: `window` where None, as the tables of SparseGPT and Wanda have it.
        batch: windows run together.
        seen: text that calibrated the model; windows that hold some of it are counted as in-sample.
        progress: show a bar; None shows it on a terminal after two seconds.

    Returns:
        a `Perplexity`; log-likelihoods are summed in float64.

    Raises:
        ValueError: less than two tokens, an id outside the vocabulary, a window longer than the
            model's context, or logits that are NaN or infinite.
    """
    whole("window", window, low=2)
    stride = window if stride is None else whole("stride", stride, low=1)
    whole("batch", batch, low=1)
    if stride > window:
        raise ValueError(
            f"`stride` must be at most window={window}, so that no token is left out, got {stride}."
        )
    tokens = _tokens(model, ids, window)
    starts = _starts(len(tokens), window, stride)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    nats = torch.zeros(len(starts), dtype=torch.float64)
    counts = torch.zeros(len(starts), dtype=torch.int64)
    known = 0
    with (
        private(model) as own,
        evaluating(own, fused=True),
        torch.no_grad(),
        progress_bar("perplexity", len(starts), progress=progress) as advance,
    ):
        for first in range(0, len(starts), batch):
            for chosen in _alike(starts[first : first + batch], len(tokens), window):
                rows = torch.stack([tokens[s : min(s + window, len(tokens))] for s in chosen])
                losses = _losses(own, rows.to(device), chosen[0])
                known += 0 if seen is None else seen.among(rows)
                for row, start in zip(losses, chosen, strict=True):
                    place = start // stride
                    # Position p of the losses is that of token p + 1 of the window.
                    done = max(0, window - stride - 1) if place and stride < window else 0
                    nats[place], counts[place] = row[done:].sum(), len(row[done:])
            advance(len(starts[first : first + batch]))
    total, scored = float(nats.sum()), int(counts.sum())
    return Perplexity(
        value=_exp(total / scored),
        tokens=scored,
        nats=total,
        interval=_interval(nats, counts),
        window=window,
        stride=stride,
        in_sample=known,
        window_nats=nats,
        window_tokens=counts,
    )


def _tokens(model: nn.Module, ids: Any, window: int) -> Int64[Tensor, " tokens"]:
    tokens = torch.as_tensor(ids)
    if tokens.ndim == 2 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex() or len(tokens) < 2:
        raise ValueError(
            f"`ids` must be one stream of two or more whole token ids, got {tokens.dtype} of shape "
            f"{tuple(tokens.shape)}. Join several texts into one stream, as prunus.text does."
        )
    config: Any = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (size is not None and high >= size):
        raise ValueError(
            f"Token ids must lie in [0, {'the vocabulary' if size is None else size}), got {low} "
            f"to {high}. Use the tokenizer of this model."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise ValueError(
            f"`window` must be at most {longest}, the positions that the model was made for, got "
            f"{window}."
        )
    return tokens.cpu().to(torch.int64)


def _starts(tokens: int, window: int, stride: int) -> list[int]:
    """Where windows begin: until one reaches the end, each with a token to score."""
    starts = [0]
    while starts[-1] + window < tokens:
        starts.append(starts[-1] + stride)
    if stride == window and tokens - starts[-1] < 2 and len(starts) > 1:
        starts.pop()  # a single token at the end has none before it
    return starts


def _alike(starts: list[int], tokens: int, window: int) -> list[list[int]]:
    """The windows of a batch, those of one length together: only the last may be shorter."""
    full = [s for s in starts if s + window <= tokens]
    short = [s for s in starts if s + window > tokens]
    return [group for group in (full, short) if group]


def _losses(
    model: nn.Module, rows: Int64[Tensor, "windows tokens"], number: int
) -> Float64[Tensor, "windows predicted"]:
    """−log p of every token but the first, given those before it."""
    config: Any = getattr(model, "config", None)
    cached = {} if getattr(config, "use_cache", None) is None else {"use_cache": False}
    answer = passed(model, partial(model, rows, **cached), number)
    logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != rows.shape:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(answer).__name__
        raise ValueError(
            f"The model must give logits of shape (windows, tokens, vocabulary), here "
            f"({rows.shape[0]}, {rows.shape[1]}, …), got {shown}."
        )
    flat = logits[:, :-1].flatten(0, 1).float()
    losses = functional.cross_entropy(flat, rows[:, 1:].flatten(), reduction="none").double()
    if not bool(torch.isfinite(losses).all()):
        raise ValueError("The model gives NaN or infinite logits on this text. Check its weights.")
    return losses.view(len(rows), -1).cpu()


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf


def _interval(
    nats: Float64[Tensor, " windows"], counts: Int64[Tensor, " windows"]
) -> tuple[float, float]:
    """Percentile bootstrap of Σ nats / Σ tokens over windows drawn with replacement."""
    generator = generator_for(0, "perplexity")
    means = torch.empty(DRAWS, dtype=torch.float64)
    for i in range(DRAWS):
        chosen = torch.randint(len(nats), (len(nats),), generator=generator)
        means[i] = nats[chosen].sum() / counts[chosen].sum()
    edges = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    return _exp(float(edges[0])), _exp(float(edges[1]))
