"""The residual stream turned to its principal axes."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.bases.protocol import Basis
from prunus.parts import EDGES, NODES, Composition
from prunus.surgery.rotation import rotated

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate(Basis):
    """Channels of an RMS-norm decoder's stream become directions by falling variance.

    One orthogonal matrix for the whole stream, see `prunus.surgery.rotated`; embeddings are asked
    for without `layers`, since the stream is what it is for.

    References:
        Ashkboos et al. (2024), SliceGPT: compress large language models by deleting rows and
        columns, Sec. 3; there one matrix per block and an adapter in every shortcut.
    """

    needs_batches: ClassVar[bool] = True
    widens: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = (EDGES, NODES)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses schedules inside the caller's training, whose network is never turned."""
        if not recipe.schedule.inside:
            return None
        return (
            f"Rotate() turns a trained network before it is pruned, and {recipe.schedule!r} prunes "
            f"inside its training. Train prunus.surgery.rotated(model, data) instead."
        )

    def __call__(self, model: nn.Module, data: Any, *, progress: bool | None) -> nn.Module:
        """The turned copy.

        Raises:
            ValueError: there is no such stream, or something in it does not commute with rotations.
        """
        return rotated(model, data, progress=progress)
