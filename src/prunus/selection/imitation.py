"""Nodes that together, each scaled by a factor, give what the whole group gave."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import unknown
from prunus.imitation import (
    Form,
    Trace,
    equal_scales,
    line_scales,
    line_steps,
    local_form,
    output_form,
    refit_scales,
    refit_steps,
    repeated_scales,
    uniform_steps,
)
from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.selection.choice import Choice, Selection, checked_counts

__all__ = ["Imitation"]

STEPS = ("uniform", "line", "refit")
METRICS = ("local", "output")


@dataclass(frozen=True)
class Imitation(Selection):
    """Classes come in one by one, each the one whose joining lowers the imitation error most.

    The error D(a) = E‖Σ_i (a_i − 1) y_i‖² of scaling class i by a_i is one quadratic form, from the
    consumers' Gram matrices alone, so that a run over all counts costs no forward pass and the sets
    are nested. With inputs="pruned" the form is that of the network as it is by then, and aims at
    the dense outputs. Kept classes carry their factors a_i where no compensation follows; common
    means are not made up for by factors, so add `+ls`. Few classes (below N/15) are poor by
    "uniform", whose factors are then far off.

    Attributes:
        steps: "uniform" (Ye et al. 2020: equal factors N/k), "line" (Ye, Wu, Liu 2020: a point of
            the simplex moves along lines to its corners) or "refit" (all factors are refitted after
            every class: orthogonal matching pursuit).
        metric: "local" counts the errors at the consumers' outputs; "output" at the network's, to
            first order, from the statistic `taylor_gram`.
        repeats: with "uniform", a class may come in again and weigh more: the theorem's multiset;
            else each comes once, as in the authors' code.
        normalised: weigh each of several consumers by the inverse of its mean squared output.

    References:
        Ye, Gong, Nie, Zhou, Klivans, Liu (2020), Good subnetworks provably exist: pruning via
        greedy forward selection; Ye, Wu, Liu (2020), Greedy optimization provably wins the lottery:
        logarithmic number of winning tickets is enough.
    """

    steps: Literal["uniform", "line", "refit"] = "refit"
    metric: Literal["local", "output"] = "local"
    repeats: bool = False
    normalised: bool = True
    random: ClassVar[bool] = False
    serves: ClassVar[tuple[str, ...]] = (NODES,)

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise unknown("steps of Imitation", str(self.steps), STEPS)
        if self.metric not in METRICS:
            raise unknown("metric of Imitation", str(self.metric), METRICS)
        for name in ("repeats", "normalised"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if self.repeats and self.steps != "uniform":
            raise ValueError(
                f"`repeats` is for steps='uniform', got steps={self.steps!r}, which weighs classes "
                f"itself."
            )

    @property
    def statistics(self) -> tuple[str, ...]:
        """The consumers' Gram matrices, or the slopes of the outputs."""
        return ("gram",) if self.metric == "local" else ("taylor_gram",)

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: ClassView,
        generator: Generator,
    ) -> Choice:
        """The first classes of the run, and their factors; scores of −∞ never come in.

        Raises:
            ValueError: a count leaves its pool, or the statistics are missing or no second moment.
        """
        del generator
        checked_counts(scores, kept)
        candidates = (scores > -torch.inf).flatten().cpu()
        form: Form = layer.once((self.metric, self.normalised), lambda: self._form(layer))
        trace: Trace = layer.once(
            (self, len(scores), candidates.numpy().tobytes()),
            lambda: self._trace(form, candidates, len(scores)),
        )
        mask = trace.mask(kept.cpu())
        scale = self._scale(form, mask.flatten()).view(mask.shape)
        return Choice(mask=mask.to(scores.device), scale=scale.to(scores.device))

    def _form(self, view: ClassView) -> Form:
        if self.metric == "output":
            return output_form(view)
        return local_form(view, normalised=self.normalised)

    def _trace(self, form: Form, candidates: Tensor, pools: int) -> Trace:
        if self.steps == "uniform":
            run = uniform_steps(form, repeats=self.repeats, candidates=candidates, pools=pools)
        elif self.steps == "line":
            run = line_steps(form, candidates=candidates, pools=pools)
        else:
            run = refit_steps(form, candidates=candidates, pools=pools)
        return run.trace

    def _scale(self, form: Form, kept: Tensor) -> Tensor:
        if self.steps == "uniform":
            return repeated_scales(form, kept) if self.repeats else equal_scales(form, kept)
        return line_scales(form, kept) if self.steps == "line" else refit_scales(form, kept)
