"""A sparsifier's state as tensors, numbers and text, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import Tensor

from prunus.budget import Plan
from prunus.engine.target import Target
from prunus.files import write_bytes
from prunus.reading import Count, Schema, check, json_object, read_json, read_tensors
from prunus.result.packing import bits, unbits
from prunus.training.chooser import Chooser, Chosen

__all__ = ["Restored", "packed", "read_state", "restored", "write_state"]

FORMAT = 1
FIELDS = frozenset({
    "recipe", "density", "seed", "steps", "network", "step", "plan", "start", "masks", "classes",
    "shadow", "gathered",
})  # fmt: skip


class _Start(Schema):
    """What zeros had to do with the sizes of the network that it began with."""

    filled: dict[str, Count]
    boxes: dict[str, tuple[Count, ...]]
    layers_filled: dict[str, Count]


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
        "start": json.dumps({n: getattr(chooser.job.sizes, n) for n in _Start.model_fields}),
        "masks": {name: bits(mask.cpu()) for name, mask in chosen.masks.items()},
        "classes": {name: bits(mask.cpu()) for name, mask in chosen.classes.items()},
        "shadow": {name: value.detach().clone() for name, value in shadow.items()},
        "gathered": {
            kind: {name: value.clone() for name, value in values.items()}
            for kind, values in gathered.items()
        },
    }


def restored(
    state: Mapping[str, Any],
    chooser: Chooser,
    chosen: Chosen,
    *,
    steps: int,
    shadow: Mapping[str, Tensor],
    gathered: Mapping[str, Mapping[str, Tensor]],
    source: object = "The state",
) -> Restored:
    """What `packed` stored, for a sparsifier made in the same way; nothing is changed by it.

    Args:
        state: what `packed` gave.
        chooser: of the sparsifier.
        chosen: what it keeps now.
        steps: of its training.
        shadow: what it holds in the shadow, whose names and shapes must come.
        gathered: what it gathers, likewise.
        source: the state's name, for messages.

    Raises:
        ValueError: it is no such state, or one of another network, recipe, density, seed or number
            of steps, or a field of it is not what it must be.
    """
    lacking = FIELDS - set(state)
    if state.get("format") != FORMAT or lacking:
        raise ValueError(
            f"{source} is no state of a Sparsifier of format {FORMAT}, got keys "
            f"{sorted(map(str, state))[:6]}. Pass what state_dict() gave."
        )
    for name, own in _identity(chooser, chosen, steps).items():
        if state[name] != own:
            raise ValueError(
                f"The state was made with another `{name}`: {state[name]!r}, where this "
                f"sparsifier has {own!r}. Call prunus.sparsify as it was called then."
            )
    step = state["step"]
    good = type(step) is int and step >= 0
    check(good, source, "step", f"must be a number of steps, got {step!r:.30}.")
    for key in ("start", "plan"):
        check(isinstance(state[key], str), source, key, "must be text.")
    # The network may have come with the checkpoint's zeros; what it was before them is stored.
    sizes = chooser.job.sizes
    start = read_json(state["start"], _Start, f"{source}: `start`")
    for name, own in (("filled", sizes.filled), ("layers_filled", sizes.layers_filled)):
        _named(getattr(start, name), own, source, f"start.{name}")
    for name, box in start.boxes.items():  # only tensors with zeros have one
        fits = len(box) == len(sizes.shapes.get(name, ()))
        check(fits, source, f"start.boxes.{name}", "must be the axes of a tensor of the network.")
    sizes = replace(sizes, **dict(start))
    job = replace(chooser.job, sizes=sizes)
    _named(state["gathered"], gathered, source, "gathered")
    return Restored(
        step=step,
        chosen=Chosen(
            masks=_masks(state["masks"], chosen.masks, source, "masks"),
            classes=_masks(state["classes"], chosen.classes, source, "classes"),
            plan=Plan.from_json(state["plan"], f"{source}: `plan`"),
        ),
        chooser=replace(chooser, job=job, unit=replace(cast(Any, chooser.unit), job=job)),
        shadow=_tensors(state["shadow"], shadow, source, "shadow"),
        gathered={
            kind: _tensors(state["gathered"][kind], values, source, f"gathered.{kind}")
            for kind, values in gathered.items()
        },
    )


def _named(given: Any, own: Mapping[str, Any], source: object, place: str) -> None:
    same = isinstance(given, Mapping) and set(given) == set(own)
    found = sorted(map(str, given))[:6] if isinstance(given, Mapping) else type(given).__name__
    check(same, source, place, f"must have the entries {sorted(own)[:6]}, has {found}.")


def _masks(given: Any, own: Mapping[str, Tensor], source: object, place: str) -> dict[str, Tensor]:
    _named(given, own, source, place)
    for name, value in given.items():
        check(isinstance(value, Tensor), source, f"{place}.{name}", "must be a tensor of bits.")
    return {n: unbits(given[n], m.shape, source, f"{place}.{n}") for n, m in own.items()}


def _tensors(
    given: Any, own: Mapping[str, Tensor], source: object, place: str
) -> dict[str, Tensor]:
    _named(given, own, source, place)
    for name, value in given.items():
        fits = isinstance(value, Tensor) and value.shape == own[name].shape
        said = f"must be a tensor of shape {tuple(own[name].shape)} and {own[name].dtype}."
        check(fits and value.dtype == own[name].dtype, source, f"{place}.{name}", said)
    return dict(given)


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
    data = path.read_bytes()
    tensors = read_tensors(data, path, "the state")
    plain = json_object(_told(data, path), path)
    parts = plain.pop("parts", None)
    check(isinstance(parts, list), path, "parts", "must be a list of names.")
    state: dict[str, Any] = {}
    for key, value in [*((key, {}) for key in parts), *tensors.items()]:
        check(isinstance(key, str), path, "parts", f"must hold names, got {key!r:.30}.")
        *above, last = key.split("|")
        holder: Any = state
        for name in above:
            holder = holder.get(name) if isinstance(holder, dict) else None
        fits = isinstance(holder, dict) and last not in holder
        check(fits, path, key, "lies in no part of the state, or stands twice.")
        holder[last] = value
    return state | plain


def _told(data: bytes, path: Path) -> str:
    """The text beside the tensors of a safetensors file."""
    header = json_object(data[8 : 8 + int.from_bytes(data[:8], "little")], path)
    words = header.get("__metadata__", {})
    check("sparsifier" in words, path, "sparsifier", "is missing: it is no state of a Sparsifier.")
    return str(words["sparsifier"])


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
