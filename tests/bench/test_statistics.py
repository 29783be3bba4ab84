"""Statistics of records: worked by hand, false alarms on null records, power on planted effects."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from prunus.bench import Record, content_id
from prunus.bench.statistics.intervals import bootstrap_interval, holm, paired, t_interval
from prunus.bench.statistics.paired import (
    against_baselines,
    differences,
    group_rows,
    higher_is_better,
    pareto,
    ranks,
    score,
    shrinkbench,
)
from prunus.bench.statistics.tables import tables
from prunus.rng import generator_for


def record(recipe, seed, value, *, density=0.5, task="t", schedule="none", **rest) -> Record:
    name = content_id(recipe=recipe, seed=seed, density=density, task=task, schedule=schedule)
    given = {
        "id": name, "task": task, "recipe": recipe, "recipe_repr": recipe, "recipe_hash": recipe,
        "seed": seed, "density_asked": density, "density": density, "schedule": schedule,
        "budget": f"Budget(density={density})", "after": {"test_error": value},
        "before": {"test_error": 0.01}, "parameters": (1000, round(1000 * density)),
    }  # fmt: skip
    return Record(**{**given, **rest})


def test_intervals_by_hand():
    # mean 2, s = 1, n = 3; t of 2 degrees of freedom at 0.975 is 4.302653
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3)),
        pytest.approx(2 + 4.302653 / math.sqrt(3)),
    )
    assert t_interval([1.0]) is None
    assert bootstrap_interval([1.0]) is None
    # Means of n draws have variance Σ(x − x̄)²/n² = 0.5 for 1, 2, 3, 4 ... by hand: 1.25 / 4.
    values = [1.0, 2.0, 3.0, 4.0] * 25
    low, high = bootstrap_interval(values)
    reach = 1.959964 * math.sqrt(1.25 / 100)
    assert low == pytest.approx(2.5 - reach, abs=0.02)  # 10 000 draws: ends known to about 0.005
    assert high == pytest.approx(2.5 + reach, abs=0.02)
    assert bootstrap_interval(values) == (low, high)


def test_groups_by_hand():
    rows = group_rows(
        [record("a", s, v, parameters=(1000, 250)) for s, v in enumerate([0.1, 0.2, 0.6])]
        + [replace(record("a", 3, 9.0), status="failed")],
        "test_error",
    )
    assert len(rows) == 1
    row = rows[0]
    assert (row["seeds"], row["recipe"], row["density"]) == (3, "a", 0.5)
    assert row["mean"] == pytest.approx(0.3)
    assert row["median"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(math.sqrt(0.07) / math.sqrt(3))
    assert row["interval"] == "t 95%"
    assert row["compression"] == pytest.approx(4.0)
    assert row["dense"] == pytest.approx(0.01)
    single = group_rows([record("a", 0, 0.1)], "test_error")[0]
    assert (single["standard_error"], single["low"], single["interval"]) == (None, None, "")


def test_order_of_files_does_not_matter():
    records = [record(r, s, s / 7, density=d) for r in "ab" for s in range(4) for d in (0.5, 0.1)]
    assert group_rows(records, "test_error") == group_rows(records[::-1], "test_error")
    assert differences(records, "test_error") == differences(records[::-1], "test_error")
    assert [r["density"] for r in group_rows(records, "test_error")] == [0.5, 0.5, 0.1, 0.1]


def test_stages():
    one = record("a", 0, 0.3, retrained={"test_error": 0.2})
    assert [score(one, "test_error", s) for s in ("before", "after", "final")] == [0.01, 0.3, 0.2]
    assert score(record("a", 0, 0.3), "test_error") == 0.3
    assert score(one, "accuracy") is None
    assert higher_is_better("top2_accuracy")
    assert not higher_is_better("cross_entropy")
    assert not higher_is_better("perplexity")
    with pytest.raises(ValueError, match="Is a higher 'magic' better"):
        higher_is_better("magic")


def test_paired_by_hand():
    # Differences 1, 2, 3 over the shared seeds: t = 2 √3, two-sided p = 0.0741799
    found = paired({0: 2.0, 1: 4.0, 2: 6.0, 9: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 7.0})
    assert found["seeds"] == 3
    assert found["mean"] == pytest.approx(2.0)
    assert found["p"] == pytest.approx(0.0741799, abs=1e-7)
    assert found["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3))
    assert paired({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})["p"] == 1.0
    # all alike, up to the arithmetic: a sign test over five seeds, 2 · 2⁻⁵
    alike = paired({s: 0.1 * s + 0.3 for s in range(5)}, {s: 0.1 * s for s in range(5)})
    assert (alike["p"], alike["low"]) == (0.0625, None)
    assert alike["mean"] == pytest.approx(0.3)
    assert paired({0: 2.0}, {0: 1.0}) == {
        "seeds": 1, "mean": 1.0, "low": None, "high": None, "p": 1.0,
    }  # fmt: skip
    assert paired({0: 2.0}, {1: 1.0})["mean"] is None


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.03 0.04 times 4 3 2 1 is 0.04 0.06 0.06 0.04, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    stepped = holm([0.01, 0.04, 0.03, 0.005])  # at 0.05 stops at the third, though 0.04 ≤ 0.05
    assert [p <= 0.05 for p in stepped] == [True, False, False, True]


def test_pareto_by_hand():
    points = [(1, 5), (2, 3), (3, 4), (4, 1), (2, 3), (4, 2), (None, 0)]
    rows = [{"cost": c, "value": v} for c, v in points]
    expected = [True, True, False, True, True, False, False]
    assert pareto(rows, "cost", "value", higher=False) == expected
    assert pareto(rows, "cost", "value", higher=True) == [True, *[False] * 6]


def test_ranks_by_hand():
    values = {"a": [1, 1, 1], "b": [2, 2, 3], "c": [3, 2, 2]}
    records = [record(n, s, v) for n, own in values.items() for s, v in enumerate(own)]
    found = ranks(records, "test_error")
    # Ranks: seed 0: 1 2 3, seed 1: 1 2.5 2.5, seed 2: 1 3 2
    assert [(r["recipe"], r["rank"]) for r in found["recipes"]] == [
        ("a", 1.0), ("b", 2.5), ("c", 2.5),
    ]  # fmt: skip
    assert found["blocks"] == 3
    # Demšar (2006), table 5: q for three classifiers at 0.05 is 2.343
    assert found["critical_difference"] == pytest.approx(
        2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=1e-3
    )
    assert found["cliques"] == [["a", "b", "c"]]
    many = [record(n, s, v) for n, v in (("a", 1), ("b", 2), ("c", 3)) for s in range(30)]
    assert ranks(many, "test_error")["cliques"] == []
    assert ranks([], "test_error")["recipes"] == []


def test_shrinkbench_by_hand():
    records = [record("a", 0, v, density=d) for d, v in ((0.5, 1.0), (0.125, 3.0), (0.05, 7.0))]
    found = shrinkbench(group_rows(records, "test_error"))
    assert [(r["compression"], r["how"]) for r in found] == [
        (2, "measured"), (4, "interpolated"), (8, "measured"), (16, "interpolated"),
    ]  # fmt: skip
    assert found[1]["mean"] == pytest.approx(2.0)  # half way in the logarithm
    assert found[3]["mean"] == pytest.approx(3 + 4 * math.log(2) / math.log(2.5))


METHODS, DENSITIES, SEEDS = ("a", "b", "c", "d"), (0.5, 0.2, 0.1), 5
BASELINES = ("random", "small-dense")


def normal(draw: torch.Generator) -> float:
    return float(torch.randn((), generator=draw))


def binomial(draw: torch.Generator) -> float:
    """Errors among 450 test images, in units of their standard deviation."""
    hits = int((torch.rand(450, generator=draw) < 0.05).sum())
    return hits / (450 * 0.05 * 0.95) ** 0.5


def student(draw: torch.Generator) -> float:
    """Student's law with three degrees of freedom: heavy tails."""
    chi = float(torch.randn(3, generator=draw).square().sum())
    return normal(draw) / (chi / 3) ** 0.5


def record_set(
    draw: torch.Generator, effect: float = 0.0, law: Callable[[torch.Generator], float] = normal
) -> list[Record]:
    """Methods and baselines alike up to noise that seeds share in part; `a` better by `effect`."""
    rows = []
    for density in DENSITIES:
        shared = torch.randn(SEEDS, generator=draw)
        for seed in range(SEEDS):
            nulls = {}
            for name in BASELINES:
                value = float(shared[seed]) + law(draw)
                rows.append(record(name, seed, value, density=density))
                nulls[name] = rows[-1].id
            for name in METHODS:
                value = float(shared[seed]) + law(draw)
                value -= effect if name == "a" else 0.0
                extra = {"baselines": nulls}
                rows.append(record(name, seed, value, density=density, extra=extra))
    return rows


def claims(records: list[Record]) -> tuple[bool, bool, bool]:
    """Whether a page of these records claims anything, and whether it would uncorrected, or with
    all of α for each of its two families."""
    found = tables(records, "test_error")
    claimed = any(r["beats"] or r["beaten_by"] for r in found.baselines)
    claimed = claimed or any(r["differs"] for r in found.differences)
    pairs = [*found.baselines, *found.differences]
    return claimed, any(r["p"] <= 0.05 for r in pairs), any(r["p_holm"] <= 0.05 for r in pairs)


def test_null_records_raise_few_alarms():
    draw = generator_for(0, "null records")
    sets = 100
    found = [claims(record_set(draw)) for _ in range(sets)]
    claimed, raw, twice = (sum(column) for column in zip(*found, strict=True))
    print(f"{sets} null record sets: {claimed} claim something, {raw} uncorrected, {twice} twice α")
    # At a true rate of 5 %, 15 or more of 100 come up with probability 1e-4.
    assert claimed < 15
    assert raw > 0.5 * sets  # the negative control: without the correction most sets err


@pytest.mark.slow
@pytest.mark.parametrize("law", [normal, binomial, student])
def test_many_null_records_raise_few_alarms(law):
    """The rates that the docs quote: everything that a page claims, both families together."""
    draw = generator_for(3, f"many null records {law.__name__}")
    sets = 2000
    found = [claims(record_set(draw, law=law)) for _ in range(sets)]
    claimed, raw, twice = (sum(column) / sets for column in zip(*found, strict=True))
    print(f"{law.__name__}: {claimed:.2%} claim, {twice:.2%} twice α, {raw:.0%} uncorrected")
    # At a true rate of 5 %, 137 or more of 2000 come up with probability 1e-4.
    assert claimed < 137 / sets
    assert raw > 0.5


def test_few_test_samples_raise_few_alarms():
    """Errors of 450 test images, three seeds: equal differences are common and prove nothing."""
    draw = generator_for(2, "rounded null records")
    sets, beaten, careless = 200, 0, 0
    for _ in range(sets):
        rows = []
        for record in record_set(draw):
            error = round(20 + 0.5 * record.after["test_error"]) / 450
            if record.seed < 3:
                rows.append(replace(record, after={"test_error": error}))
        nulls = against_baselines(rows, "test_error")
        beaten += any(row["beats"] for row in nulls)
        careless += any(row["low"] is None and row["advantage"] > 0 for row in nulls)
    print(f"{sets} null record sets: {beaten} beat a baseline, {careless} with zero spread")
    assert beaten <= 0.05 * sets
    assert careless > 3 * 0.05 * sets  # the negative control: zero spread taken for certainty


def test_planted_effects_are_found():
    draw = generator_for(1, "planted effects")
    sets = 50
    for effect, least in ((2.0, 0.0), (6.0, 0.2), (20.0, 0.95)):
        found = wrong = 0
        for _ in range(sets):
            rows = against_baselines(record_set(draw, effect), "test_error")
            found += sum(row["beats"] for row in rows if row["recipe"] == "a")
            wrong += sum(row["beats"] for row in rows if row["recipe"] != "a")
        power = found / (sets * len(DENSITIES) * len(BASELINES))
        print(f"effect {effect} noise deviations: power {power:.2f}, {wrong} false")
        assert power >= least
        assert wrong <= 0.05 * sets


def test_baselines_by_hand():
    nulls = {"random": content_id(recipe="r", seed=0, density=0.5, task="t", schedule="none")}
    rows = []
    for seed in range(3):
        null = record("r", seed, 0.5 + 0.01 * seed)
        rows += [null]
        for name, gain in (("good", 0.4), ("bad", -0.1), ("random-like", 0.0)):
            extra = {"baselines": {"random": null.id, "small-dense": "switched off"}}
            rows += [record(name, seed, 0.5 + 0.01 * seed - gain + 0.001 * seed, extra=extra)]
    assert nulls["random"] == rows[0].id
    found = {row["recipe"]: row for row in against_baselines(rows, "test_error")}
    assert set(found) == {"good", "bad", "random-like"}  # the baseline is not its own rival
    assert found["good"]["beats"]
    assert found["good"]["advantage"] == pytest.approx(0.4 - 0.001)
    assert not found["bad"]["beats"]
    assert found["bad"]["p_holm"] < 0.05  # significantly worse is not better
    assert not found["random-like"]["beats"]
    flipped = [replace(r, after={"accuracy": 1 - r.after["test_error"]}) for r in rows]
    same = {row["recipe"]: row for row in against_baselines(flipped, "accuracy")}
    assert same["good"]["advantage"] == pytest.approx(found["good"]["advantage"])


def test_retraining_is_compared_with_the_same_run_before_it():
    rows = []
    for seed in range(4):
        name = content_id(recipe="a", seed=seed, density=0.5, task="t", schedule="retrain")
        own = {"test_error": 0.1 + 0.01 * seed}
        extra = {"baselines": {"no-retraining": name}}
        rows.append(record("a", seed, 0.5, schedule="retrain", extra=extra, retrained=own))
    (row,) = against_baselines(rows, "test_error")
    assert row["advantage"] == pytest.approx(0.4 - 0.015)
    assert row["beats"]
