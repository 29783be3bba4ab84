"""The account of what a training left."""

from contextlib import ExitStack
from dataclasses import replace

from torch import nn

from prunus.engine.answer import answer
from prunus.engine.edges import result_of
from prunus.engine.job import State
from prunus.engine.unit import Fit
from prunus.modes import private
from prunus.result import LayerResult, Pruned
from prunus.training.chooser import Chooser, Chosen
from prunus.weights import weight_at

__all__ = ["account"]


def account(model: nn.Module, chooser: Chooser, chosen: Chosen, notes: tuple[str, ...]) -> Pruned:
    """What `prune` would answer for these masks; the model is the trained one itself."""
    job, unit = chooser.job, chooser.unit
    state = State(
        target=chooser.target,
        planner=job.recipe,
        not_pruned={**job.not_pruned, **unit.refused},
        masks=chosen.masks,
        classes=chosen.classes,
        results={name: _layer(model, name, chosen) for name in unit.layers},
        plan=chosen.plan,
        cost_before=unit.cost_before,
        groups=unit.cut,
        notes=notes,
    )
    with ExitStack() as stack:  # the costs are counted on what is run, which is not the caller's
        seen = model if job.example is None else stack.enter_context(private(model))
        found = answer(job, state, seen, seen, {})
    # The network as it was at the start is gone.
    return replace(found, model=model, dense=None, dense_state=None)


def _layer(model: nn.Module, name: str, chosen: Chosen) -> LayerResult:
    weight = weight_at(model, name)
    bias = weight.bias()
    fit = Fit(
        mask=weight.kept(chosen.masks),
        weight=weight.matrix().clone(),
        bias=None if bias is None else bias.clone(),
    )
    return result_of(weight.layer(), fit, None)
