"""What a plan is held to: gaps and changed predictions that are measured, and bounds."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import Batches, call, first_of, parts, size_of, to_device
from prunus.calibration.forward import tensor_of
from prunus.calibration.place import device_of
from prunus.guarantee.extract import Unsupported, extract
from prunus.modes import evaluating
from prunus.rng import generator_for
from prunus.theory.gap.certificate import UNITS
from prunus.theory.gap.chain import chain_bound
from prunus.theory.gap.convolution import conv_norm
from prunus.theory.gap.norms import spectral_norm
from prunus.theory.gap.per_sample import sample_bound
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.rounding import rounding_error
from prunus.theory.gap.stages import (
    Branches,
    LayerNorms,
    LinearPair,
    Stage,
    apply_linear,
    layer_norms,
    linear_stages,
    run,
)

__all__ = ["Bounds", "Outputs", "float_inputs", "reason_of", "sampled", "size_of_all", "split"]

PIECE = 64  # rows of a piece of the data, which is not split further


class Outputs:
    """The outputs of a network on a sample, to compare pruned networks with.

    Attributes:
        dense: outputs of the dense network, a row per sample, float64.
        samples: how many.
        scale: root mean square of the dense outputs' norm.
    """

    def __init__(self, model: nn.Module, batches: list[Any]) -> None:
        """Runs the dense network once.

        Raises:
            ValueError: an output is NaN or infinite, or the batches do not fit the model.
        """
        self._batches = batches
        self.dense = self.of(model)
        if not bool(torch.isfinite(self.dense).all()):
            raise ValueError(
                "The network's outputs on the data are NaN or infinite. Check the data."
            )
        self.samples = len(self.dense)
        self.scale = float(self.dense.square().sum(dim=1).mean().sqrt())

    def of(self, network: nn.Module) -> Tensor:
        """Outputs of a network on the samples, a row each, float64."""
        found = []
        where = device_of(network)
        with evaluating(network), torch.no_grad():
            for batch in self._batches:
                output = tensor_of(call(network, to_device(batch, where))).detach().cpu().double()
                found.append(output.flatten(1) if output.ndim > 1 else output[:, None])
        return torch.cat(found)

    def square(self, network: nn.Module) -> float:
        """Mean squared gap."""
        value = float((self.of(network) - self.dense).square().sum(dim=1).mean())
        return value if math.isfinite(value) else math.inf

    def changed(self, network: nn.Module) -> int:
        """Predictions that differ.

        Raises:
            ValueError: the network has one output, which predicts no class.
        """
        if self.dense.shape[1] < 2:
            raise ValueError("kind='changed' counts predicted classes, the network has one output.")
        moved = self.of(network).argmax(dim=1) != self.dense.argmax(dim=1)
        return int(moved.sum())


def sampled(data: Any, largest: int) -> list[Any]:
    """The first `largest` samples of the data, as batches.

    Raises:
        ValueError: the data are empty.
    """
    batches, found, count = Batches(data), list[Any](), 0
    for batch in batches:
        for part in parts(batch):
            part = first_of(part, largest - count)
            found.append(part)
            count += size_of(part) or 1
            if count >= largest:
                return found
        if batches.one_shot and count >= largest:
            break
    return found


def split(batches: list[Any], first: int) -> tuple[list[Any], list[Any]]:
    """At most `first` samples drawn at random whatever their values, in pieces, and the rest."""
    total = size_of_all(batches)
    rows = max(1, min(PIECE, total // 16))
    pieces = [piece for batch in batches for piece in parts(batch, rows)]
    order = torch.randperm(len(pieces), generator=generator_for(0, "split")).tolist()
    one, other, count = [], [], 0
    for place in order:
        size = size_of(pieces[place]) or 1
        if count + size <= first:
            one.append(pieces[place])
            count += size
        else:
            other.append(pieces[place])
    return one, other


def size_of_all(batches: list[Any]) -> int:
    """Number of samples in all batches."""
    return sum(size_of(batch) or 1 for batch in batches)


def reason_of(error: Unsupported) -> str:
    """Which part has no rule, without the advice to pass data."""
    return str(error).partition(" Held-out statements")[0].rstrip(".")


def float_inputs(batches: list[Any]) -> Tensor | None:
    """The inputs of all batches as one tensor; None where an input is no single float tensor."""
    rows: list[Tensor] = []
    for batch in batches:
        given = batch[0] if isinstance(batch, tuple | list) else batch
        if isinstance(given, Mapping) or not isinstance(given, Tensor):
            return None
        if not given.is_floating_point():
            return None
        rows.append(given.detach().cpu())
    return torch.cat(rows) if rows else None


class Bounds:
    """Rigorous values of pruned networks: over a ball, or on a sample.

    Attributes:
        samples: inputs, float64, or None.
    """

    def __init__(self, model: nn.Module, samples: Tensor | None, radius: float | None) -> None:
        """Reads the dense network.

        Raises:
            Unsupported: a module without a rule, by its name.
        """
        self._model = model
        self._example = None if samples is None else samples[:1]
        try:
            found = extract(model, model, self._example)
        except Unsupported as error:
            raise Unsupported(
                f"{reason_of(error)}. Kinds 'predicted' and 'changed' need no bound."
            ) from None
        self._dtype = found.dtype
        self.samples = None if samples is None else samples.double()
        self._centre = torch.zeros(1, *found.shape, dtype=torch.float64)
        if self.samples is not None:
            self._centre = self.samples.mean(dim=0, keepdim=True)
            reach = float((self.samples - self._centre).flatten(1).norm(dim=1).max())
            radius = radius or reach or 1.0
        assert radius is not None  # the caller asks for it without data
        self._radius = radius
        self._dense = found.stages
        pairs = linear_stages(found.stages)
        self._norms = [layer_norms(pair).dense for pair in pairs]
        self._centres = _inputs_of(found.stages, self._centre)
        self._inputs = {} if self.samples is None else _inputs_of(found.stages, self.samples)

    def stages(self, network: nn.Module) -> tuple[Stage, ...]:
        """The two networks layer by layer."""
        return extract(self._model, network, self._example).stages

    def mean_square(self, network: nn.Module) -> float:
        """Bound on the rms gap over the samples."""
        assert self.samples is not None  # the caller asks for data
        return sample_bound(self.stages(network), self.samples)[0]

    def sup(self, network: nn.Module) -> float:
        """Bound on the gap over the ball."""
        return certificate(self.stages(network), self._radius, self._centre, self._dtype)

    def alone(self, kind: str, network: nn.Module) -> float:
        """The product of norms around the layers that differ from the dense network, summed.

        It only has to weigh the layers against each other: plans are checked by the exact bound.
        """
        total = 0.0
        pairs = linear_stages(self.stages(network))
        for i, pair in enumerate(pairs):
            difference = pair.weight - pair.pruned_weight
            shift = None if pair.bias is None else pair.bias - _or_zero(pair.pruned_bias, pair.bias)
            if not bool(difference.any()) and (shift is None or not bool(shift.any())):
                continue
            after = math.prod(self._norms[i + 1 :])
            if kind == "mean_square":
                added = apply_linear(pair, difference, shift, self._inputs[pair.name]).flatten(1)
                total += after * float(added.square().sum(dim=1).mean().sqrt())
            else:
                before = math.prod(self._norms[:i])
                at = apply_linear(pair, difference, shift, self._centres[pair.name])
                total += after * (
                    before * self._radius * _norm(pair, difference) + float(at.norm())
                )
        return total


def _or_zero(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


def _norm(pair: LinearPair, weight: Tensor) -> float:
    if pair.geometry is None:
        return spectral_norm(weight).value
    return conv_norm(weight, pair.geometry).value


def _inputs_of(stages: tuple[Stage, ...], x: Tensor) -> dict[str, Tensor]:
    """What enters each linear layer when x enters the network."""
    found: dict[str, Tensor] = {}
    for stage in stages:
        if isinstance(stage, LinearPair):
            found[stage.name] = x
        elif isinstance(stage, Branches):
            found |= _inputs_of(stage.branch, x) | _inputs_of(stage.shortcut, x)
        x = run([stage], x)
    return found


def certificate(
    stages: tuple[Stage, ...], radius: float, centre: Tensor, dtype: torch.dtype
) -> float:
    """The sup bound of `certify` on this ball: product route or chain, and rounding in `dtype`."""
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=centre, pruned_centre=centre)
    cache: dict[str, LayerNorms] = {}

    def norms(pair: LinearPair) -> LayerNorms:
        if pair.name not in cache:
            cache[pair.name] = layer_norms(pair)
        return cache[pair.name]

    value = product_bound(stages, start, norms).gap
    chain: Callable[..., float | None] = chain_bound
    found = chain(stages, radius, centre)
    best = value if found is None else min(value, found)
    return best * (1 + 1e-12) + rounding_error(stages, radius, centre, UNITS[dtype], norms)
