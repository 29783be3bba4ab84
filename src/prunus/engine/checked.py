"""What parts answer, held to what they were asked: one's own part may answer anything."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.budget import Plan
from prunus.check import all_finite
from prunus.compensation import Compensation
from prunus.granularity import Granularity, pooled
from prunus.joint import JointResult
from prunus.layer import Layer

__all__ = ["exact", "moved", "refitted"]

Values = tuple[
    Float[Tensor, "out in"], Float[Tensor, " out"] | None, float | None, Mapping[str, object]
]


def exact(
    layer: Layer, found: JointResult, granularity: Granularity, kept: Int[Tensor, " pools"]
) -> JointResult:
    """What a joint method found for a layer, where it kept the counts given.

    Raises:
        ValueError: it kept others, or answered for a layer of another shape, or with weights that
            are NaN, infinite or outside the mask.
    """
    _shaped("joint method", "mask", found.mask, layer)
    _shaped("joint method", "weight", found.weight, layer)
    counts = pooled(granularity, layer, found.mask.to(torch.float64)).sum(1).to(kept).cpu()
    if not torch.equal(counts, kept.cpu()):
        raise ValueError(
            f"The joint method kept {int(counts.sum())} weights of layer {layer.name!r} where "
            f"{int(kept.sum())} were asked for. Keep exactly the counts given, pool by pool."
        )
    _sound("joint method", layer, found.mask, found.weight, layer.bias)
    return found


def moved(
    plan: Plan,
    layers: Mapping[str, Layer],
    found: Mapping[str, JointResult],
    granularity: Granularity,
    kept: Mapping[str, Int[Tensor, " pools"]],
) -> tuple[Plan, dict[str, Int[Tensor, " pools"]]]:
    """The plan and the counts of a joint method that moved some between layers.

    Raises:
        ValueError: the total is another, or the plan counts what depends on the layer.
    """
    if plan.kind not in ("density", "parameters"):
        raise ValueError(
            f"The joint method moves weights between layers, whose {plan.kind} differ. Give a "
            f"density."
        )
    for name in kept:
        _shaped("joint method", "mask", found[name].mask, layers[name])
    counts = {
        name: pooled(granularity, layers[name], found[name].mask.to(torch.float64)).sum(1).to(own)
        for name, own in kept.items()
    }
    now, asked = (sum(int(own.sum()) for own in c.values()) for c in (counts, kept))
    if now != asked:
        raise ValueError(
            f"The joint method kept {now} weights where {asked} were asked for. Keep the total."
        )
    said = {n: int(own.sum()) if len(own) == 1 else own.tolist() for n, own in counts.items()}
    return replace(plan, kept={**plan.kept, **said}), counts


def refitted(compensation: Compensation, layer: Layer, mask: Bool[Tensor, "out in"]) -> Values:
    """The kept weights' new values, the bias, the largest relative ridge, and notes.

    Raises:
        TypeError: the compensation answers with something else than weight and bias.
        ValueError: a wrong shape, NaN or infinite values, or weights outside the mask.
    """
    weight, bias, ridge, *said = compensation.fit(layer, mask)
    _shaped("compensation", "weight", weight, layer)
    _sound("compensation", layer, mask, weight, bias)
    return weight, bias, ridge, said[0] if said else {}


def _shaped(whose: str, part: str, given: Tensor, layer: Layer) -> None:
    shape = tuple(layer.weight.shape)
    if not isinstance(given, Tensor) or tuple(given.shape) != shape:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"The {whose}'s {part} for layer {layer.name!r} must have shape {shape}, got {got}."
        )


def _sound(whose: str, layer: Layer, mask: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for values in (weight, bias):
        if values is not None and not all_finite(values):
            raise ValueError(
                f"The {whose} gave layer {layer.name!r} NaN or infinite values in "
                f"{values.dtype}. Check it, or use a wider type."
            )
    if bool((weight.ne(0) > mask.to(weight.device)).any()):
        raise ValueError(
            f"The {whose} of layer {layer.name!r} left weights outside the mask. Return exact "
            f"zeros there."
        )
