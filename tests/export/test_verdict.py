"""What timings say: nothing where nothing was gained. What a difference of outputs says."""

import math

import numpy as np
import pytest
import torch

from prunus.cost import compared_times, interleaved, latency_of
from prunus.export.check import ExportError, compared


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, "no benefit"), (0.7, "faster"), (1.4, "slower")]
)
def test_the_verdict_follows_the_interval(share, verdict):
    noise = np.random.default_rng(3)
    drift = 1 + 0.5 * np.sin(np.arange(80) / 9)  # the machine slows down and recovers
    before = drift * noise.lognormal(0, 0.1, 80)
    after = share * drift * noise.lognormal(0, 0.1, 80)
    found = compared_times(list(before), list(after))
    assert found.verdict == verdict
    assert found.low <= found.ratio <= found.high
    assert found.ratio == np.median(before) / np.median(after)


def test_intervals_cover():
    """Of 200 pairs without a difference about 5 % may claim one; 20 of 200 has probability 1e-3."""
    noise = np.random.default_rng(5)
    claims = sum(
        compared_times(list(noise.lognormal(0, 0.2, 31)), list(noise.lognormal(0, 0.2, 31))).verdict
        != "no benefit"
        for _ in range(200)
    )
    assert claims <= 20


def test_calls_are_timed_in_turn():
    now, order = [0.0], []

    def tick(name, seconds):
        def once():
            order.append(name)
            now[0] += seconds

        return once

    before, after = interleaved(
        [tick("a", 0.02), tick("b", 0.01)], seconds=0.4, clock=lambda: now[0]
    )
    assert len(before) == len(after) == 20
    assert order[6:] == ["a", "b", "b", "a"] * 10
    found = latency_of(before, 4, 2)
    assert (found.median, found.batch, found.threads) == (pytest.approx(0.02), 4, 2)


def check(expected, got, limit=0.25):
    outputs = [[torch.tensor(line) for line in lines] for lines in (expected, got)]
    return compared(*outputs, engine="torch", batch=torch.ones(2, 3), limit=limit)


def test_outputs_differ_by_a_share_of_the_largest():
    """The worst output counts; equal to the limit is within it; where all is zero, the number."""
    found = check([[-4.0, 1.0], [2.0]], [[-4.0, 2.0], [2.25]])
    assert (found.error, found.limit, found.inputs) == (0.25, 0.25, {"input": (2, 3)})
    assert check([[0.0], []], [[0.25], []]).error == 0.25
    assert check([[8.0]], [[8.0]], limit=0.0).error == 0
    others = [([4.0], [5.5]), ([0.0], [0.5])]
    for odd in (math.nan, math.inf, -math.inf):
        assert check([[odd, 4.0]], [[odd, 5.0]]).error == 0.25
        others += [([1.0], [odd]), ([odd], [1.0]), ([odd, 4.0], [odd, 5.5])]
    for expected, got in (*others, ([math.inf], [-math.inf])):
        with pytest.raises(ExportError, match="not equal to the network in torch on input 2×3"):
            check([[1.0], expected], [[1.0], got])
    for got in ([[1.0]], [[1.0, 2.0], [1.0]], [[1.0], [1.0], [1.0]]):
        with pytest.raises(ExportError, match=r"instead of \[\(1,\), \(1,\)\]"):
            check([[1.0], [1.0]], got)
