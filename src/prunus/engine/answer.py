"""What the steps have found, as the account that `prune` gives."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from prunus.calibration.batches import to_device
from prunus.calibration.place import device_of
from prunus.coupling.run import OUTPUTS
from prunus.engine.job import Job, State
from prunus.engine.kinds import kind_of
from prunus.engine.settled import Settled
from prunus.hints import Metrics
from prunus.result import Pruned
from prunus.rows import state_sum
from prunus.surgery.connected import Disconnected, connection
from prunus.weights import weight_at, weights_of

__all__ = ["answer", "warned"]


def warned(job: Job, state: State, work: nn.Module) -> State:
    """Warn before training where the masks leave a layer or an output without a path."""
    paths = {weight_at(work, name).path: name for name in state.results}
    masks = {key: mask for key, mask in state.masks.items() if key in paths}
    said = None
    if job.example is not None:
        inputs = job.example[0] if isinstance(job.example, tuple | list) else job.example
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            found = connection(work, masks, to_device(job.example, job.device))
            said = None if found.whole else found.summary()
    else:
        empty = [paths[key] for key, m in masks.items() if not bool(m.any())]
        said = f"no weight is kept in {', '.join(empty)}" if empty else None
    if said is None:
        return state
    warnings.warn(
        f"Pruning at initialisation: {said}. Raise the density.", Disconnected, stacklevel=4
    )
    return state.noted(said)


def answer(
    job: Job,
    state: State,
    work: nn.Module,
    model: nn.Module,
    metrics: Mapping[str, Metrics],
    end: Settled | None = None,
) -> Pruned:
    """The account of it all, on the device of the input model.

    Args:
        job: what was pruned.
        state: after the last step.
        work: the pruned network, back on that device.
        model: the network as it came.
        metrics: what `evaluate` said.
        end: what is known of the pruned network, where that was asked already.
    """
    assert state.plan is not None  # every schedule has a step that prunes
    assert state.cost_before is not None
    end = end or kind_of(job.recipe).settled(job, state, work)
    home = device_of(model)
    return Pruned(
        model=work,
        layers={
            key: replace(
                r,
                mask=r.mask.to(home),
                weight=r.weight.to(home),
                bias=None if r.bias is None else r.bias.to(home),
            )
            for key, r in state.results.items()
        },
        not_pruned=_not_pruned(state, work),
        plan=state.plan,
        recipe=job.recipe,
        name=job.name,
        seed=job.seed,
        cost_before=state.cost_before,
        cost_after=end.cost,
        data_fingerprint=state.fingerprint,
        data_rows=state.rows,
        metrics=dict(metrics),
        notes=state.noted(*end.said).notes,
        masks={key: mask.to(home) for key, mask in state.masks.items()},
        dense=model,
        dense_state=state_sum(model),
        example=job.example,
        coupling=None if state.groups is None else job.coupling,
        proved=end.proved,
    )


def _not_pruned(state: State, work: nn.Module) -> dict[str, str]:
    """The reasons that stand: of layers nothing was done to, or whose own channels stay whole.

    A layer that lost columns goes without the reason for its channels only where that says
    nothing: the network's outputs are never units. Some of a layer's channels may have gone. What
    no view knows may have gone all the same, as experts and columns of embeddings do.
    """
    made = {name for group in state.groups or () for name in group.producers}
    apart = state.masks.keys() - state.results.keys()
    gone = {name.rpartition(".")[0] for name in apart} & state.not_pruned.keys()
    gone -= weights_of(work).keys() if gone else set()
    return {
        name: f"part of its channels stay: {why}" if name in made else why
        for name, why in state.not_pruned.items()
        if name not in gone
        and (name not in state.results or (state.groups is not None and why != OUTPUTS))
    }
