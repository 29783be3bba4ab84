"""The blocked sweep against the definition, and its counts."""

import numpy as np
import pytest
import torch

from prunus.compensation.least_squares import least_squares
from prunus.joint.sparsegpt import (
    SparseGPT,
    keep_in_blocks,
    keep_in_layer,
    keep_in_rows,
    sparsegpt,
)
from reference import obs as slow


def layer(seed=0, rows=10, n=48, samples=200):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)) + 1.0
    return torch.tensor(rng.normal(size=(rows, n))), torch.tensor(x.T @ x / samples)


@pytest.mark.parametrize(("block", "stride"), [(48, 48), (16, 4), (7, 1), (128, 12), (5, 5)])
def test_given_mask_equals_the_definition(block, stride):
    w, gram = layer()
    mask = torch.tensor(np.random.default_rng(1).random((10, 48)) < 0.4)
    found, new = sparsegpt(
        w, gram, lambda price, j: mask.T[j : j + len(price)], ridge=1e-2, block=block, stride=stride
    )
    assert torch.equal(found, mask)
    expected = slow.sweep(w.numpy(), gram.numpy(), mask.numpy(), 1e-2)
    torch.testing.assert_close(new, torch.tensor(expected), rtol=1e-9, atol=1e-10)


def test_prices_are_those_of_the_weights_at_the_slice_start():
    """N:M masks depend on the updates of earlier slices; the plain loop finds the same."""
    w, gram = layer(2)
    kept = torch.full((10, 12), 2)
    mask, new = sparsegpt(w, gram, keep_in_blocks(kept), block=16, stride=4)
    assert (mask.view(10, 12, 4).sum(2) == 2).all()
    damped = gram + 1e-2 * gram.diagonal().mean() * torch.eye(48)
    current, seen = w.clone(), torch.ones_like(mask)
    for start in range(0, 48, 4):
        price = torch.stack(
            [
                current[:, j].square() / torch.linalg.inv(damped[j:, j:])[0, 0]
                for j in range(start, start + 4)
            ]
        )
        seen[:, start : start + 4] = (price.argsort(0, descending=True).argsort(0) < 2).T
        frozen = seen.clone()
        frozen[:, start + 4 :] = True
        current = torch.tensor(slow.sweep(w.numpy(), gram.numpy(), frozen.numpy(), 1e-2))
    assert torch.equal(mask, seen)
    torch.testing.assert_close(new, current, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("block", [5, 16, 48])
def test_counts_are_exact(block):
    w, gram = layer(3)
    counts = torch.tensor([0, 1, 5, 17, 24, 30, 40, 47, 48, 3])
    mask, new = sparsegpt(w, gram, keep_in_rows(counts, w), block=block)
    assert torch.equal(mask.sum(1), counts)
    assert (new[~mask] == 0).all()
    mask, _ = sparsegpt(w, gram, keep_in_layer(133, w), block=block)
    assert int(mask.sum()) == 133


def test_least_squares_after_the_sweep_always_helps():
    w, gram = layer(4)
    mask, new = sparsegpt(w, gram, keep_in_rows(torch.full((10,), 24), w))
    rest = w - new
    swept = ((rest @ gram) * rest).sum(1)
    assert (least_squares(w, gram, mask).after <= swept * (1 + 1e-9)).all()
    bare = w.masked_fill(mask, 0)
    assert swept.sum() < ((bare @ gram) * bare).sum()


def test_dtype_and_inputs():
    w, gram = layer(5)
    w32, g0 = w.to(torch.float32), gram.clone()
    before = w32.clone()
    _, new = sparsegpt(w32, gram, keep_in_rows(torch.full((10,), 10), w))
    assert new.dtype == torch.float32
    assert torch.equal(w32, before)
    assert torch.equal(gram, g0)
    mask, new = sparsegpt(w, torch.zeros_like(gram), keep_in_layer(100, w))
    assert torch.equal(new, w * mask)


def test_bad_input():
    w, gram = layer(6)
    with pytest.raises(ValueError, match="`gram` is not positive definite with ridge 1e-02"):
        sparsegpt(w, gram - 0.5 * torch.diag(gram.diagonal()), keep_in_layer(9, w))
    with pytest.raises(ValueError, match="`gram` must be 48 x 48"):
        sparsegpt(w, gram[1:, 1:], keep_in_layer(9, w))
    with pytest.raises(ValueError, match="`ridge` must be a finite number > 0"):
        SparseGPT(ridge=0.0)
    with pytest.raises(ValueError, match="`block` must be a whole number >= 1"):
        SparseGPT(block=0)
