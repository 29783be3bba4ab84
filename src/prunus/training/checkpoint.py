"""A sparsifier's state as tensors, numbers and text, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from prunus.budget import Plan
from prunus.engine.target import Target
from prunus.result.packing import bits, unbits
from prunus.training.chooser import Chooser, Chosen

__all__ = ["Restored", "packed", "restored"]

FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Restored:
    """What a state holds."""

    step: int
    chosen: Chosen
    chooser: Chooser
    shadow: Mapping[str, Tensor]
    gathered: Mapping[str, Mapping[str, Tensor]]


def packed(
    chooser: Chooser,
    chosen: Chosen,
    *,
    step: int,
    steps: int,
    shadow: Mapping[str, Tensor],
    gathered: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """The state; masks take a bit per entry."""
    return {
        "format": FORMAT,
        **_identity(chooser, chosen, steps),
        "step": step,
        "plan": chosen.plan.to_json(),
        "filled": json.dumps(dict(chooser.job.sizes.layers_filled)),
        "masks": {name: bits(mask.cpu()) for name, mask in chosen.masks.items()},
        "classes": {name: bits(mask.cpu()) for name, mask in chosen.classes.items()},
        "shadow": {name: value.detach().clone() for name, value in shadow.items()},
        "gathered": {
            kind: {name: value.clone() for name, value in values.items()}
            for kind, values in gathered.items()
        },
    }


def restored(state: Mapping[str, Any], chooser: Chooser, chosen: Chosen, *, steps: int) -> Restored:
    """What `packed` stored, for a sparsifier made in the same way.

    Raises:
        ValueError: it is no such state, or one of another network, recipe, density, seed or number
            of steps.
    """
    if state.get("format") != FORMAT or "masks" not in state:
        raise ValueError(
            f"This is no state of a Sparsifier of format {FORMAT}, got keys "
            f"{sorted(map(str, state))[:6]}. Pass what state_dict() gave."
        )
    for name, own in _identity(chooser, chosen, steps).items():
        if state.get(name) != own:
            raise ValueError(
                f"The state was made with another `{name}`: {state.get(name)!r}, where this "
                f"sparsifier has {own!r}. Call prunus.sparsify as it was called then."
            )
    # The network may have come with the checkpoint's zeros; what it was before them is stored.
    sizes = replace(chooser.job.sizes, layers_filled=json.loads(state["filled"]))
    job = replace(chooser.job, sizes=sizes)
    return Restored(
        step=int(state["step"]),
        chosen=Chosen(
            masks={n: unbits(state["masks"][n], m.shape) for n, m in chosen.masks.items()},
            classes={n: unbits(state["classes"][n], m.shape) for n, m in chosen.classes.items()},
            plan=Plan.from_json(state["plan"]),
        ),
        chooser=replace(chooser, job=job, unit=replace(cast(Any, chooser.unit), job=job)),
        shadow=state["shadow"],
        gathered=state["gathered"],
    )


def _identity(chooser: Chooser, chosen: Chosen, steps: int) -> dict[str, Any]:
    """What must be the same for a state to fit."""
    sha = hashlib.sha256()
    for name, mask in sorted(chosen.masks.items()):
        sha.update(f"{name}{tuple(mask.shape)}".encode())
    return {
        "recipe": repr(chooser.job.recipe),
        "density": _asked(chooser.target),
        "seed": chooser.job.seed,
        "steps": steps,
        "network": sha.hexdigest()[:16],
    }


def _asked(target: Target) -> str:
    if target.plan is not None:
        return target.plan.to_json()
    if target.by_name is not None:
        return json.dumps(dict(target.by_name))
    return "fixed" if target.budget is None else repr(target.budget.value)
