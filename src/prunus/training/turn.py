"""One change of the masks inside a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.courses import Growth
from prunus.granularity import pooled, unpooled
from prunus.rng import generator_for
from prunus.training.chooser import Chooser, Chosen
from prunus.training.exchange import exchange
from prunus.weights import weight_at

__all__ = ["Turn"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Turn:
    """A step after which masks change.

    Attributes:
        step: its number, from 1.
        steps: of the whole training.
        due: all such steps.
    """

    step: int
    steps: int
    due: Sequence[int]

    @property
    def first(self) -> bool:
        """True for the first change."""
        return self.step == self.due[0]

    def after(
        self,
        model: nn.Module,
        chooser: Chooser,
        old: Chosen,
        gathered: Mapping[str, Mapping[str, Tensor]],
        gradients: Mapping[str, Tensor],
    ) -> Chosen:
        """The masks from now on: fewer weights where the density falls, then others in their place.

        Args:
            model: with the weights that compete.
            chooser: of the recipe.
            old: the masks until now.
            gathered: what the score reads of the steps so far.
            gradients: of all weights, removed ones too, by parameter; where the course reads them.
        """
        course, share = chooser.course, self.step / self.steps
        before = 0.0 if self.first else self.due[self.due.index(self.step) - 1] / self.steps
        new = old
        # What is asked for decides how far; whether anything moves, any density tells.
        if course.soft or course.density(share, 0.5) != course.density(before, 0.5):
            at = 1.0 if self.step == self.due[-1] else share
            new = chooser.choose(model, at, None if course.soft else old, gathered)
        part = course.replace(share)
        if part > 0 and course.grow is not None:
            new = self._exchanged(model, chooser, new, course.grow, part, gradients)
        return new

    def _exchanged(
        self,
        model: nn.Module,
        chooser: Chooser,
        chosen: Chosen,
        grow: Growth,
        part: float,
        gradients: Mapping[str, Tensor],
    ) -> Chosen:
        """The masks with a part of every pool's weights exchanged."""
        masks = dict(chosen.masks)
        granularity = chooser.job.recipe.granularity
        for name in chooser.unit.layers:
            weight = weight_at(model, name)
            layer = weight.layer()
            kept = weight.kept(masks)
            gradient = gradients.get(weight.path)
            own = torch.zeros_like(layer.weight) if gradient is None else weight.matrix(gradient)
            growth = grow(own, generator_for(chooser.job.seed, name, self.step))
            size = layer.weight.abs()
            torch.where(kept, size, size.new_tensor(-torch.inf), out=size)
            size, coming = (pooled(granularity, layer, values) for values in (size, growth))
            new = exchange(size, coming, part)
            weight.put_mask(masks, unpooled(granularity, layer, new))
        return replace(chosen, masks=masks)
