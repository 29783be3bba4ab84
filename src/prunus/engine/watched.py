"""Which samples the caller's `evaluate` reads, so that none of them passes for fresh later."""

from torch import Tensor, nn

from prunus.hints import Arguments, Evaluate, Keywords, Metrics
from prunus.rows import RowSet, row_hashes

__all__ = ["watched"]


def watched(model: nn.Module, evaluate: Evaluate) -> tuple[Metrics, RowSet]:
    """What `evaluate` says, and the samples that it sent through the model."""
    hashes: list[Tensor] = []

    def note(_: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        hashes.append(row_hashes(args[:1] if args else kwargs))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        value = evaluate(model)
    finally:
        handle.remove()
    return value, RowSet.of(hashes)
