"""Statistics against their definitions, on inputs where a slip would show: ties, chains, seeds."""

import math
import random

import pytest
import torch
from scipy import stats

from prunus.bench import Record
from prunus.bench.statistics.fronts import pareto
from prunus.bench.statistics.intervals import (
    bootstrap_interval,
    holm,
    paired,
    sign_test,
    t_interval,
)
from prunus.bench.statistics.ranks import _cliques, _ranked
from prunus.bench.statistics.tables import tables
from prunus.means import highest, lowest, mean, median, standard_error
from prunus.report.charts import summarise
from prunus.report.curves import leaders
from prunus.report.grid import grid_page, pivot
from prunus.report.headline import standing
from prunus.rng import generator_for


@pytest.mark.parametrize("higher", [False, True])
def test_the_front_is_what_no_other_row_beats(higher):
    """By comparing all pairs, on small whole numbers, where most rows tie with another."""
    draw = random.Random(3)
    for _ in range(200):
        rows = [
            {"cost": draw.randint(0, 3), "value": draw.randint(0, 3)}
            for _ in range(draw.randint(1, 8))
        ]

        def beats(one, other):
            gain = one["value"] - other["value"] if higher else other["value"] - one["value"]
            saved = other["cost"] - one["cost"]
            return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)

        expected = [not any(beats(other, row) for other in rows) for row in rows]
        assert pareto(rows, "cost", "value", higher=higher) == expected, rows


def test_holm_is_the_least_level_at_which_each_is_rejected():
    """By running the step-down test itself at the level given and just below it."""

    def rejected(p, level):
        order, found = sorted(range(len(p)), key=p.__getitem__), set()
        for rank, i in enumerate(order):
            if p[i] * (len(p) - rank) > level:
                break
            found.add(i)
        return found

    draw = random.Random(4)
    for _ in range(50):
        p = [draw.choice([0.001, 0.01, 0.011, 0.2, draw.random()]) for _ in range(5)]
        for i, level in enumerate(holm(p)):
            assert level == 1.0 or i in rejected(p, level * (1 + 1e-12))
            assert i not in rejected(p, level * (1 - 1e-9))


def test_the_bootstrap_is_seeded_and_takes_both_tails_alike():
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    for seed in (0, 1):
        generator = generator_for(seed, "bootstrap")
        chosen = torch.randint(5, (400, 5), generator=generator)
        means = sorted(sum(values[i] for i in row) / 5 for row in chosen.tolist())
        for level in (0.8, 0.95):
            ends = [
                torch.tensor(means, dtype=torch.float64).quantile((1 + sign * level) / 2).item()
                for sign in (-1, 1)
            ]
            found = bootstrap_interval(values, level, draws=400, seed=seed)
            assert found == pytest.approx(ends, rel=1e-12)
    few = {seed: bootstrap_interval(values, draws=30, seed=seed) for seed in (0, 1)}
    assert few[0] != few[1]


def test_paired_is_the_one_sample_t_test():
    draw = random.Random(5)
    for n in (2, 3, 9):
        a = {s: draw.random() for s in range(n)}
        b = {s: draw.random() for s in range(1, n + 2)}
        gaps = [a[s] - b[s] for s in range(1, n)]
        found = paired(a, b, 0.9)
        assert found["seeds"] == n - 1
        if n - 1 < 2:
            assert (found["p"], found["low"]) == (1.0, None)
            continue
        test = stats.ttest_1samp(gaps, 0.0)
        assert found["p"] == pytest.approx(test.pvalue)
        assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.9)))
        assert t_interval(gaps, 0.9) == pytest.approx(tuple(test.confidence_interval(0.9)))


def test_alike_differences_get_the_sign_test():
    for n in (2, 5):
        found = paired(dict.fromkeys(range(n), 0.3), dict.fromkeys(range(n), 0.1))
        assert found["p"] == pytest.approx(2 * 0.5**n)  # all n signs alike, either way


def test_ties_share_the_mean_of_their_ranks():
    draw = random.Random(6)
    for _ in range(20):
        values = [float(draw.randint(0, 3)) for _ in range(6)]
        assert _ranked(values) == list(stats.rankdata(values))


def test_a_clique_is_as_wide_as_its_ends_allow():
    """Neighbours 0.6 apart and a reach of 1: no chain of three may pass for one clique."""
    rows = [{"recipe": name, "rank": 1 + 0.6 * i} for i, name in enumerate("abcd")]
    assert _cliques(rows, 1.0) == [["a", "b"], ["b", "c"], ["c", "d"]]
    assert _cliques(rows, 1.3) == [["a", "b", "c"], ["b", "c", "d"]]
    assert _cliques(rows, 0.6 - 1e-9) == []


@pytest.mark.parametrize("size", range(1, 12))
def test_the_sign_test_is_the_binomial_one(size):
    for up in range(size + 1):
        gaps = [math.inf] * up + [-1.0] * (size - up) + [0.0, math.nan]
        assert sign_test(gaps) == pytest.approx(stats.binomtest(up, size).pvalue)
    assert sign_test([0.0, math.nan]) == 1


COME_APART = [math.nan, math.inf]


@pytest.mark.parametrize("bad", COME_APART)
def test_networks_that_came_apart_are_the_worst_and_nothing_is_claimed_of_their_means(bad):
    """One NaN or infinity must neither stop the tables nor stand as the best."""
    scores = {"broken": [0.1, 0.2, bad, 0.15], "fair": [0.3, 0.4, 0.35, 0.5]}
    rows = [
        Record(
            id=f"{name}{seed}", task="t", recipe=name, recipe_repr=name, recipe_hash=name,
            seed=seed, density_asked=0.5, density=0.5, budget="Budget(density=0.5)",
            schedule="none", after={"test_loss": value}, before={"test_loss": 0.1},
            parameters=(1000, 500), extra={"baselines": {"random": f"fair{seed}"}},
        )
        for name, own in scores.items()
        for seed, value in enumerate(own)
    ]  # fmt: skip
    for interval in ("t", "bootstrap"):
        found = tables(rows, "test_loss", interval=interval)
        broken, fair = found.methods
        assert math.isnan(broken["mean"]) if math.isnan(bad) else broken["mean"] == bad
        assert broken["standard_error"] is broken["low"] is broken["high"] is None
        assert fair["low"] < fair["mean"] < fair["high"]
        assert (broken["front_parameters"], fair["front_parameters"]) == (False, True)
    (row,) = found.differences
    assert (row["p"], row["low"]) == (stats.binomtest(1, 4).pvalue, None)
    (null,) = (r for r in found.baselines if r["recipe"] == "broken")
    assert null["advantage"] == -math.inf
    assert not null["beats"]
    assert not null["beaten_by"]
    # Best in three of four seeds, worst in one: (1 + 1 + 2 + 1) / 4.
    assert {r["recipe"]: r["rank"] for r in found.ranks["recipes"]} == {
        "broken": 1.25, "fair": 1.75,
    }  # fmt: skip
    assert "fair" in pivot(found, "t", "none")[1]["recipe"]
    assert "**" not in str(pivot(found, "t", "none")[0])
    assert "**" in str(pivot(found, "t", "none")[1])
    assert "broken" in grid_page(found, title="t")


@pytest.mark.parametrize("bad", COME_APART)
@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("first", [True, False])
def test_a_recipe_that_came_apart_once_is_never_named_the_best(bad, metric, first):
    higher = metric == "accuracy"
    lost = -bad if higher else bad
    runs = {"broken": [lost, 2.0, 2.0], "fair": [1.0, 1.1, 1.2] if not higher else [3.0, 3.1, 3.2]}
    names = list(runs) if first else list(reversed(runs))
    rows = [
        {"recipe": name, "density": 0.5, "seed": seed, "score": value}
        for name in names
        for seed, value in enumerate(runs[name])
    ]
    found = standing(rows, higher=higher)
    assert (found.best, found.ties, found.untested) == ("fair", (), 0)
    shown = summarise(
        [{**r, "method": r["recipe"], "compensation": "none"} for r in rows],
        ["method", "compensation", "density"],
        "score",
    )
    assert leaders(shown, "density", higher=higher)[0] == "fair"
    alone = standing([r for r in rows if r["recipe"] == "broken"], higher=higher)
    assert alone.best == "broken"
    assert not math.isfinite(alone.mean)


def test_means_say_what_is_no_number():
    assert median([1.0, math.inf, 2.0]) == 2
    assert math.isnan(median([math.nan, 1.0, 2.0]))
    assert math.isnan(mean([math.inf, -math.inf]))
    assert mean([1.0, math.inf]) == math.inf
    assert math.isnan(lowest([1.0, math.nan]))
    assert math.isnan(highest([math.nan, 1.0]))
    assert standard_error([1.0]) is standard_error([1.0, math.nan]) is None
    assert standard_error([1.0, 2.0, 4.0]) == pytest.approx(stats.sem([1, 2, 4]))
