"""A sparsifier's state as tensors, numbers and text, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunus.budget import Plan
from prunus.engine.target import Target
from prunus.files import write_bytes
from prunus.result.packing import bits, unbits
from prunus.training.chooser import Chooser, Chosen

__all__ = ["Restored", "packed", "read_state", "restored", "write_state"]

FORMAT = 1
START = ("filled", "boxes", "layers_filled")  # what zeros have to do with a network's sizes


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
        "start": json.dumps({name: getattr(chooser.job.sizes, name) for name in START}),
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
    start = json.loads(state["start"])
    start["boxes"] = {name: tuple(box) for name, box in start["boxes"].items()}
    sizes = replace(chooser.job.sizes, **start)
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


def write_state(state: Mapping[str, Any], path: Path) -> Path:
    """A state as one safetensors file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}

    def enter(key: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[key] = value.cpu().contiguous()
        elif isinstance(value, Mapping):
            plain.setdefault("parts", []).append(key)
            for name, inner in value.items():
                enter(f"{key}|{name}", inner)
        else:
            plain[key] = value

    for key, value in state.items():
        enter(key, value)
    return write_bytes(path, save(tensors, {"sparsifier": json.dumps(plain)}))


def read_state(path: Path) -> dict[str, Any]:
    """The state that `write_state` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such state, or not whole.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}, the masks of the training that is resumed. Resume from a "
            f"checkpoint that was written with the callback."
        )
    try:
        with safe_open(path, framework="pt") as file:
            plain: dict[str, Any] = json.loads((file.metadata() or {})["sparsifier"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no state of a Sparsifier, or not whole: {error}.") from None
    state: dict[str, Any] = {}
    for key in plain.pop("parts"):
        _place(state, key, {})
    for key, tensor in tensors.items():
        _place(state, key, tensor)
    return state | plain


def _place(state: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split("|")
    for name in above:
        state = state[name]
    state[last] = value


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
