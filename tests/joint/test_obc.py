"""N:M and block eliminations against full inverses recomputed at every removal."""

import math

import numpy as np
import pytest
import torch

from prunus.joint.obc import obc_block_masks, obc_pattern_masks


def layer(seed=0, rows=3, n=24, samples=100):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)) + 1.0
    return torch.tensor(rng.normal(size=(rows, n))), torch.tensor(x.T @ x / samples)


def removal(w, damped, alive, gone):
    """The loss of removing `gone` of the weights `alive`, and the weights after it."""
    inverse = np.linalg.inv(damped[np.ix_(alive, alive)])
    at = [alive.index(i) for i in gone]
    block = inverse[np.ix_(at, at)]
    step = np.linalg.solve(block, w[gone])
    new = w.copy()
    new[alive] -= inverse[:, at] @ step
    new[gone] = 0.0
    return float(w[gone] @ step), new


@pytest.mark.parametrize(("n_kept", "m"), [(2, 4), (1, 3), (3, 8)])
def test_pattern_equals_the_definition(n_kept, m):
    w, gram = layer()
    damped = gram.numpy() + 1e-3 * float(gram.diagonal().mean()) * np.eye(24)
    kept = torch.full((3, 24 // m), n_kept)
    masks = obc_pattern_masks(w, gram, kept, ridge=1e-3)
    assert (masks.view(3, -1, m).sum(2) == n_kept).all()
    for h in range(3):
        row, alive = w[h].numpy().copy(), list(range(24))
        while len(alive) > n_kept * 24 // m:
            open_ = [i for i in alive if sum(j // m == i // m for j in alive) > n_kept]
            best = min(open_, key=lambda i: removal(row, damped, alive, [i])[0])
            _, row = removal(row, damped, alive, [best])
            alive.remove(best)
        assert masks[h].nonzero().flatten().tolist() == alive


def test_uneven_counts():
    w, gram = layer(1)
    kept = torch.tensor([[0, 1, 2, 3, 4, 2], [4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1]])
    masks = obc_pattern_masks(w, gram, kept)
    assert torch.equal(masks.view(3, 6, 4).sum(2), kept)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_blocks_equal_the_definition(size):
    w, gram = layer(2)
    damped = gram.numpy() + 1e-4 * float(gram.diagonal().mean()) * np.eye(24)
    goal = 24 // size // 2
    masks = obc_block_masks(w, gram, torch.full((3,), goal), size=size)
    for h in range(3):
        row, runs, alive = w[h].numpy().copy(), list(range(24 // size)), list(range(24))
        while len(runs) > goal:
            parts = {r: list(range(r * size, (r + 1) * size)) for r in runs}
            best = min(runs, key=lambda r: removal(row, damped, alive, parts[r])[0])
            _, row = removal(row, damped, alive, parts[best])
            runs.remove(best)
            alive = [i for i in alive if i not in parts[best]]
        assert masks[h].nonzero().flatten().tolist() == alive
    with pytest.raises(ValueError, match="`size` must divide the 24 inputs, got 5"):
        obc_block_masks(w, gram, torch.full((3,), goal), size=5)


def test_nothing_everything_and_dead_inputs():
    w, gram = layer(3)
    gram[8:12], gram[:, 8:12] = 0.0, 0.0  # one whole run is always zero
    for kept, share in ((0, 0), (4, 24)):
        masks = obc_pattern_masks(w, gram, torch.full((3, 6), kept))
        assert masks.sum(1).tolist() == [share] * 3
        masks = obc_block_masks(w, gram, torch.full((3,), 6 * kept // 4), size=4)
        assert masks.sum(1).tolist() == [share] * 3
    # a run of dead inputs costs nothing and goes first
    masks = obc_block_masks(w, gram, torch.full((3,), 5), size=4)
    assert not masks[:, 8:12].any()
    assert masks.sum(1).tolist() == [20] * 3
    # in a 2:4 run with one dead input, that input is never kept
    gram = layer(3)[1]
    gram[5], gram[:, 5] = 0.0, 0.0
    assert not obc_pattern_masks(w, gram, torch.full((3, 6), 2))[:, 5].any()


def test_bad_input():
    w, gram = layer(4)
    broken = w.clone()
    broken[1, 2] = math.nan
    pairs, runs = torch.full((3, 6), 2), torch.full((3,), 3)
    with pytest.raises(ValueError, match=r"`weight` must be finite, got nan at index \[1, 2\]"):
        obc_pattern_masks(broken, gram, pairs)
    with pytest.raises(ValueError, match=r"`weight` must be finite, got nan at index \[1, 2\]"):
        obc_block_masks(broken, gram, runs, size=4)
    for shape in ((2, 6), (3, 5), (3, 0), (3,)):
        with pytest.raises(ValueError, match="`kept` must hold a count for each run"):
            obc_pattern_masks(w, gram, torch.ones(shape, dtype=torch.int64))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=r"`kept` must lie in \[0, 4\], got values from"):
            obc_pattern_masks(w, gram, torch.full((3, 6), bad))
    with pytest.raises(ValueError, match=r"one count of runs for each of the 3 rows, got .*\(2,\)"):
        obc_block_masks(w, gram, runs[:2], size=4)
    with pytest.raises(ValueError, match=r"`kept` must lie in \[0, 6\], got values from 7 to 7"):
        obc_block_masks(w, gram, torch.full((3,), 7), size=4)
    for call in (
        lambda: obc_pattern_masks(w, gram[:20, :20], pairs),
        lambda: obc_block_masks(w, gram[:20, :20], runs, size=4),
    ):
        with pytest.raises(ValueError, match=r"`gram` must be 24 x 24.*got \(20, 20\)"):
            call()
