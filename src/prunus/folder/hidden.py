"""The stream between two blocks, for all batches, in one file that is read through a map."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.folder.checkpoint import mapped, table_of
from prunus.folder.tensors import write_tensors

__all__ = ["Batch", "Stream", "write_stream"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids, and where they are real: None where all are."""

    ids: Tensor
    mask: Tensor | None

    @property
    def tokens(self) -> int:
        """Real positions."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())


class Stream(Sequence[Any]):
    """The batches of a stream, each read from the file when it is asked for."""

    def __init__(self, path: Path, batches: Sequence[Batch]) -> None:
        """Over the file that `write_stream` wrote."""
        self.path = path
        self._batches = batches
        self._stored, self._file = table_of(path), mapped(path)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        hidden = self._stored[str(range(len(self))[index])].within(self._file)
        mask = self._batches[index].mask
        return hidden if mask is None else {"hidden_states": hidden, "attention_mask": mask}

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def write_stream(
    path: Path,
    batches: Sequence[Batch],
    width: int,
    dtype: torch.dtype,
    hidden: Callable[[int], Tensor],
) -> None:
    """Write the stream of all batches, `hidden(i)` being that of batch i; whole or absent.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    shapes = {str(i): (dtype, (*batch.ids.shape, width)) for i, batch in enumerate(batches)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for i in range(len(batches)):
            found = hidden(i)
            if not bool(torch.isfinite(found).all()):
                raise ValueError(
                    f"gave NaN or infinite outputs on batch {i}. Check the weights, or run in "
                    f"bfloat16 or float32."
                )
            yield str(i), found

    write_tensors(path, shapes, tensors())
