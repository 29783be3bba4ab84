"""Counts, their rounding and sharing; budgets and plans."""

import math
import random
import re
from decimal import localcontext
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.budget import Budget, Plan, as_counts, count_of, densities_of, share
from prunus.rows import rows_of


def exactly(text):
    return f"^{re.escape(text)}$"


def test_a_thousand_random_shapes_and_densities_follow_the_rule():
    draw = random.Random(0)
    for _ in range(1000):
        rows, width = draw.randint(1, 900), draw.randint(1, 3000)
        density = draw.choice([round(draw.random(), 2) or 0.5, 1 - draw.random(), 1e-3, 0.9, 1.0])
        total = math.floor(Fraction(repr(density)) * rows * width + Fraction(1, 2))
        assert count_of(density, rows * width) == total
        each, left = divmod(total, rows)
        expected = [each + (i < left) for i in range(rows)]
        assert share(total, [width] * rows) == expected
        assert share(total, [width] * rows, minimum=1) == [max(k, 1) for k in expected]


def test_halves_go_up_in_decimal_and_no_context_disturbs_it():
    assert [count_of(d, n) for d, n in ((0.5, 1), (0.1, 5), (0.3, 5), (0.7, 5))] == [1, 1, 2, 4]
    assert count_of(1 - 0.9, 10) == 1
    assert count_of(0.1, 10**30 + 5) == 10**29 + 1  # 0.5 rounds up, far beyond a float
    with localcontext() as context:
        context.prec = 3
        assert count_of(0.123456, 10**6) == 123456


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 200),
    st.integers(0, 3),
)
def test_share(pairs, total, minimum):
    sizes, rates = [p[0] for p in pairs], [p[1] for p in pairs]
    lows = [min(minimum, size) for size in sizes]
    for own in (rates, None):
        if own is None and not sum(sizes):
            continue
        parts = share(total, sizes, rates=own, minimum=minimum)
        assert sum(parts) == max(min(total, sum(sizes)), sum(lows))
        pulls = own or sizes
        for i, a in enumerate(parts):
            assert lows[i] <= a <= sizes[i]
            for j, b in enumerate(parts):
                # among pools that no limit holds, parts stand as the rates do, up to rounding
                if lows[i] < a < sizes[i] and lows[j] < b < sizes[j]:
                    assert abs(a * pulls[j] - b * pulls[i]) <= pulls[i] + pulls[j]


def test_largest_remainders_with_ties_to_the_lower_index():
    assert share(5, [4, 4, 4]) == [2, 2, 1]
    assert share(2, [1, 1, 1]) == [1, 1, 0]
    assert share(7, [6, 3, 1]) == [4, 2, 1]  # remainders .2, .1, .7
    assert share(0, [0, 0]) == [0, 0]
    assert share(11, [10, 5, 5], rates=[100, 1, 1], minimum=3) == [5, 3, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "A budget has exactly one target, got none. Give one of density, parameters, macs, "
             "bytes, latency, gap, drop."),
        ({"density": 0.5, "macs": 3}, "A budget has exactly one target, got density, macs. Give "
             "one of density, parameters, macs, bytes, latency, gap, drop."),
        ({"density": 0.0}, "`density` must lie in (0, 1], got 0.0."),
        ({"density": -0.1}, "`density` must lie in (0, 1], got -0.1."),
        ({"density": 1.1}, "`density` must lie in (0, 1], got 1.1."),
        ({"density": math.nan}, "`density` must lie in (0, 1], got nan."),
        ({"density": True}, "`density` must be a number in (0, 1], got True."),
        ({"parameters": 0}, "`parameters` must be a whole number >= 1, got 0."),
        ({"gap": -1.0}, "`gap` must be a finite number > 0, got -1.0."),
        ({"latency": 0.5}, "A latency budget needs `example`, the input whose latency counts."),
        ({"density": 0.5, "delta": 0.0}, "`delta` must lie in (0, 1), got 0.0."),
        ({"density": 2}, "`density` must lie in (0, 1], got 2. Write 0.02 for 2 %."),
        ({"density": 100}, "`density` must lie in (0, 1], got 100. Write 1 for 100 %."),
        ({"density": 101}, "`density` must lie in (0, 1], got 101."),
        ({"drop": -0.1}, "`drop` must be a finite number >= 0, got -0.1."),
        ({"gap": 0.0}, "`gap` must be a finite number > 0, got 0.0."),
    ],
)  # fmt: skip
def test_bad_budgets(given, message):
    with pytest.raises(ValueError, match=exactly(message)):
        Budget(**given)


def test_steps_are_geometric():
    budget = Budget(density=0.04)
    assert budget.step(0.5).density == pytest.approx(0.2)
    assert budget.step(1.0) is budget
    assert Budget(parameters=100).step(0.5, 10_000.0).parameters == 1000
    assert Budget(macs=100).step(0.5, 10_199.0).macs == 1009  # of 1009.9
    packed = Budget(bytes=9, coder="compressed", delta=0.2)
    assert packed.step(0.5, 100.0) == Budget(bytes=30, coder="compressed", delta=0.2)
    timed = Budget(latency=0.25, example=torch.ones(1)).step(0.5, 7.0)  # shares of 1
    assert timed.latency == pytest.approx(0.5)
    assert torch.equal(timed.example, torch.ones(1))
    message = (
        "A budget of gap cannot be spread over several steps. Use a one-shot schedule or a density."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        Budget(gap=0.1).step(0.5, 1.0)


def test_plan_summary():
    plan = Plan(
        kept={"b": (2, 3), "a": 7, "c": [4, 4]},
        density=0.25,
        limit=0.2,
        value=0.25,
        feasible=False,
        notes=("the minimum of 2 per pool binds in b",),
    )
    assert plan.summary().splitlines() == [
        "plan by density: density 0.25, limit 0.2, reached 0.25, NOT FEASIBLE",
        "a  7",
        "b  5 (2 to 3 in each of 2 pools)",
        "c  8 (4 in each of 2 pools)",
        "the minimum of 2 per pool binds in b",
    ]


def test_densities_by_glob():
    names = ["fc1", "fc2", "head"]
    found = densities_of({"fc1": 0.1, "fc*": 0.5}, names)
    assert found == {"fc1": 0.1, "fc2": 0.5, "head": 1.0}  # a name before a glob
    with pytest.raises(
        ValueError, match=exactly("Unknown layer or glob 'fc3'. Did you mean fc2, fc1?")
    ):
        densities_of({"fc3": 0.5}, names)
    with pytest.raises(
        ValueError, match=exactly("`density['fc1']` must lie in (0, 1], got 2. Write 0.02 for 2 %.")
    ):
        densities_of({"fc1": 2}, names)


def test_plans_by_hand():
    assert as_counts("fc", 5, [4, 4]).tolist() == [3, 2]
    assert as_counts("fc", [1, 4], [4, 4]).tolist() == [1, 4]
    for wrong in (9, -1, 2.5):
        with pytest.raises(ValueError, match=r"^`plan\['fc'\]` must be a whole number .*0, 8\]"):
            as_counts("fc", wrong, [4, 4])
    message = (
        "The plan for 'fc' must give at most 8 kept units, or one count for each of its 2 pools, "
        "got [1, 5]."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        as_counts("fc", [1, 5], [4, 4])


def test_densities_of_layers_apply_to_their_groups():
    members = {"a": ("a",), "a#2": ("a",), "stem": ("stem", "c2"), "d": ("d",)}
    names = list(members)
    found = densities_of({"a": 0.5, "c2": 0.25}, names, members=members)
    assert found == {"a": 0.5, "a#2": 0.5, "stem": 0.25, "d": 1.0}
    assert densities_of({"a#2": 0.5}, names, members=members) == {
        "a": 1.0, "a#2": 0.5, "stem": 1.0, "d": 1.0,
    }  # fmt: skip
    found = densities_of({"c*": 0.2, "*": 0.9}, names, members=members)
    assert found == {"a": 0.9, "a#2": 0.9, "stem": 0.2, "d": 0.9}
    found = densities_of({"*": 0.9, "c2": 0.2}, names, members=members)
    assert found["stem"] == 0.2  # a name before a glob
    with pytest.raises(ValueError, match=r"'stem', 'c2' share their channels.*'stem': 0.5, 'c2'"):
        densities_of({"stem": 0.5, "c2": 0.25}, names, members=members)
    assert densities_of({"stem": 0.5, "c2": 0.5}, names, members=members)["stem"] == 0.5
    with pytest.raises(ValueError, match="Layer 'fc' has nothing to prune: it is the output"):
        densities_of({"fc": 0.5}, names, members=members, refused={"fc": "it is the output"})
    with pytest.raises(ValueError, match=r"Unknown layer or glob 'c3'. Did you mean c2"):
        densities_of({"c3": 0.5}, names, members=members)


def test_a_plan_comes_back_from_its_text():
    rows = rows_of([torch.arange(6.0).view(3, 2)])
    plan = Plan(
        kept={"a": 3, "b": (1, 2)}, density=0.5, limit=0.1, kind="sup", value=0.09, notes=("so",),
        rows=rows, feasible=False,
    )  # fmt: skip
    again = Plan.from_json(plan.to_json())
    for name in ("kept", "density", "limit", "kind", "value", "feasible", "notes"):
        assert getattr(again, name) == getattr(plan, name)
    assert again.rows is not None
    assert torch.equal(again.rows.hashes, rows.hashes)
    bare = Plan.from_json(Plan(kept={"a": 1}).to_json())
    assert bare.kept == {"a": 1}
    assert math.isnan(bare.value)
    assert Plan.from_json('{"kept": {"fc": [2, 3]}}').kept == {"fc": (2, 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kept: 3", "The plan is truncated or no JSON (Expecting value"),
        ("[1]", "The plan must be a JSON object, got [1]."),
        ("{}", 'The plan must be a JSON object with an object "kept" of {layer: count}, got '),
        ('{"kept": {"a": 1}, "density": 7}', "The plan: `density` should be less than or equal to"),
        ('{"kept": {"a": 1, "a": 2}}', "The plan: `a` stands twice in one object."),
        ('{"kept": {"a": 1}, "rows": "no"}', "The plan: `rows` "),
        ('{"kept": {"a": -1}}', "`kept['a']` must be "),
        ('{"kept": {"a": 1.5}}', "`kept['a']` must be "),
        ('{"kept": {"a": "many"}}', "`kept['a']` must be "),
        ('{"kept": {"a": 1}, "densty": 0.5}', "Unknown entry of a plan 'densty'. Did you mean den"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"*": 0.2, "fc1": 0.9}, [0.9, 0.2, 0.2]),  # a name before a glob, wherever it stands
        ({"fc1": 0.9, "*": 0.2}, [0.9, 0.2, 0.2]),
        ({"*": 0.2, "fc*": 0.4}, [0.4, 0.4, 0.2]),  # the nearer glob
        ({"fc*": 0.4, "*": 0.2}, [0.4, 0.4, 0.2]),
        ({"fc?": 0.4, "fc*": 0.5, "head": 1.0, "fc[2]": 0.3, "fc1": 0.6, "*": 0.1}, None),
        ({"fc[2]": 0.3, "fc?": 0.4}, [0.4, 0.3, 1.0]),
    ],
)
def test_the_nearest_density_counts(given, expected):
    names = ["fc1", "fc2", "head"]
    if expected is None:  # what nothing is left for is an error, not a silent loss
        message = (
            "density['fc?'] reaches no layer: each that it matches has a nearer entry. Remove it."
        )
        with pytest.raises(ValueError, match=exactly(message)):
            densities_of(given, names)
        return
    assert list(densities_of(given, names).values()) == expected
