"""The streams between blocks as files of a folder under way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from prunus.folder.hidden import Batch, Stream, write_stream
from prunus.folder.skeleton import Skeleton

__all__ = ["DENSE", "OWN", "Streams"]

OWN, DENSE = "", "dense-"  # of the blocks as they became, and of the dense network beside it


@dataclass(frozen=True, eq=False, kw_only=True)
class Streams:
    """The stream that goes into each block, for some batches, whole or absent.

    Attributes:
        skeleton: the model.
        batches: of this process.
        folder: where the files lie.
        suffix: of their names, where several processes keep theirs in one folder.
        also: suffixes of others' files, which go with this process's.
    """

    skeleton: Skeleton
    batches: Sequence[Batch]
    folder: Path
    suffix: str = ""
    also: Sequence[str] = ()

    @property
    def width(self) -> int:
        """Of the stream."""
        return int(self.skeleton.calls_stream(1, 2).shape[-1])

    def path(self, index: int, kind: str = OWN) -> Path:
        """The file of what goes into a block."""
        return self._path(index, kind, self.suffix)

    def _path(self, index: int, kind: str, suffix: str) -> Path:
        return self.folder / f"{kind}stream-{index:05d}{suffix}.safetensors"

    def into(self, index: int, kind: str = OWN) -> Stream:
        """What goes into a block; for the first one it is made of the embedding.

        Raises:
            FileNotFoundError: the file that the block before wrote is gone.
        """
        path = self.path(index, kind)
        if not path.is_file():
            if index:
                raise FileNotFoundError(
                    f"{path} is missing, from which the next block goes on. Remove {self.folder} "
                    f"and begin again."
                )
            self._write(path, self._embedded, "The embedding")
        return Stream(path, self.batches)

    def behind(self, index: int, outputs: Callable[[int], Tensor], kind: str = OWN) -> None:
        """Write what a block gives, by batch, which goes into the next one."""
        self._write(self.path(index + 1, kind), outputs, f"Block {index}")

    def forget(self, index: int) -> None:
        """Remove what went into a block."""
        for kind, suffix in product((OWN, DENSE), (self.suffix, *self.also)):
            self._path(index, kind, suffix).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Remove what went into every block, and what came behind the last one."""
        for index in range(self.skeleton.blocks + 1):
            self.forget(index)

    def _embedded(self, i: int) -> Tensor:
        batch = self.batches[i]
        return self.skeleton.embedded(batch.ids, batch.mask, torch.device("cpu"))

    def _write(self, path: Path, values: Callable[[int], Tensor], whose: str) -> None:
        try:
            write_stream(path, self.batches, self.width, self.skeleton.dtype, values)
        except ValueError as error:
            raise ValueError(f"{whose} {error}") from None
