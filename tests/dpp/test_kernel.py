"""Kernels in closed form against distances between the items themselves."""

import math

import numpy as np
import pytest
import torch

from prunus.dpp import (
    diagnose,
    edge_gram,
    edge_kernel,
    gaussian_from_features,
    gaussian_kernel,
    kernel_entries,
    linear_from_features,
    linear_kernel,
    median_bandwidth,
    node_gram,
    node_kernel,
)
from reference import dpp as slow
from reference import fixture


def test_fixture_gram_and_kernel():
    x = fixture.inputs()
    gram = x.T @ x
    assert gram.diagonal().tolist() == [1015, 1199, 776, 1161, 706, 706, 706, 256]
    assert gram[0, [1, 2, 3, 4, 7]].tolist() == [355, 120, 635, 275, 10]
    assert np.linalg.matrix_rank(gram) == 7
    kernel = edge_kernel(gram, fixture.ROW, bandwidth=fixture.BETA, jitter=fixture.JITTER)
    for (i, j), value in {
        (0, 1): 0.009264179336, (0, 5): 0.003389408014, (5, 6): 0.853124318020,
        (2, 4): 0.664048559767, (3, 7): 0.001279993857,
    }.items():  # fmt: skip
        assert float(kernel[i, j]) == pytest.approx(value, abs=1e-11)
        assert float(kernel[j, i]) == float(kernel[i, j])
    assert kernel.diagonal().tolist() == [1.01] * 8
    direct = slow.gaussian_edges(x, fixture.ROW, fixture.BETA, fixture.JITTER)
    torch.testing.assert_close(kernel, torch.tensor(direct), rtol=1e-10, atol=0)


def test_mean_gram_takes_the_bandwidth_times_the_samples():
    x = fixture.inputs()
    sums = edge_kernel(x.T @ x, fixture.ROW, bandwidth=0.01)
    means = edge_kernel(x.T @ x / 64, fixture.ROW, bandwidth=0.01 * 64)
    torch.testing.assert_close(sums, means, rtol=1e-12, atol=0)


def test_edge_kernel_is_the_gaussian_of_the_edge_gram():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(300, 150)), rng.normal(size=150)
    gram = x.T @ x / 300
    for bandwidth in (0.3, "median"):
        torch.testing.assert_close(
            edge_kernel(gram, w, bandwidth=bandwidth),
            gaussian_kernel(edge_gram(gram, w), bandwidth=bandwidth),
            rtol=1e-11, atol=1e-14,
        )  # fmt: skip
    direct = slow.gaussian_edges(x / math.sqrt(300), w, 0.3, 0.01)
    torch.testing.assert_close(
        edge_kernel(gram, w, bandwidth=0.3), torch.tensor(direct), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("bandwidth", [50.0, "median", None])
def test_entries_on_demand_are_the_kernel(bandwidth):
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(300, 40)) * 1e3, rng.normal(size=40)
    gram, every = x.T @ x / 300, np.arange(40)
    block = kernel_entries(gram, w, bandwidth=bandwidth, jitter=0.01)(every, every)
    if bandwidth is None:
        expected = linear_kernel(edge_gram(gram, w), jitter=0.01)
    else:
        expected = edge_kernel(gram, w, bandwidth=bandwidth, jitter=0.01)
        assert (block.diagonal() == 1.01).all()
    torch.testing.assert_close(torch.tensor(block), expected, rtol=1e-9, atol=1e-12)


def test_node_kernel_with_and_without_bias():
    rng = np.random.default_rng(1)
    x, w, b = rng.normal(size=(200, 9)) + 1, rng.normal(size=(6, 9)), rng.normal(size=6)
    for bias in (None, b):
        z = x @ w.T + (0 if bias is None else bias)
        gram = node_gram(x.T @ x / 200, w, mean=x.mean(0), bias=bias)
        torch.testing.assert_close(gram, torch.tensor(z.T @ z / 200), rtol=1e-10, atol=1e-10)
        d = ((z[:, :, None] - z[:, None]) ** 2).mean(0)
        expected = np.exp(-0.1 * d) + 0.01 * np.eye(6)
        kernel = node_kernel(x.T @ x / 200, w, mean=x.mean(0), bias=bias, bandwidth=0.1)
        torch.testing.assert_close(kernel, torch.tensor(expected), rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="A bias needs `mean`, got None"):
        node_gram(x.T @ x / 200, w, bias=b)


def test_median_bandwidth():
    x = np.random.default_rng(2).normal(size=(50, 11))
    d = ((x[:, :, None] - x[:, None]) ** 2).sum(0)
    expected = 1 / np.median(d[~np.eye(11, dtype=bool)])
    assert median_bandwidth(x.T @ x) == pytest.approx(expected, rel=1e-12)
    mostly_zero = x.copy()
    mostly_zero[:, 2:] = 0
    d = ((mostly_zero[:, :, None] - mostly_zero[:, None]) ** 2).sum(0)
    mean = d.sum() / (11 * 10)
    assert median_bandwidth(mostly_zero.T @ mostly_zero) == pytest.approx(1 / mean, rel=1e-12)
    assert median_bandwidth(np.zeros((5, 5))) == 1.0


def test_from_features():
    b = np.random.default_rng(3).normal(size=(12, 4)) + 1e4  # far from the origin
    d = ((b[:, None] - b) ** 2).sum(-1)
    torch.testing.assert_close(
        gaussian_from_features(b, bandwidth=0.2),
        torch.tensor(np.exp(-0.2 * d) + 0.01 * np.eye(12)), rtol=1e-9, atol=0,
    )  # fmt: skip
    torch.testing.assert_close(linear_from_features(b), torch.tensor(b @ b.T))
    torch.testing.assert_close(
        linear_kernel(b @ b.T, jitter=2.0).diagonal(), torch.tensor((b * b).sum(1) + 2)
    )


def test_zero_row_coincides_everywhere():
    kernel = edge_kernel(np.eye(5), np.zeros(5), bandwidth=3.0)
    torch.testing.assert_close(kernel, torch.ones(5, 5, dtype=torch.float64) + 0.01 * torch.eye(5))


def test_diagnoses():
    assert diagnose(gaussian_kernel(np.eye(4), bandwidth=0.3)).notes == ()
    far = diagnose(gaussian_kernel(np.eye(4), bandwidth=10.0))
    assert far.offdiag_max == pytest.approx(math.exp(-20))
    assert far.kinds == ("diagonal",)
    assert "kernel is diagonal" in far.notes[0]
    near = diagnose(gaussian_kernel(np.eye(4), bandwidth=1e-3))
    assert near.offdiag_mean == pytest.approx(math.exp(-2e-3))
    assert "close to rank one" in near.notes[0]


def test_bad_input():
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`bandwidth` must be a finite number > 0"):
            gaussian_kernel(np.eye(3), bandwidth=bad)
    with pytest.raises(ValueError, match="Unknown bandwidth 'mean'"):
        gaussian_kernel(np.eye(3), bandwidth="mean")
    with pytest.raises(ValueError, match="`jitter` must be a finite number >= 0"):
        gaussian_kernel(np.eye(3), jitter=-0.1)
    with pytest.raises(ValueError, match=r"`gram` must be square, got shape \(3, 2\)"):
        gaussian_kernel(np.ones((3, 2)))
    with pytest.raises(ValueError, match="`row` must have the 3 entries of `gram`, got 2"):
        edge_kernel(np.eye(3), np.ones(2))
    with pytest.raises(TypeError, match="`gram` must be real"):
        gaussian_kernel(np.eye(3, dtype=complex))


def test_inputs_are_untouched():
    gram = torch.eye(4, dtype=torch.float64)
    linear_kernel(gram, jitter=1.0)
    edge_kernel(gram, torch.ones(4))
    assert torch.equal(gram, torch.eye(4, dtype=torch.float64))
