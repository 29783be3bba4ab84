"""What a model's layers read on an example: the range of each input channel."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.ambient import transformed, undisturbed, unless_interrupted
from prunus.coupling.example import arguments_of, two_samples
from prunus.inputs import mapped
from prunus.modes import evaluating

__all__ = ["Reading", "joined", "other_lengths", "read_inputs", "run", "variants"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Least and largest value of each input channel of a layer, over samples and positions."""

    low: Float[Tensor, " channels"]
    high: Float[Tensor, " channels"]
    rounding: float

    def constant(self) -> Bool[Tensor, " channels"]:
        """True where both are equal up to the rounding of the network's precision."""
        scale = torch.maximum(self.low.abs(), self.high.abs())
        return self.high - self.low <= self.rounding * scale


def read_inputs(
    model: nn.Module, example: object, names: set[str], *, strict: bool = True
) -> dict[str, Reading]:
    """The range of each input channel of the named layers, in eval mode on the example.

    A layer that runs several times is read over all its calls.

    Args:
        model: the network.
        example: one batch.
        names: of the layers.
        strict: False where the model may refuse the example; the answer is then empty.
    """
    found: dict[str, Reading] = {}

    def reader(name: str, module: nn.Module):  # type: ignore[no-untyped-def]
        weight: Tensor = module.weight  # type: ignore[assignment]

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            x = inputs[0] if inputs else keywords["input"]
            if transformed():  # of which the values are not known
                most = torch.full((x.shape[-1] if weight.ndim == 2 else weight.shape[1],), math.inf)
                found[name] = Reading(-most.double(), most.double(), 0.0)
                return
            axis = x.ndim - 1 if weight.ndim == 2 else x.ndim - weight.ndim + 1
            rows = x.detach().movedim(axis, -1).flatten(0, -2)
            rounding = 16 * torch.finfo(x.dtype).eps
            low, high = rows.amin(dim=0).double().cpu(), rows.amax(dim=0).double().cpu()
            own = Reading(low, high, rounding)
            found[name] = joined(found[name], own) if name in found else own

        return hook

    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)
            hook = reader(name, module)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            run(model, example)
        except Exception as error:  # of any kind: the user's forward
            unless_interrupted(error)
            if strict:
                raise
            return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def joined(one: Reading, other: Reading) -> Reading:
    """The range over both."""
    low, high = torch.minimum(one.low, other.low), torch.maximum(one.high, other.high)
    return Reading(low, high, one.rounding)


def run(model: nn.Module, example: object) -> object:
    """The model's output on the example in eval mode, without gradients.

    Models that draw random numbers draw the same at every call; the global state stays. The model
    runs on copies, since it may change its inputs in place.
    """
    positional, keywords = mapped(torch.clone, arguments_of(example))

    def forward() -> object:
        with evaluating(model), torch.no_grad():
            return model(*positional, **keywords)

    return undisturbed(forward)


def variants(example: object) -> Iterator[object]:
    """The example in other forms that a model may take: larger, longer, alone, partly masked.

    What a layer reads from a unit without input can depend on the size of the data (zeros at a
    border, a pooling window that meets it) and on masks, never on their values.
    """
    positional, keywords = arguments_of(example)
    named: dict[Any, Any] = {**dict(enumerate(positional)), **keywords}

    def rebuilt(change: Callable[[Tensor], Tensor]) -> object:
        new = {k: change(v) if isinstance(v, Tensor) else v for k, v in named.items()}
        return new if keywords else new[0]

    def longer(first: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            times = [1 if axis < first else 3 for axis in range(x.ndim)]
            return x.repeat(times) if x.ndim > first else x

        return change

    def masked(x: Tensor) -> Tensor:
        flags = not x.is_floating_point() and x.ndim > 1 and bool((x.long() == 1).all())
        if not flags:
            return x
        last = x.clone()
        last[..., x.shape[-1] // 2 :] = 0
        return last

    tensors = [v for v in named.values() if isinstance(v, Tensor)]
    if any(v.ndim > 2 for v in tensors):
        yield rebuilt(longer(2))
    if any(v.ndim == 3 for v in tensors):
        yield rebuilt(lambda x: x.repeat(1, 3, *[1] * (x.ndim - 2)) if x.ndim > 1 else x)
    if any(not v.is_floating_point() and v.ndim == 2 for v in tensors):
        yield rebuilt(longer(1))
        yield rebuilt(masked)


def other_lengths(example: object) -> Iterator[tuple[str, object]]:
    """Two samples of an example of sequences in other forms: shorter ones, and padded ones.

    Tokens (whole numbers) and features are by (samples, positions, …); masks are known by name.
    """
    positional, keywords = two_samples(arguments_of(example))
    named: dict[Any, Any] = {**dict(enumerate(positional)), **keywords}
    tensors = {k: v for k, v in named.items() if isinstance(v, Tensor)}
    steps = {
        v.shape[1]
        for v in tensors.values()
        if (v.ndim == 3 and v.is_floating_point()) or (v.ndim == 2 and not v.is_floating_point())
    }

    def rebuilt(new: dict[Any, Any]) -> object:
        whole = {**named, **new}
        return whole if keywords else tuple(whole[k] for k in range(len(positional)))

    if not steps or max(steps) < 3:
        return
    yield (
        "shorter sequences",
        rebuilt(
            {
                k: v[:, : (v.shape[1] + 1) // 2]
                for k, v in tensors.items()
                if v.ndim in (2, 3) and v.shape[1] in steps
            }
        ),
    )
    masks = [k for k, v in tensors.items() if "mask" in str(k) and v.ndim == 2]
    if masks:
        padded = {k: tensors[k].clone() for k in masks}
        for mask in padded.values():
            mask[-1:, mask.shape[1] // 2 :] = 0
        yield "a padded batch", rebuilt(padded)
