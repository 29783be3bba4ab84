"""What `prune_folder` answers: what became of every layer, and what it took."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.folder.needs import Needs
from prunus.tokens import TokenSet

__all__ = ["BlockResult", "FolderResult", "LayerAccount"]


@dataclass(frozen=True, kw_only=True)
class LayerAccount:
    """What pruning did to one layer.

    Attributes:
        kept: weights that are left.
        total: weights there were.
        error: E‖(W x + b) − (W′ x + b′)‖² on the calibration inputs, squared output units; None
            where no Gram matrix was collected.
        power: E‖W x‖² of the dense weights, which the error is held against; None likewise, and in
            accounts of older versions.
        ridge: largest relative damping that a row needed, or None.
    """

    kept: int
    total: int
    error: float | None = None
    power: float | None = None
    ridge: float | None = None

    @property
    def relative_error(self) -> float | None:
        """The error as a share of what the dense weights make of the inputs."""
        if self.error is None or not self.power:
            return None
        return self.error / self.power


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What pruning did to one block.

    Attributes:
        layers: {layer: account}.
        not_pruned: {name: reason}.
        notes: what the reader should know.
        seconds: that it took.
        turned: 1 − E cos between the stream before and behind it, where blocks as wholes may go.
    """

    layers: Mapping[str, LayerAccount]
    not_pruned: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: float = 0.0
    turned: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderResult:
    """A pruned folder and the account of its pruning.

    Attributes:
        folder: where it lies; `from_pretrained` loads it.
        recipe: the method, as Python.
        name: its name in `prunus.recipes`, or one made of its digest.
        seed: of all random draws.
        layers: {layer: account}, in order of execution.
        not_pruned: {name: reason} of what was left whole.
        tokens: that calibrated.
        seen: the text that calibrated, for `prunus.perplexity(..., seen=)`.
        needs: memory, disk and time as said before the start.
        seconds: that the blocks took, over all runs.
        resumed: blocks that an earlier, interrupted run had done.
        notes: what the reader should know.
        gone: blocks that were taken out whole, by their old names.
    """

    folder: Path
    recipe: str
    name: str
    seed: int
    layers: Mapping[str, LayerAccount]
    not_pruned: Mapping[str, str]
    tokens: int
    seen: TokenSet = field(repr=False)
    needs: Needs
    seconds: float
    resumed: int = 0
    notes: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Weights left in the pruned layers."""
        return sum(layer.kept for layer in self.layers.values())

    @property
    def total(self) -> int:
        """Weights there were in them."""
        return sum(layer.total for layer in self.layers.values())

    @property
    def density(self) -> float:
        """Kept / total of the pruned layers."""
        return self.kept / self.total

    def summary(self) -> str:
        """What was kept, what it took, and what was left whole, as text."""
        from prunus.report.folder import folder_summary

        return folder_summary(self)

    def report(
        self,
        path: str | os.PathLike[str],
        *,
        scores: Mapping[str, Any] | None = None,
        made: str | None = None,
    ) -> Path:
        """Write one self-contained HTML page; needs the extra `report`.

        Args:
            path: of the page.
            scores: {stage: `Perplexity`}, such as of the dense and of the pruned network.
            made: the date in its foot; today's where None.
        """
        from prunus.report.folder import write_folder_report

        return write_folder_report(self, path, scores, made=made)
