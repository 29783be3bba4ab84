"""One streaming pass over the data that collects what is asked; hooks are always removed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import (
    Batches,
    Fingerprint,
    call,
    parts,
    size_of,
    to_device,
)
from prunus.calibration.curvature import hessian_gradients
from prunus.calibration.flow import ones_like_input, path_flow
from prunus.calibration.gradient import gradient_sums
from prunus.calibration.padding import Padding, padding_of, streams_of
from prunus.layer import ConvView, Layer, add_second_moment, batched, mirror
from prunus.modes import evaluating
from prunus.rng import generator_for
from prunus.weights import Weight

__all__ = ["STATISTICS", "Moments", "collect", "watched"]

STATISTICS = (
    "diag", "gram", "cross", "mean", "max", "zeros", "grad", "sensitivity", "hessian_grad", "flow",
)  # fmt: skip
BY_GRADIENT = {"grad", "sensitivity"}  # sums over samples that need a backward pass
PER_WEIGHT = BY_GRADIENT | {"hessian_grad", "flow"}  # of the weights, not of their inputs
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

    def to(self, device: torch.device) -> "Moments":
        """The same sums on a device."""
        return Moments(self.count, {key: value.to(device) for key, value in self.sums.items()})


def collect(
    model: nn.Module,
    names: Mapping[str, Weight],
    statistics: tuple[str, ...],
    batches: Batches,
    *,
    max_samples: int | None = None,
    max_positions: int | None = None,
    seed: int = 0,
    loss: Any = None,
    device: torch.device,
    advance: Any = None,
) -> tuple[dict[str, Moments], Fingerprint, int]:
    """Sums over the inputs of the layers that ran, the data's fingerprint, and the sample count.

    Raises:
        ValueError: the data are empty, or do not fit the model, or an input is NaN or infinite
            (the layer is named).
    """
    found: dict[str, Moments] = {}
    fingerprint = Fingerprint()
    seen = 0
    wanted = set(statistics) - PER_WEIGHT
    used: list[Any] = []
    current: dict[str, Any] = {"mask": None}
    signs = generator_for(seed, "signs of the outputs")
    drawn = {
        name: None if max_positions is None else (max_positions, generator_for(seed, name))
        for name in names
    }

    def take(weight: Weight, inputs: Tensor) -> None:
        name = weight.name
        moments = found.setdefault(name, Moments())
        if wanted:
            for vectors in vectors_of(weight, inputs, current["mask"], drawn[name]):
                _accumulate(name, moments, vectors, wanted)

    streams = streams_of(model, to_device(batches.peek(), device))
    with evaluating(model), watched(names.values(), take):
        for batch in batches:
            for part in parts(batch):
                if max_samples is not None:
                    room = max_samples - seen
                    if room <= 0:
                        break
                    part = next(parts(part, room))
                fingerprint.add(part)
                size = size_of(part) or 1
                seen += size
                if "flow" in statistics or max_samples is not None:
                    used = [*used, part] if max_samples is not None else used or [part]
                on_device = to_device(part, device)
                current["mask"] = padding_of(on_device, streams)
                if BY_GRADIENT & set(statistics):
                    sums = gradient_sums(
                        model,
                        names,
                        on_device,
                        BY_GRADIENT & set(statistics),
                        loss=loss,
                        generator=signs,
                    )
                    for key, values in sums.items():
                        for name, value in values.items():
                            if name in found:  # it has run
                                _add(found[name].sums, key, value)
                else:
                    with torch.no_grad():
                        call(model, on_device)
            if advance is not None:
                advance(1)
            if max_samples is not None and seen >= max_samples:
                break
    for moments in found.values():
        if "gram" in moments.sums:
            moments.sums["gram"] = mirror(moments.sums["gram"])
    ran = {name: weight for name, weight in names.items() if name in found}
    if "hessian_grad" in statistics:
        again = batches if max_samples is None else Batches(used)
        _store(
            ran,
            found,
            "hessian_grad",
            hessian_gradients(model, ran, again, loss=loss, device=device),
        )
    if "flow" in statistics:
        _, flow = path_flow(
            model,
            {weight.path: weight.parameter.detach().abs() for weight in ran.values()},
            ones_like_input(used[0]).to(device),
        )
        _store(ran, found, "flow", {name: flow[weight.path] for name, weight in ran.items()})
    return found, fingerprint, seen


def _store(
    names: Mapping[str, Weight], found: dict[str, Moments], key: str, values: dict[str, Tensor]
) -> None:
    """Put one value per weight among the sums, as a matrix."""
    for name, weight in names.items():
        found[name].sums[key] = weight.matrix(values[name])


def vectors_of(
    weight: Weight,
    inputs: Tensor,
    padding: Padding | None = None,
    drawn: tuple[int, torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """The input vectors of one call in blocks of bounded size.

    Args:
        weight: of the layer.
        inputs: what it multiplies.
        padding: positions to leave out.
        drawn: for convolutions, keep so many patches of every sample, drawn without replacement.
    """
    view, module = weight.view, weight.module
    if padding is not None:
        real = padding.real(weight.name, partial(view.channels, module, inputs))
        inputs = inputs if real is None else real
    if not isinstance(view, ConvView):
        yield from _blocks(view.vectors(module, inputs))
        return
    inputs = batched(module, inputs)
    sample_bytes = 8 * weight.source.taps * max(1, inputs[:1].numel())
    for piece in torch.split(inputs, max(1, BLOCK_BYTES // sample_bytes)):
        vectors = view.vectors(module, piece)
        if drawn is not None:
            vectors = _drawn_positions(vectors, len(piece), *drawn)
        yield from _blocks(vectors)


def _drawn_positions(
    vectors: Tensor, samples: int, limit: int, generator: torch.Generator
) -> Tensor:
    """`limit` patches of every sample, so that all samples weigh alike however they are batched."""
    positions = vectors.shape[0] // samples
    if positions <= limit:
        return vectors
    keys = torch.rand(samples, positions, dtype=torch.float64, generator=generator)
    chosen = keys.argsort(dim=1)[:, :limit].sort(dim=1).values
    first = positions * torch.arange(samples)[:, None]
    return vectors[(first + chosen).flatten().to(vectors.device)]


def _blocks(vectors: Tensor) -> Iterator[Tensor]:
    width = vectors.shape[1] * vectors.shape[2]
    yield from torch.split(vectors, max(256, BLOCK_BYTES // (8 * max(1, width))))


def _accumulate(name: str, moments: Moments, vectors: Tensor, wanted: set[str]) -> None:
    x = vectors.detach().to(torch.float64)
    if len(x) == 0:  # nothing but padding
        return
    total = x.sum(0)
    if not bool(torch.isfinite(total).all()) and not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"Layer {name!r} received NaN or infinite inputs. Check the data and the layers before."
        )
    moments.count += x.shape[0]
    sums = moments.sums
    if "gram" in wanted:
        groups, width = x.shape[1:]
        if "gram" not in sums:
            sums["gram"] = x.new_zeros(groups, width, width)
        add_second_moment(sums["gram"], x)
    if "diag" in wanted and "gram" not in wanted:
        _add(sums, "diag", x.square().sum(0))
    if "mean" in wanted:
        _add(sums, "mean", total)
    if "zeros" in wanted:
        _add(sums, "zeros", (x == 0).sum(0).to(torch.float64))
    if "max" in wanted:
        top = x.abs().amax(0)
        sums["max"] = torch.maximum(sums["max"], top) if "max" in sums else top


def _add(sums: dict[str, Tensor], key: str, value: Tensor) -> None:
    if key in sums:
        sums[key] += value
    else:
        sums[key] = value


def guard_memory(layers: Mapping[str, Layer]) -> None:
    """Refuse a Gram matrix above the memory limit before any data are read.

    Raises:
        MemoryError: names the layer, what it needs and the limit.
    """
    for name, layer in layers.items():
        needed = 8 * layer.groups * layer.weight.shape[1] ** 2
        if needed > GRAM_BYTES:
            raise MemoryError(
                f"The Gram matrix of layer {name!r} needs {needed / 2**30:.3g} GiB, more than the "
                f"limit of {GRAM_BYTES / 2**30:.3g} GiB. Exclude the layer, use a recipe that "
                f"needs the diagonal only (`wanda`), or raise "
                f"prunus.calibration.collect.GRAM_BYTES."
            )


@contextmanager
def watched(weights: Iterable[Weight], take: Callable[[Weight, Tensor], None]) -> Iterator[None]:
    """Call `take(weight, inputs)` before the module of each weight runs; hooks always go."""
    handles = []

    def hook_for(weight: Weight) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = weight.inputs(args, kwargs)
            if inputs is not None:
                take(weight, inputs.detach())

        return hook

    try:
        for weight in weights:
            hook = hook_for(weight)
            handles.append(weight.module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
