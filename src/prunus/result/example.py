"""The form of an example input, kept with a network, and an input of that form made anew.

The samples themselves are the user's data and are not stored.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from prunus.hints import Batch
from prunus.inputs import arguments
from prunus.reading import Schema, Shape
from prunus.rng import generator_for

__all__ = ["InputFacts", "example_of", "form_of"]

MOST = 2**26  # numbers of an example that is made anew
KINDS = {str(d): d for d in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip


class InputFacts(Schema):
    """One tensor of an input: its shape, kind, and where its numbers lie."""

    shape: Shape
    dtype: str
    low: float
    high: float
    mean: float
    deviation: Annotated[float, Field(ge=0)]


def form_of(example: Batch) -> dict[str, dict[str, Any]] | None:
    """{name: facts} of an example's inputs; the only one of a plain call has no name.

    None where the input is no tensor and no mapping of tensors, such as a graph or a list.
    """
    if example is None:
        return None
    args, kwargs = arguments(example)
    named = dict(kwargs) if kwargs else {"": args[0] if len(args) == 1 else None}
    named.pop("labels", None)
    found = {}
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
            return None
        if str(value.dtype) not in KINDS or not value.numel():
            return None
        numbers = value.detach().cpu().to(torch.float64)
        facts = {
            "low": float(numbers.min()),
            "high": float(numbers.max()),
            "mean": float(numbers.mean()),
            "deviation": float(numbers.std(correction=0)),
        }
        if not all(map(math.isfinite, facts.values())):
            return None
        found[name] = {"shape": list(value.shape), "dtype": str(value.dtype), **facts}
    return found or None


def example_of(form: Mapping[str, InputFacts] | None) -> Any:
    """An input of this form: normal draws, or whole numbers between the ends; always the same.

    Raises:
        ValueError: an unknown kind of number, or more of them than an example has.
    """
    if not form:
        return None
    made: dict[str, Tensor] = {}
    for name, facts in form.items():
        kind = KINDS.get(facts.dtype)
        if kind is None:
            raise ValueError(f"the example's {name!r:.40} has the unknown kind {facts.dtype!r:.40}")
        if math.prod(facts.shape) > MOST:
            raise ValueError(f"the example's {name!r:.40} has {math.prod(facts.shape)} numbers")
        draws = torch.randn(
            facts.shape, dtype=torch.float64, generator=generator_for(0, "example", name)
        )
        if kind.is_floating_point:
            made[name] = (facts.mean + facts.deviation * draws).to(kind)
            continue
        uniform = torch.special.ndtr(draws)  # whole numbers: each as likely as the others
        values = (facts.low + uniform * (facts.high - facts.low + 1)).floor()
        made[name] = values.clamp(facts.low, facts.high).to(kind)
    return made[""] if set(made) == {""} else made
