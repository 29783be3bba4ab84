"""The built network is the target's up to its bound; assignment and feedback pay."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prunus.theory.subset_sum import (
    construct,
    items_needed,
    network_items_needed,
    weight_precision,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(sizes: tuple[int, ...], seed: int = 1) -> list[Tensor]:
    """Weights of spectral norm 1."""
    g = generator(seed)
    pairs = pairwise(sizes)
    drawn = [torch.randn(b, a, dtype=torch.float64, generator=g) for a, b in pairs]
    return [w / torch.linalg.matrix_norm(w, 2) for w in drawn]


def answer(weights: list[Tensor], x: Tensor, biases: list[Tensor] | None = None) -> Tensor:
    for i, w in enumerate(weights):
        x = x @ w.T + (0 if biases is None else biases[i])
        x = x.relu() if i < len(weights) - 1 else x
    return x


def ball(count: int, inputs: int, radius: float = 1.0) -> Tensor:
    x = torch.randn(count, inputs, dtype=torch.float64, generator=generator(9))
    return radius * x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_the_masked_random_network_is_the_two_halves(assign, nonnegative):
    weights = chain((5, 7, 3))
    biases = [torch.randn(7).double(), torch.randn(3).double()]
    made = construct(
        weights, 6, generator=generator(), biases=biases, nonnegative=nonnegative, assign=assign
    )
    x = ball(200, 5).abs() if nonnegative else ball(200, 5)
    z = x
    for i, block in enumerate(made.blocks):
        z = z.relu() @ block.positive.T - (-z).relu() @ block.negative.T + biases[i]
        z = z.relu() if i == 0 else z
    with torch.no_grad():
        torch.testing.assert_close(made.network()(x), z, atol=1e-12, rtol=0)
    if nonnegative:
        torch.testing.assert_close(answer(list(made.effective()), x, biases), z, atol=1e-12, rtol=0)
    for block in made.blocks:
        assert bool((block.hidden_mask.sum(1) <= 1).all())
        assert bool((block.hidden.abs() <= 1).all())
        assert not bool((block.output_mask & ~block.hidden_mask.any(1)).any())
        assert block.hidden.shape[0] == 6 * block.hidden.shape[1] * (1 if block.nonnegative else 2)


@pytest.mark.parametrize("seed", range(20))
def test_no_point_of_the_ball_exceeds_the_bound(seed):
    weights = chain((6, 8, 8, 4), seed)
    biases = None if seed % 2 else [0.1 * torch.ones(len(w)).double() for w in weights]
    n, radius = (4, 8, 12)[seed % 3], (1.0, 3.0)[seed % 2]
    made = construct(weights, n, generator=generator(seed), biases=biases, assign=seed % 4 > 0)
    x = ball(10_000, 6, radius)
    with torch.no_grad():
        gap = (made.network()(x) - answer(weights, x, biases)).norm(dim=1).max()
    assert 0 < float(gap) <= made.error_bound(radius)


def test_the_bound_is_attained_by_one_layer():
    """For one layer and inputs ≥ 0 the bound is ‖W₊ − W‖ r, met by the first singular vector."""
    weight = torch.diag(torch.tensor([0.4, 0.1])).double()
    made = construct([weight], 5, generator=generator(), nonnegative=True)
    gap = made.blocks[0].positive - weight
    x = torch.linalg.svd(gap).Vh[0] * 2.0
    if bool((x <= 0).all()):
        x = -x
    assert float((gap @ x).norm()) == pytest.approx(made.error_bound(2.0), rel=1e-12)


def test_a_tied_unit_serves_its_input_by_the_sign_of_its_weight():
    """As published: unit h of input h mod in; a negative weight serves where inputs are signed."""
    for block in construct(chain((5, 7, 3)), 6, generator=generator(), assign=False).blocks:
        width, inputs = block.hidden.shape
        tied = torch.eye(inputs, dtype=torch.bool).repeat(width // inputs, 1)
        usable = block.hidden > 0 if block.nonnegative else block.hidden != 0
        assert torch.equal(block.hidden_mask, tied & usable)


def test_assigned_units_serve_better_than_tied_ones():
    weights = chain((6, 8, 8, 4))
    tied, assigned = (
        [
            max(b.error for b in construct(weights, n, generator=generator(s), assign=a).blocks)
            for n in (12,)
            for s in range(7)
        ]
        for a in (False, True)
    )
    # A single draw may be unlucky: all units of one slot small.
    assert sorted(assigned)[3] < 0.3 * sorted(tied)[3]


def test_feedback_lowers_the_error_of_the_outputs():
    g = generator(3)
    x = torch.rand(400, 12, generator=g).double() @ torch.rand(12, 12, generator=g).double()
    weight, gram = torch.randn(10, 12, generator=g).double(), x.T @ x / 400
    errors = []
    for given in (None, [gram]):
        total = 0.0
        for seed in range(5):
            made = construct([weight], 5, generator=generator(seed), gram=given, nonnegative=True)
            gap = made.blocks[0].positive - weight
            total += float(torch.einsum("ij,jk,ik->", gap, gram, gap))
        errors.append(total)
    assert errors[1] < 0.6 * errors[0]


def test_wide_layers_are_assigned_greedily(monkeypatch):
    weights = chain((10, 9))
    best = construct(weights, 6, generator=generator())
    monkeypatch.setattr("prunus.theory.subset_sum.construction.ASSIGNED_EXACTLY", 10)
    greedy = construct(weights, 6, generator=generator())
    for made in (best, greedy):
        (block,) = made.blocks
        column = block.hidden_mask.to(torch.int64).argmax(1)
        sign = block.hidden.gather(1, column[:, None])[:, 0] < 0
        used = block.hidden_mask.any(1)
        counts = torch.bincount((column + 10 * sign)[used], minlength=20)
        assert int(counts.max()) <= 6
    used = greedy.blocks[0].hidden_mask
    profit = [
        float((m.blocks[0].hidden * m.blocks[0].hidden_mask).abs().sum()) for m in (best, greedy)
    ]
    assert 0.9 * profit[0] < profit[1] <= profit[0]
    assert int(used.any(1).sum()) > 0.9 * len(used)


def test_zero_weights_and_same_seed():
    made = construct([torch.zeros(2, 3)], 4, generator=generator())
    assert not bool(made.blocks[0].output_mask.any())
    assert made.error_bound() == 0
    assert made.kept == 0
    with torch.no_grad():
        assert not bool(made.network()(torch.randn(5, 3).double()).any())
    first, second = (construct(chain((4, 3)), 5, generator=generator(7)) for _ in range(2))
    assert torch.equal(first.blocks[0].output_mask, second.blocks[0].output_mask)
    assert torch.equal(first.blocks[0].hidden, second.blocks[0].hidden)


def test_a_priori_counts():
    shapes = [(8, 6), (8, 8), (4, 8)]
    eps = 0.5
    fine = weight_precision(eps, shapes)
    assert fine == pytest.approx(eps / (6 * math.sqrt(2 * 48)))
    n = network_items_needed(eps, 0.1, shapes)
    weights = chain((6, 8, 8, 4))
    for seed in range(3):
        made = construct(weights, n, generator=generator(seed))
        assert max(b.error for b in made.blocks) <= fine
        assert made.error_bound(1.0) <= eps


def test_the_union_is_over_every_problem_that_is_solved():
    """A signed first layer is built twice, for the two halves of its inputs."""
    shapes, eps = [(8, 6), (8, 8), (4, 8)], 0.5
    deltas = [0.01 * 1.2**i for i in range(20)]
    for signed, problems in ((True, 2 * 48 + 64 + 32), (False, 48 + 64 + 32)):
        fine = weight_precision(eps, shapes, signed=signed)
        found = [network_items_needed(eps, d, shapes, signed=signed) for d in deltas]
        assert found == [items_needed(fine / 2, d, problems, "product") for d in deltas]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, r"`n` must be a whole number in \[1, 34\], got 0"),
        ({"n": 35}, r"`n` must be a whole number in \[1, 34\], got 35"),
        ({"weights": []}, "must hold at least one matrix"),
        ({"weights": [torch.ones(2, 3), torch.ones(2, 3)]}, "`weights` must chain"),
        ({"weights": [torch.full((2, 3), math.nan)]}, r"`weights\[0\]` must be finite"),
        ({"weights": [torch.ones(2, 3, 3, 3)]}, "Convolutions are not built"),
        ({"biases": [torch.ones(5)]}, r"`biases\[0\]` must have 2 entries"),
        ({"gram": [torch.eye(3)]}, r"shape \(6, 6\), that of the layer's slots relu\(x\) and"),
        ({"gram": []}, "`gram` must have 1 entries"),
        (
            {"gram": [torch.eye(3) - 0.1], "nonnegative": True},
            r"`gram\[0\]` must be the second moment of inputs ≥ 0.*got the entry -0\.1",
        ),
        ({"gram": [-torch.eye(6)]}, "got a matrix that is not positive definite"),
    ],
)
def test_bad_input(change, message):
    given = {"weights": [torch.ones(2, 3)], "n": 4, **change}
    with pytest.raises(ValueError, match=message):
        construct(given.pop("weights"), given.pop("n"), generator=generator(), **given)
