"""Measured time of calls, and what two measurements say of each other."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.ambient import plainly
from prunus.modes import evaluating, private

__all__ = [
    "Latency",
    "Speedup",
    "compared_times",
    "interleaved",
    "latency_of",
    "measure_latency",
    "speedup",
]

PLACEMENT = 0.02  # what two copies of one network may differ by, wherever they lie
LEAST = 1.05  # a smaller ratio is no claim: the machine's own drifts reach it


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
        verdict: "faster", "slower", or "no benefit" where the interval includes 1 or the ratio is
            less than 5 % from it.
    """

    ratio: float
    low: float
    high: float
    verdict: str

    @property
    def words(self) -> str:
        """The verdict as a sentence's end, with the ratio and its interval."""
        found = f"({self.ratio:.2f}×, {self.low:.2f} to {self.high:.2f})"
        if self.verdict == "no benefit":
            return f"not told apart from the dense network {found}"
        return f"{self.verdict} than the dense network {found}"


def speedup(before: Latency, after: Latency) -> Speedup:
    """How much faster `after` is, and whether that is more than noise."""
    low, high = before.low / after.high, before.high / after.low
    return _speedup(before.median / after.median, low, high)


def _speedup(ratio: float, low: float, high: float) -> Speedup:
    told = max(ratio, 1 / ratio) >= LEAST
    return Speedup(
        ratio=ratio,
        low=low,
        high=high,
        verdict="faster" if told and low > 1 else "slower" if told and high < 1 else "no benefit",
    )


@plainly
def measure_latency(
    models: Sequence[nn.Module],
    call: Callable[[nn.Module], Any],
    *,
    batch: int,
    seconds: float = 0.5,
    runs: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Time one call of each model, in turn, so that drifts of the machine hit all alike.

    Args:
        models: the networks; in evaluation mode while they are timed.
        call: runs one of them.
        batch: samples in one call.
        seconds: about how long to measure each model.
        runs: at most so many counted calls of each.
        clock: the seconds since some moment.

    Returns:
        a `Latency` for each; the interval is the 95 % order-statistic interval of the median.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(private(model)) for model in models]
        for model in models:
            stack.enter_context(evaluating(model, fused=True))
        stack.enter_context(torch.no_grad())
        times = interleaved(
            [functools.partial(_once, call, model) for model in models],
            seconds=seconds,
            runs=runs,
            clock=clock,
        )
    return [latency_of(own, batch, torch.get_num_threads()) for own in times]


def interleaved(
    calls: Sequence[Callable[[], Any]],
    *,
    seconds: float = 0.5,
    runs: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """The times of each call, made in turn, so that drifts of the machine hit all alike.

    Every other turn runs backwards: what a call leaves in the caches helps each of the others.

    Args:
        calls: what is timed; each returns when its work is done.
        seconds: about how long to time each.
        runs: at most so many counted calls of each, and 15 at least, after three that warm up.
        clock: the seconds since some moment.
    """
    slowest = 0.0
    for once in calls:
        warm = [_timed(once, clock) for _ in range(3)]
        slowest = max(slowest, warm[-1])
    count = max(15, min(runs, int(seconds / max(slowest, 1e-6))))
    times: list[list[float]] = [[] for _ in calls]
    pairs = list(zip(calls, times, strict=True))
    for turn in range(count):
        for once, own in pairs if turn % 2 == 0 else reversed(pairs):
            own.append(_timed(once, clock))
    return times


def compared_times(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, draws: int = 2000
) -> Speedup:
    """The ratio of the medians of two calls that were timed in turn, by a paired bootstrap.

    Turns are drawn with replacement, with a seed of their own: what slowed both calls of a turn
    slows both medians. That knows nothing of what stays the same from turn to turn: two copies of
    one network differ by up to 1.1 % here, by where they lie in memory, so the interval is made
    2 % wider on both sides.

    Args:
        before: seconds of the first call in each turn.
        after: seconds of the second one.
        level: confidence level of the interval.
        draws: of the bootstrap.
    """
    one, other = np.asarray(before), np.asarray(after)
    chosen = np.random.default_rng(0).integers(len(one), size=(draws, len(one)))
    ratios = np.median(one[chosen], axis=1) / np.median(other[chosen], axis=1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    ratio = float(np.median(one) / np.median(other))
    return _speedup(ratio, float(low) * (1 - PLACEMENT), float(high) * (1 + PLACEMENT))


def _once(call: Callable[[nn.Module], Any], model: nn.Module) -> None:
    on_gpu = torch.cuda.is_available() and any(p.is_cuda for p in model.parameters())
    if on_gpu:
        torch.cuda.synchronize()
    call(model)
    if on_gpu:
        torch.cuda.synchronize()


def _timed(once: Callable[[], Any], clock: Callable[[], float]) -> float:
    begun = clock()
    once()
    return clock() - begun


def latency_of(times: Sequence[float], batch: int, threads: int) -> Latency:
    """The median of the times of one call, with its 95 % order-statistic interval."""
    ordered = sorted(times)
    n = len(ordered)
    low = _median_rank(n, 0.95)
    return Latency(
        median=statistics.median(ordered),
        low=ordered[low],
        high=ordered[n - 1 - low],
        level=0.95,
        runs=n,
        threads=threads,
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
