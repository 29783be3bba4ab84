"""What a network costs: parameters, multiply-adds, bytes and measured latency."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.modes import evaluating
from prunus.views import view_of
from prunus.weights import weights_of

__all__ = [
    "Anatomy",
    "Cost",
    "Latency",
    "Speedup",
    "anatomy",
    "edge_cost",
    "measure_latency",
    "node_cost",
    "speedup",
]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured time of one call.

    Attributes:
        median: seconds.
        low: lower end of the interval of the median, seconds.
        high: upper end of it, seconds.
        level: confidence level of the interval.
        runs: number of counted calls.
        threads: torch threads used.
        batch: samples in one call.
    """

    median: float
    low: float
    high: float
    level: float
    runs: int
    threads: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Two latencies compared.

    Attributes:
        ratio: median time before over median time after.
        low: lower end of its interval, from the ends of both latencies' intervals.
        high: upper end of it.
        verdict: "faster", "slower", or "no benefit" where the interval includes 1.
    """

    ratio: float
    low: float
    high: float
    verdict: str


def speedup(before: Latency, after: Latency) -> Speedup:
    """How much faster `after` is, and whether that is more than noise."""
    low, high = before.low / after.high, before.high / after.low
    return Speedup(
        ratio=before.median / after.median,
        low=low,
        high=high,
        verdict="faster" if low > 1 else "slower" if high < 1 else "no benefit",
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The price of a network.

    Attributes:
        density: kept / total of the weights that were up for pruning.
        model_density: kept / total of all parameters of the model.
        parameters: kept parameters of the whole model.
        macs: multiply-adds of linear and convolution layers for one sample, zeros not counted;
            None where no example was given. Zeros inside dense tensors save no time by themselves.
        bytes: bytes of the stored parameters and buffers: dense tensors, or for layers with
            single weights removed the kept values and one bit per entry where that is smaller.
        latency: measured, or None.
        latency_share: measured latency over that of the dense network, or None.
    """

    density: float
    model_density: float
    parameters: int
    macs: int | None
    bytes: int
    latency: Latency | None = None
    latency_share: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """The sizes of a model's parts, from which the cost of any plan follows.

    Attributes:
        shapes: shape of every parameter and buffer by name, tensors in several places once.
        itemsizes: bytes per entry.
        parameters: names that are parameters and no buffers.
        tied: {name: the name in `shapes`} of tensors that stand in several places.
        weights: {layer: (its parameter, whether it is one matrix of a stack there)}, for all
            layers with a view.
        positions: output positions per sample of every layer with a view, or None if unknown.
    """

    shapes: Mapping[str, tuple[int, ...]]
    itemsizes: Mapping[str, int]
    parameters: frozenset[str]
    positions: Mapping[str, float] | None
    tied: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    def weight_of(self, layer: str) -> str:
        """The name in `shapes` of the parameter that holds a layer's weight."""
        path, _ = self.weights.get(layer, (f"{layer}.weight", False))
        return self.tied.get(path, path)

    def weight_shape(self, layer: str) -> tuple[int, ...]:
        """The shape of a layer's weight, kernel axes included."""
        shape = self.shapes[self.weight_of(layer)]
        return shape[1:] if self.weights[layer][1] else shape

    def weight_entries(self, layers: Sequence[str]) -> int:
        """Number of entries of the layers' weights."""
        return sum(math.prod(self.weight_shape(name)) for name in layers)


def anatomy(model: nn.Module, run: Callable[[], int] | None = None) -> Anatomy:
    """The sizes of `model`; `run` makes one forward call and returns its number of samples."""
    entries: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    named: list[tuple[str, Tensor, bool]] = [
        *((n, p, True) for n, p in model.named_parameters(remove_duplicate=False)),
        *((n, b, False) for n, b in model.named_buffers(remove_duplicate=False)),
    ]
    parameters = set()
    for name, tensor, is_parameter in named:
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        entries[name] = tensor
        if is_parameter:
            parameters.add(name)
    positions = None
    if run is not None:
        positions = _positions(model, run)
    return Anatomy(
        shapes={n: tuple(t.shape) for n, t in entries.items()},
        itemsizes={n: t.element_size() for n, t in entries.items()},
        parameters=frozenset(parameters),
        positions=positions,
        tied=tied,
        weights={
            n: (w.path, w.source.index is not None)
            for n, w in weights_of(model).items()
            if w.path in entries or w.path in tied  # else it is computed from other tensors
        },
    )


def _positions(model: nn.Module, run: Callable[[], int]) -> dict[str, float]:
    outputs: dict[str, int] = {}
    handles = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                weight = module.weight
                assert isinstance(weight, Tensor)  # only modules with a view are hooked
                rows = view_of(module).matrix(module, weight).shape[0]  # type: ignore[union-attr]
                outputs[name] = outputs.get(name, 0) + output.numel() // rows

        return hook

    try:
        for name, module in model.named_modules():
            if view_of(module) is not None and "weight" in module._parameters:
                handles.append(module.register_forward_hook(hook_for(name)))
        batch = run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: count / batch for name, count in outputs.items()}


def edge_cost(sizes: Anatomy, kept: Mapping[str, int]) -> Cost:
    """The cost when each named layer keeps so many of its weights."""
    total = sum(math.prod(sizes.shapes[n]) for n in sizes.parameters)
    removed = 0
    stored = sum(math.prod(shape) * sizes.itemsizes[n] for n, shape in sizes.shapes.items())
    macs: float | None = None if sizes.positions is None else _dense_macs(sizes)
    for name, count in kept.items():
        entries = math.prod(sizes.weight_shape(name))
        removed += entries - count
        itemsize = sizes.itemsizes[sizes.weight_of(name)]
        stored -= max(0, entries * itemsize - (count * itemsize + (entries + 7) // 8))
        if macs is not None and sizes.positions is not None:
            macs -= (entries - count) * sizes.positions.get(name, 0.0)
    selected = sizes.weight_entries(list(kept))
    return Cost(
        density=(selected - removed) / selected if selected else 1.0,
        model_density=(total - removed) / total,
        parameters=total - removed,
        macs=None if macs is None else round(macs),
        bytes=stored,
    )


def node_cost(sizes: Anatomy, groups: Sequence[Group], kept: Mapping[str, int]) -> Cost:
    """The exact cost of the compact network when each group keeps so many of its classes.

    All classes of a group are alike, so a parameter shrinks along each axis by the removed
    classes' entries there, and products of two groups come out right.
    """
    lengths = {name: list(shape) for name, shape in sizes.shapes.items()}
    layers: set[str] = set()
    for group in groups:
        layers.update(group.producers, group.consumers)
        gone = group.size - kept[group.name]
        for slot in group.slots:
            if slot.parameter in lengths:
                each = len(slot.index) // group.size
                lengths[slot.parameter][slot.axis] -= gone * each
    after = {name: math.prod(axes) for name, axes in lengths.items()}
    total = sum(math.prod(sizes.shapes[n]) for n in sizes.parameters)
    left = sum(after[n] for n in sizes.parameters)
    weights = [sizes.weight_of(name) for name in sorted(layers)]
    selected = sum(math.prod(sizes.shapes[n]) for n in weights)
    macs = None
    if sizes.positions is not None:
        macs = round(sum(after[sizes.weight_of(n)] * at for n, at in sizes.positions.items()))
    return Cost(
        density=sum(after[n] for n in weights) / selected if selected else 1.0,
        model_density=left / total,
        parameters=left,
        macs=macs,
        bytes=sum(after[n] * sizes.itemsizes[n] for n in after),
    )


def _dense_macs(sizes: Anatomy) -> float:
    assert sizes.positions is not None
    return sum(
        math.prod(sizes.shapes[sizes.weight_of(name)]) * at for name, at in sizes.positions.items()
    )


def measure_latency(
    models: Sequence[nn.Module],
    call: Callable[[nn.Module], Any],
    *,
    batch: int,
    seconds: float = 0.5,
    runs: int = 200,
) -> list[Latency]:
    """Time one call of each model, in turn, so that drifts of the machine hit all alike.

    Args:
        models: the networks; in evaluation mode while they are timed.
        call: runs one of them.
        batch: samples in one call.
        seconds: about how long to measure each model.
        runs: at most so many counted calls of each.

    Returns:
        a `Latency` for each; the interval is the 95 % order-statistic interval of the median.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model, fused=True))
        stack.enter_context(torch.no_grad())
        slowest = 0.0
        for model in models:
            warm = [_timed(call, model) for _ in range(3)]
            slowest = max(slowest, warm[-1])
        count = max(15, min(runs, int(seconds / max(slowest, 1e-6))))
        times: list[list[float]] = [[] for _ in models]
        for _ in range(count):
            for model, own in zip(models, times, strict=True):
                own.append(_timed(call, model))
    return [_latency(own, batch) for own in times]


def _timed(call: Callable[[nn.Module], Any], model: nn.Module) -> float:
    on_gpu = torch.cuda.is_available() and any(p.is_cuda for p in model.parameters())
    if on_gpu:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call(model)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _latency(times: Sequence[float], batch: int) -> Latency:
    ordered = sorted(times)
    n = len(ordered)
    low = _median_rank(n, 0.95)
    return Latency(
        median=statistics.median(ordered),
        low=ordered[low],
        high=ordered[n - 1 - low],
        level=0.95,
        runs=n,
        threads=torch.get_num_threads(),
        batch=batch,
    )


def _median_rank(n: int, level: float) -> int:
    """The largest rank r, from 0, with P(median in [x_r, x_(n−1−r)]) >= level; 0 if none has it.

    The median lies below x_r exactly if at most r of n values do: a binomial tail with p = 1/2.
    """
    tail, rank = 0, 0
    for r in range(n // 2):
        tail += math.comb(n, r)
        if 2 * tail > (1 - level) * 2**n:
            break
        rank = r
    return rank
