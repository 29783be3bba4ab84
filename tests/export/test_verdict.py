"""What timings say: nothing where nothing was gained."""

import numpy as np
import pytest

from prunus.cost import compared_times, interleaved, latency_of


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
