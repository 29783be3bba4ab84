"""The k-th largest, and plans made of it, against sorting."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus import ranking
from prunus.allocation.growth import ranked_growth, short_of
from prunus.ranking import count_true, counted, kth_largest, marked_rows

LEVELS = [-float("inf"), -1.0, -0.0, 0.0, 0.5, 2.0, float("inf"), float("nan")]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=40), st.sampled_from(DTYPES))
def test_the_kth_largest_is_that_of_a_sort(values, dtype):
    given_ = torch.tensor(values, dtype=dtype)
    before = given_.clone()
    ordered = given_.sort(descending=True).values
    for k in range(1, len(values) + 1):
        found = kth_largest(given_, k)
        assert found.dtype == dtype
        assert found == ordered[k - 1] or bool(found.isnan() & ordered[k - 1].isnan())
    torch.testing.assert_close(given_, before, equal_nan=True)
    among = torch.arange(len(values)) % 3 > 0
    rest = given_[among].sort(descending=True).values
    for k in range(1, len(rest) + 1):
        found = kth_largest(given_, k, among)
        assert found == rest[k - 1] or bool(found.isnan() & rest[k - 1].isnan())


@pytest.mark.parametrize("kind", ["normal", "few levels", "sorted", "rare NaN", "misleading"])
def test_of_many_numbers_a_part_is_searched(kind, monkeypatch):
    monkeypatch.setattr(ranking, "MANY", 4000)
    monkeypatch.setattr(ranking, "LOOKED_AT", 100)
    values = torch.randn(20_001, generator=torch.Generator().manual_seed(0))
    if kind == "few levels":
        values = values.round()
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "rare NaN":
        values[::997] = float("nan")
    elif kind == "misleading":  # the sample sees none of what is large, and then nothing else
        values[:: len(values) // 100] -= 100
    ordered = values.sort(descending=True).values
    seen = []
    partition = np.partition
    monkeypatch.setattr(np, "partition", lambda a, k: (seen.append(len(a)), partition(a, k))[1])
    for k in (1, 2, 19, 2000, 9_999, 10_000, 10_001, 18_000, 20_000, 20_001):
        found = kth_largest(values, k)
        assert torch.equal(found, ordered[k - 1]) or bool(found.isnan() & ordered[k - 1].isnan())
    if kind == "normal":
        assert sum(seen) < 0.35 * len(values) * len(seen)  # a sample of 200 tells no better


def test_marks_are_counted_row_by_row():
    for rows, width in ((0, 7), (1, 7), (16, 7), (17, 7), (40, 7), (40, ranking.WIDE), (3, 0)):
        marked = torch.rand(rows, width, generator=torch.Generator().manual_seed(rows)) < 0.5
        assert counted(marked).tolist() == [sum(row) for row in marked.tolist()]
        assert counted(marked).dtype == torch.int64
        assert count_true(marked) == sum(counted(marked).tolist())
        assert count_true(marked.T) == count_true(marked)
        assert torch.equal(marked_rows(marked), marked.any(1))
        assert torch.equal(marked_rows(marked.T), marked.any(0))


def test_no_such_place():
    for k in (0, 4, -1):
        with pytest.raises(ValueError, match=r"^`k` must lie in \[1, 3\], got"):
            kth_largest(torch.ones(3), k)


def slow_plan(pools, minimum, k):
    """From the definition: the best of every pool first, then the best of all that are left."""
    units, first = [], []
    for i, (name, scores) in enumerate(pools.items()):
        for j, row in enumerate(scores.double().tolist()):
            row = [float("inf") if v != v else v for v in row]
            order = sorted(range(len(row)), key=lambda u: (-row[u], u))
            must = order[:minimum]
            for u, value in enumerate(row):
                (first if u in must else units).append((-value, i, j, u, name))
    chosen = [*sorted(first), *sorted(units)][:k]
    plan = {name: [0] * len(scores) for name, scores in pools.items()}
    for _, _, j, _, name in chosen:
        plan[name][j] += 1
    return plan, len(first)


NUMBERS = [v for v in LEVELS if v != float("inf")]  # NaN is level with it in the slow one


@given(st.data(), st.integers(0, 3))
def test_plans_are_those_of_the_definition(data, minimum):
    pools = {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))
        count = shape[0] * shape[1]
        values = data.draw(st.lists(st.sampled_from(NUMBERS), min_size=count, max_size=count))
        pools[name] = torch.tensor(values, dtype=data.draw(st.sampled_from(DTYPES))).view(shape)
    plan_at, low, high = ranked_growth(pools, minimum)
    assert high == sum(scores.numel() for scores in pools.values())
    for k in range(high + 1):
        expected, forced = slow_plan(pools, minimum, k)
        assert {name: counts.tolist() for name, counts in plan_at(k).items()} == expected
    assert low == forced


def test_a_short_pool_is_named_where_steps_add_one_unit_and_where_they_add_more():
    pools = {"a": torch.tensor([[5.0, 4.0, 3.0]]), "b": torch.tensor([[1.0, 0.5]])}
    kept = {"a": torch.tensor([2]), "b": torch.tensor([1])}
    assert short_of(kept, ranked_growth(pools, 0), pools, 1) == ("b",)

    def pairs(k):
        return {"a": torch.tensor([min(3, 2 * k)]), "b": torch.tensor([max(0, 2 * k - 3)])}

    assert short_of(kept, (pairs, 0, 2), pools, 1) == ()
    assert short_of({"a": torch.tensor([2]), "b": torch.tensor([0])}, (pairs, 0, 2), pools, 1) == (
        "b",
    )
