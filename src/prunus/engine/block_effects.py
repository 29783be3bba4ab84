"""What residual blocks do: to the direction of their stream, and to the network's output."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.calibration.batches import call
from prunus.hints import Arguments, Batch, Keywords
from prunus.modes import evaluating
from prunus.progress import progress_bar
from prunus.scopes.trees import tensors_of
from prunus.surgery.depth import Skippable

__all__ = ["Gaps", "output_gap", "token_counts", "turned"]

LIMIT = 2**30  # bytes of dense outputs that are kept


def turned(
    model: nn.Module, blocks: Sequence[Skippable], parts: Iterable[Batch]
) -> Float[Tensor, " blocks"]:
    """1 − E cos(x, x + f(x)) per token of every block's input and output; one pass."""
    total, tokens = torch.zeros(len(blocks), dtype=torch.float64), 0.0
    taken: dict[int, Tensor] = {}

    def before(i: int, module: nn.Module, args: Arguments, keywords: Keywords) -> None:
        taken[i] = tensors_of((args, keywords))[0].detach().clone()

    def after(i: int, module: nn.Module, args: Arguments, output: object) -> None:
        x, y = taken.pop(i).double(), tensors_of(output)[0].detach().double()
        turn = 1 - torch.cosine_similarity(x, y, dim=-1)
        counts = token_counts(mask, turn)
        total[i] += float((turn * counts).sum())
        seen[i] = float(counts.sum())

    handles = []
    for i, block in enumerate(blocks):
        module = model.get_submodule(block.name)
        handles += [
            module.register_forward_pre_hook(partial(before, i), with_kwargs=True),
            module.register_forward_hook(partial(after, i)),
        ]
    try:
        for i, batch in enumerate(parts):
            mask, seen = _mask_of(batch), dict[int, float]()
            with evaluating(model), torch.no_grad():
                call(model, batch, i)
            tokens += max(seen.values(), default=0.0)
    finally:
        for handle in handles:
            handle.remove()
    return total / tokens


class Gaps:
    """Mean gaps of the output without some blocks; dense outputs are kept while they are few."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Skippable],
        batches: Callable[[], Iterable[Batch]],
        progress: bool | None,
    ) -> None:
        self._model, self._blocks = model, blocks
        self._batches, self._progress = batches, progress
        self._dense: list[Tensor] | None = None

    def __call__(self, gone: Sequence[int], kind: str) -> float:
        writers = [w for i in gone for w in self._blocks[i].writers]
        total, tokens = 0.0, 0.0
        with progress_bar(f"without {len(gone)} blocks", None, progress=self._progress):
            for i, batch in enumerate(self._batches()):
                dense = self._known(i, batch)
                with _zeroed(self._model, writers):
                    other = _output(self._model, batch, i)
                gap = output_gap(dense, other, kind)
                counts = token_counts(_mask_of(batch), gap)
                total += float((gap * counts).sum())
                tokens += float(counts.sum())
        return total / tokens

    def _known(self, place: int, batch: Batch) -> Tensor:
        if self._dense is None:
            self._dense = []
        if place < len(self._dense):
            return self._dense[place]
        found = _output(self._model, batch, place)
        size = sum(t.numel() * t.element_size() for t in (*self._dense, found))
        if place == len(self._dense) and size <= LIMIT:
            self._dense.append(found)
        return found


def output_gap(dense: Tensor, other: Tensor, kind: str) -> Tensor:
    """Per sample (and token): nats, or squared output units averaged over the last axis."""
    dense, other = dense.double(), other.double()
    if kind == "mse":
        return (dense - other).square().mean(-1)
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _output(model: nn.Module, batch: Batch, number: int) -> Tensor:
    with evaluating(model), torch.no_grad():
        output = call(model, batch, number)
    logits = getattr(output, "logits", None)
    found: Tensor = logits if isinstance(logits, Tensor) else tensors_of(output)[0]
    return found.detach().clone()


def _mask_of(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def token_counts(mask: Tensor | None, values: Tensor) -> Tensor:
    """1 for each value that counts, 0 for padding."""
    if mask is not None and values.ndim >= 2 and values.shape[:2] == mask.shape:
        wide = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
        return (wide != 0).to(values.dtype).expand_as(values)
    return torch.ones_like(values)


@contextmanager
def _zeroed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    known = dict(model.named_parameters())
    saved = {name: known[name].detach().clone() for name in names}
    try:
        with torch.no_grad():
            for name in names:
                known[name].zero_()
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                known[name].copy_(value)
