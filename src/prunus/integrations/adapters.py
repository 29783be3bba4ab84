"""Adapters on pruned networks: merged without losing a zero.

A low-rank update B A is dense, so that W + B A has none of the zeros of W. What is kept of it here
is M ∘ (W + B A), M the mask of W; or, with data, the weights on M that come nearest to W + B A on
the layer's own inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import plainly, quiet
from prunus.calibration import calibrate
from prunus.compensation import LeastSquares
from prunus.compensation.error import output_error
from prunus.layer import Layer
from prunus.modes import copied
from prunus.weights import Weight, weights_of

__all__ = ["Merged", "MergedLayer", "merge_adapters"]


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    """What merging did to one layer.

    Attributes:
        zeros: entries of the weight that are zero, as many as before.
        lost: share of the update's power that the mask drops: E‖(ΔW − M ∘ ΔW) x‖² over E‖ΔW x‖²
            on the data, or the same of squared weights without data.
        left: the same after refitting the kept weights; None without data.
    """

    zeros: int
    lost: float
    left: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Merged:
    """A network without adapters.

    Attributes:
        model: it, of the classes that it had before adapters were put on.
        layers: {name of the layer, without adapters: what was done}.
        masks: True where a weight may be other than zero, by parameter; as `Pruned.masks`.
    """

    model: nn.Module
    layers: Mapping[str, MergedLayer]
    masks: Mapping[str, Tensor] = field(repr=False)


@plainly
def merge_adapters(
    model: nn.Module, *, data: Any = None, compensation: LeastSquares | None = None
) -> Merged:
    """Merge the active LoRA adapters of a PEFT model into its weights, whose zeros stay zero.

    Args:
        model: a `peft.PeftModel`; left as it is.
        data: batches; where given, the kept weights of every layer with an adapter are refitted
            to W + B A on the layer's inputs, which are those of the model with its adapters.
        compensation: the least squares; its defaults where None.

    Returns:
        a `Merged`; `merged.model` is a copy.

    Raises:
        TypeError: not a model of PEFT.
        ValueError: an adapter is no sum (DoRA), or no adapter is active.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "unload"):
        raise TypeError(
            f"`merge_adapters` takes a peft.PeftModel, got {type(model).__name__}. Wrap the pruned "
            f"network with peft.get_peft_model first."
        )
    work = copied(model).eval()
    weights = weights_of(work)
    updates = dict(_updates(work, weights))
    if not updates:
        raise ValueError("No adapter of the model is active. Call set_adapter first.")
    layers = {name: weights[name].layer() for name in updates}
    if data is not None:
        with quiet():
            found = calibrate(work, data, ("gram",), layers=list(updates))
        layers = {name: found[name] for name in updates}
    done: dict[str, MergedLayer] = {}
    masks: dict[str, Tensor] = {}
    for name, update in updates.items():
        weight, layer = weights[name], layers[name]
        mask = layer.weight != 0
        wanted = replace(layer, weight=layer.weight + update)
        merged = wanted.weight.masked_fill(~mask, 0.0)
        zeros, lost = int((~mask).sum()), _share(wanted, merged, layer.weight)
        left = None
        if data is not None:
            merged, _ = (compensation or LeastSquares())(wanted, mask)
            left = _share(wanted, merged, layer.weight)
        done[name] = MergedLayer(zeros=zeros, lost=lost, left=left)
        weight.put(merged)
        weight.put_mask(masks, mask)
    unload: Any = work.unload
    plain: nn.Module = unload()
    return Merged(
        model=plain,
        layers={_plain_name(name): entry for name, entry in done.items()},
        masks={_plain_name(name): mask for name, mask in masks.items()},
    )


def _updates(model: nn.Module, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Tensor]]:
    """The sum of the active adapters' updates of every layer that has some, as (out, in)."""
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if not isinstance(base, nn.Module):  # a model of transformers has a method of that name
            continue
        active = [a for a in getattr(module, "active_adapters", ()) if a in _adapters(module)]
        if not active:
            continue
        if any(getattr(module, "use_dora", {}).get(a, False) for a in active):
            raise ValueError(
                f"The adapter of {name!r} is DoRA, which scales the sum and is none. Merge it with "
                f"PEFT, and prune again."
            )
        weight = weights.get(f"{name}.base_layer")
        if weight is None:
            raise ValueError(
                f"The layer under the adapter of {name!r} has no weight view; register one with "
                f"prunus.layer.register_view."
            )
        delta: Any = module.get_delta_weight
        with torch.no_grad():
            total = torch.stack([delta(a).detach() for a in active]).sum(0)
        yield weight.name, weight.matrix(total).to(weight.parameter.dtype)


def _adapters(module: Any) -> Any:
    return getattr(module, "lora_A", {})


def _share(wanted: Layer, got: Tensor, before: Tensor) -> float:
    """The error of new weights over the power of the update; plain squares without inputs."""
    if wanted.gram is None:
        power = float((wanted.weight - before).double().square().sum())
        error = float((wanted.weight - got).double().square().sum())
    else:
        power = output_error(wanted, before, None) or 0.0
        error = output_error(wanted, got, None) or 0.0
    return error / power if power else 0.0


def _plain_name(name: str) -> str:
    """A name as it is without adapters: PEFT wraps the model twice and each layer once."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
