"""One streaming pass over the data that collects what is asked; hooks are always removed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import (
    Batches,
    Fingerprint,
    attention_mask,
    call,
    parts,
    size_of,
    to_device,
)
from prunus.calibration.curvature import hessian_gradients
from prunus.calibration.flow import ones_like_input, path_flow
from prunus.calibration.forward import evaluating, loss_of
from prunus.layer import ConvView, View, second_moment, view_of

__all__ = ["STATISTICS", "Moments", "collect", "evaluating", "watched"]

STATISTICS = ("diag", "gram", "cross", "mean", "max", "zeros", "grad", "hessian_grad", "flow")
PER_WEIGHT = {"grad", "hessian_grad", "flow"}  # of the weights, not of their inputs
BLOCK_BYTES = 2**25  # of float64 input vectors handled at a time
GRAM_BYTES = 2**31  # a single Gram matrix above this is refused unless the caller allows more


@dataclass(eq=False)
class Moments:
    """Running sums of one layer's inputs, per convolution group, in float64."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: "Moments") -> "Moments":
        """The sums over both data sets."""
        if set(self.sums) != set(other.sums):
            raise ValueError(
                f"Only calibrations with the same statistics can be merged, got "
                f"{sorted(self.sums)} and {sorted(other.sums)}."
            )
        merged = Moments(count=self.count + other.count)
        for name, value in self.sums.items():
            theirs = other.sums[name]
            if value.shape != theirs.shape:
                raise ValueError(
                    f"Statistics {name!r} of shapes {tuple(value.shape)} and "
                    f"{tuple(theirs.shape)} cannot be merged: the layers differ."
                )
            merged.sums[name] = torch.maximum(value, theirs) if name == "max" else value + theirs
        return merged


def collect(
    model: nn.Module,
    names: Mapping[str, nn.Module],
    statistics: tuple[str, ...],
    batches: Batches,
    *,
    max_samples: int | None = None,
    max_positions: int | None = None,
    generator: torch.Generator | None = None,
    loss: Any = None,
    device: torch.device,
    advance: Any = None,
) -> tuple[dict[str, Moments], str, int]:
    """Sums over the inputs of the named layers, the data's fingerprint, and the sample count.

    Raises:
        ValueError: the data are empty, or do not fit the model, or an input is NaN or infinite
            (the layer is named), or a Gram matrix would exceed the memory limit.
    """
    found = {name: Moments() for name in names}
    fingerprint = Fingerprint()
    seen = 0
    wanted = set(statistics) - {*PER_WEIGHT, "cross"}
    used: list[Any] = []
    current: dict[str, Any] = {"mask": None}

    def take(name: str, view: View, module: nn.Module, inputs: Tensor) -> None:
        for vectors in vectors_of(view, module, inputs, current["mask"]):
            _accumulate(
                name, found[name], _subsample(view, vectors, max_positions, generator), wanted
            )

    with evaluating(model), watched(names, take):
        for batch in batches:
            for part in parts(batch):
                if max_samples is not None:
                    room = max_samples - seen
                    if room <= 0:
                        break
                    part = next(parts(part, room))
                fingerprint.add(part)
                seen += size_of(part) or 1
                if "flow" in statistics or max_samples is not None:
                    used = [*used, part] if max_samples is not None else used or [part]
                on_device = to_device(part, device)
                current["mask"] = attention_mask(on_device)
                if "grad" in statistics:
                    _gradients(model, names, on_device, loss, found)
                else:
                    with torch.no_grad():
                        call(model, on_device)
            if advance is not None:
                advance(1)
            if max_samples is not None and seen >= max_samples:
                break
    if "hessian_grad" in statistics:
        again = batches if max_samples is None else Batches(used)
        _store(
            names,
            found,
            "hessian_grad",
            hessian_gradients(model, names, again, loss=loss, device=device),
        )
    if "flow" in statistics:
        _, flow = path_flow(
            model,
            {f"{name}.weight".lstrip("."): _absolute(module) for name, module in names.items()},
            ones_like_input(used[0]).to(device),
        )
        _store(names, found, "flow", {name: flow[f"{name}.weight".lstrip(".")] for name in names})
    return found, fingerprint.value, seen


def _absolute(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.detach().abs()


def _store(
    names: Mapping[str, nn.Module], found: dict[str, Moments], key: str, values: dict[str, Tensor]
) -> None:
    """Put one value per weight among the sums, as a matrix."""
    for name, module in names.items():
        view = view_of(module)
        assert view is not None  # the caller selected modules that have one
        found[name].sums[key] = view.matrix(module, values[name])


def vectors_of(
    view: View, module: nn.Module, inputs: Tensor, mask: Tensor | None
) -> Iterator[Tensor]:
    """The input vectors of one call in blocks of bounded size, padding positions left out."""
    if mask is not None:
        rows = view.channels(module, inputs)
        if rows.shape[:-1] == mask.shape:
            yield from _blocks(view.vectors(module, rows[mask][None]))
            return
    if not isinstance(view, ConvView):
        yield from _blocks(view.vectors(module, inputs))
        return
    taps = 1
    for size in module.kernel_size:  # type: ignore[union-attr]
        taps *= int(size)
    sample_bytes = 8 * taps * max(1, inputs.numel() // max(1, inputs.shape[0]))
    for piece in torch.split(inputs, max(1, BLOCK_BYTES // sample_bytes)):
        yield from _blocks(view.vectors(module, piece))


def _blocks(vectors: Tensor) -> Iterator[Tensor]:
    width = vectors.shape[1] * vectors.shape[2]
    yield from torch.split(vectors, max(256, BLOCK_BYTES // (8 * max(1, width))))


def _subsample(
    view: View, vectors: Tensor, limit: int | None, generator: torch.Generator | None
) -> Tensor:
    """At most `limit` positions of a block of convolution patches, drawn without replacement."""
    if limit is None or not isinstance(view, ConvView) or vectors.shape[0] <= limit:
        return vectors
    chosen = torch.randperm(vectors.shape[0], generator=generator)[:limit]
    return vectors[chosen.to(vectors.device)]


def _accumulate(name: str, moments: Moments, vectors: Tensor, wanted: set[str]) -> None:
    x = vectors.detach().to(torch.float64)
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"Layer {name!r} received NaN or infinite inputs. Check the data and the layers before."
        )
    new: dict[str, Tensor] = {}
    if "gram" in wanted:
        _guard(name, x.shape[-1] ** 2 * x.shape[1] * 8)
        new["gram"] = second_moment(x)
    if "diag" in wanted and "gram" not in wanted:
        new["diag"] = x.square().sum(0)
    if "mean" in wanted:
        new["mean"] = x.sum(0)
    if "zeros" in wanted:
        new["zeros"] = (x == 0).sum(0).to(torch.float64)
    if "max" in wanted:
        new["max"] = x.abs().amax(0) if len(x) else x.new_zeros(x.shape[1:])
    moments.count += x.shape[0]
    for key, value in new.items():
        if key not in moments.sums:
            moments.sums[key] = value
        elif key == "max":
            moments.sums[key] = torch.maximum(moments.sums[key], value)
        else:
            moments.sums[key] += value


def _guard(name: str, needed: int) -> None:
    if needed > GRAM_BYTES:
        raise MemoryError(
            f"The Gram matrix of layer {name!r} needs {needed / 2**30:.1f} GiB, more than the "
            f"limit of {GRAM_BYTES / 2**30:.1f} GiB. Exclude the layer, use a recipe that needs "
            f"the diagonal only (`wanda`), or raise prunus.calibration.collect.GRAM_BYTES."
        )


def _gradients(
    model: nn.Module,
    names: Mapping[str, nn.Module],
    batch: Any,
    loss: Any,
    found: dict[str, Moments],
) -> None:
    """Add ∂L/∂W of one batch, sign kept; parameters' own `.grad` stay as they are."""
    weights: list[Any] = [module.weight for module in names.values()]
    flags = [w.requires_grad for w in weights]
    for w in weights:
        w.requires_grad_(True)
    try:
        with torch.enable_grad():
            value = loss_of(call(model, batch), batch, loss)
            grads = torch.autograd.grad(value, weights, allow_unused=True)
    finally:
        for w, flag in zip(weights, flags, strict=True):
            w.requires_grad_(flag)
    for (name, module), weight, grad in zip(names.items(), weights, grads, strict=True):
        total = torch.zeros_like(weight) if grad is None else grad
        view = view_of(module)
        assert view is not None  # the caller selected modules that have one
        total = view.matrix(module, total.detach().to(torch.float64))
        sums = found[name].sums
        sums["grad"] = sums["grad"] + total if "grad" in sums else total


@contextmanager
def watched(names: Mapping[str, nn.Module], take: Any) -> Iterator[None]:
    """Call `take(name, view, module, input)` before each named module runs; hooks always go."""
    handles = []

    def hook_for(name: str, view: View) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            take(name, view, module, inputs.detach())

        return hook

    try:
        for name, module in names.items():
            view = view_of(module)
            if view is None:
                raise ValueError(f"Layer {name!r} has no weight view.")
            handles.append(module.register_forward_pre_hook(hook_for(name, view), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
