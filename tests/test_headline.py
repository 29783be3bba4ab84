"""The first sentences: what they claim of a pruning, and of many."""

from dataclasses import replace
from itertools import pairwise

import pytest
import scipy.stats
import torch

import models
import prunus
from prunus.cost.latency import Latency
from prunus.report import headline
from prunus.report.curves import APART, _kept_apart, leaders
from prunus.report.headline import (
    comparison_headline,
    higher_is_better,
    is_share,
    shown_score,
    size_words,
    standing,
    time_text,
)
from prunus.schedules import Iterative


def pruned(recipe, evaluate=None, density=0.5):
    torch.manual_seed(0)
    model, x = models.MLP((6, 40, 3)), torch.randn(64, 6)
    return prunus.prune(model, recipe, density, data=x, evaluate=evaluate)


def test_a_node_pruned_network_is_smaller_and_not_timed():
    said = pruned("importance-node", lambda m: {"accuracy": 0.5}).headline()
    found = pruned("importance-node")
    times = found.cost_before.bytes / found.cost_after.bytes
    assert said.startswith("Accuracy is 50.00 % pruned, 50.00 % before.")
    assert f"{times:.3g} times smaller: {found.cost_after.parameters:,} of 403 parameters" in said
    assert said.endswith("Not timed: `measured()` does that.")
    assert pruned("importance-node").headline().startswith("Not scored: `evaluate=`")


def test_zeros_in_dense_tensors_claim_no_time_and_no_memory():
    said = pruned("magnitude").headline()
    assert "are not zero" in said
    assert "in memory as large as before" in said
    assert said.endswith("In time no gain: zeros inside dense tensors take a dense network's time.")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (1.0, "2 times faster (2.00×, 1.96 to 2.04; 8 samples, 1 thread)."),
        (1.99, "In time not told apart from the dense network (1.01×, 0.99 to 1.03;"),
        (4.0, "Slower than the dense network (0.50×, 0.49 to 0.51;"),
    ],
)
def test_words_of_measured_times(after, words):
    def time(median):
        return Latency(median=median, low=median * 0.99, high=median * 1.01, level=0.95, runs=9,
                       threads=1, batch=8)  # fmt: skip

    found = pruned("importance-node")
    timed = replace(
        found,
        cost_before=replace(found.cost_before, latency=time(2.0)),
        cost_after=replace(found.cost_after, latency=time(after)),
    )
    assert words in timed.headline()


def test_retraining_is_said_first_and_the_guarantee_last():
    torch.manual_seed(0)
    model, x = models.MLP((6, 8, 3)), torch.randn(64, 6)
    scores = iter([0.9, 0.5, 0.8])
    recipe = replace(prunus.recipes["magnitude"], schedule=Iterative(rounds=1))
    found = prunus.prune(
        model, recipe, 0.5, data=x, evaluate=lambda m: next(scores), train=lambda m, step: None
    )
    said = found.headline()
    assert said.startswith("What `evaluate` measures is 0.8 retrained, 0.5 pruned, 0.9 before.")


def rows(**scores):
    """Records of one density: {recipe: its scores by seed}."""
    return [
        {"recipe": name, "density": 0.5, "seed": seed, "score": value}
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_the_best_and_its_ties_by_hand():
    found = standing(
        rows(best=[1.0, 1.1, 1.2], near=[1.01, 1.12, 1.19], far=[2.0, 2.1, 2.21]), higher=False
    )
    assert (found.best, found.ties, found.untested) == ("best", ("near",), 0)
    assert found.mean == pytest.approx(1.1)
    turned = standing(rows(low=[0.1, 0.2, 0.3], high=[0.9, 1.0, 1.05]), higher=True)
    assert (turned.best, turned.ties) == ("high", ())


def test_one_run_each_is_not_tested_and_one_run_against_many_is():
    alone = standing(rows(a=[1.0], b=[2.0]), higher=False)
    assert (alone.best, alone.ties, alone.untested) == ("a", (), 1)
    drawn = standing(rows(fixed=[1.0], near=[0.9, 1.1, 1.2, 1.0], far=[3.0, 3.1, 3.2, 3.05]), False)
    assert (drawn.best, drawn.ties, drawn.untested) == ("fixed", ("near",), 0)


def test_differences_all_alike_are_judged_by_their_signs():
    few = standing(rows(a=[1.0] * 3, b=[2.0] * 3), higher=False)
    assert few.ties == ("b",)  # 2 · 0.5³ = 0.25: no evidence at 5 %
    many = standing(rows(a=[1.0] * 6, b=[2.0] * 6), higher=False)
    assert many.ties == ()  # 2 · 0.5⁶ = 0.03


def false_claims(pages, runs):
    """Of pages of ten equal recipes: how often the first goes, and how often any other does."""
    draw = torch.Generator().manual_seed(0)
    first = any_ = 0
    for _ in range(pages):
        values = runs(draw)
        found = standing(rows(**{f"r{i}": v.tolist() for i, v in enumerate(values)}), higher=False)
        first += "r0" not in (found.best, *found.ties)
        any_ += len(found.ties) < len(values) - 1
    return first, any_


def normal(draw):
    return torch.randn(10, 5, generator=draw, dtype=torch.float64)


def images(draw):
    """Errors of 450 test images, of networks that differ from seed to seed."""
    chance = 0.02 + 0.005 * torch.rand(1, 5, generator=draw, dtype=torch.float64)
    return (torch.rand(10, 5, 450, generator=draw, dtype=torch.float64) < chance[..., None]).sum(
        2
    ) / 450


def most(pages, chance):
    """The count that is exceeded with probability 1e-6 at most."""
    return int(scipy.stats.binom.isf(1e-6, pages, chance))


def test_the_best_recipe_is_told_apart_as_rarely_as_is_said(monkeypatch):
    """Which of ten equal recipes is "truly best" is moot: the first shall not go in over 2.5 %."""
    first, any_ = false_claims(300, normal)
    assert first <= most(300, 0.025)
    assert any_ <= most(300, 0.25)
    shared = headline._apart
    monkeypatch.setattr(headline, "_apart", lambda one, other, share: shared(one, other, 0.05))
    assert false_claims(300, normal)[0] > most(300, 0.025)  # without the sharing out


@pytest.mark.slow
@pytest.mark.parametrize("runs", [normal, images])
def test_the_rate_of_false_claims(runs, capsys):
    """The exact bounds over many pages; what is printed is how much of them is used up."""
    pages = 20_000
    first, any_ = false_claims(pages, runs)
    with capsys.disabled():
        print(
            f"\n{runs.__name__}: the first goes in {first / pages:.2%}, any in {any_ / pages:.2%}"
        )
    assert first <= most(pages, 0.025)
    assert any_ <= most(pages, 0.25)


def test_how_far_one_may_prune():
    levels = [
        {"recipe": name, "density": density, "seed": seed, "score": score + 0.001 * seed}
        for density, a, b in ((0.5, 0.03, 0.05), (0.1, 0.035, 0.08), (0.02, 0.3, 0.31))
        for name, score in (("a+ls", a), ("b", b))
        for seed in range(6)
    ]
    first, second = comparison_headline(levels, "test_error", 0.03)
    assert first == "At density 0.1 the best is `a+ls`: test error 3.75 %, 3.00 % dense."
    assert second.startswith("At density 0.02 the best is `a+ls`: test error 30.25 %")
    assert comparison_headline(levels[:6], "loss", None)[0].startswith("At density 0.5 ")
    assert "Too few seeds (1)" in comparison_headline(
        [r for r in levels if r["seed"] == 0], "test_error", 0.03
    )[-1]  # fmt: skip
    assert comparison_headline([], "loss", None) == ["There are no scores."]


def test_few_seeds_are_said_to_tell_little():
    three = rows(a=[1.0, 1.1, 1.2], b=[1.05, 1.1, 1.3])
    assert comparison_headline(three, "loss", 1.0)[-1] == (
        "With 3 seeds only large differences are told apart."
    )
    five = rows(a=[1.0, 1.1, 1.2, 1.0, 1.1], b=[1.05, 1.1, 1.3, 0.9, 1.1])
    assert "seeds" not in " ".join(comparison_headline(five, "loss", 1.0))


def test_which_way_is_better():
    assert higher_is_better("accuracy", None, [0.1])
    assert not higher_is_better("test_error", 0.1, [0.05])
    assert higher_is_better("mine", 3.0, [1.0, 2.0])
    assert not higher_is_better("mine", 1.0, [2.0, 3.0])


def test_units():
    assert [size_words(n) for n in (12, 17272, 3_100_000, 2.5e9)] == [
        "12 bytes", "17.3 KB", "3.1 MB", "2.5 GB"
    ]  # fmt: skip
    assert [time_text(s) for s in (2.0, 0.0015, 4.44e-4)] == ["2 s", "1.5 ms", "444 µs"]
    assert shown_score("accuracy", 0.5) == "50.00 %"
    assert shown_score("accuracy", 50.0) == "50"
    assert not is_share("loss", [0.5])


def test_leaders_are_the_few_with_the_best_mean_rank():
    data = [
        {"method": f"m{i}", "compensation": "ls", "at": at, "mean": i + at}
        for i in range(8)
        for at in (0.5, 0.1)
    ]
    assert leaders(data, "at", higher=False) == ["m0", "m1", "m2", "m3", "m4"]
    assert leaders(data, "at", higher=True) == ["m7", "m6", "m5", "m4", "m3"]
    ragged = [{"method": n, "compensation": "ls", "at": i, "mean": m}
              for i, (n, m) in enumerate([("a", 2.0), ("b", 1.0)])]  # fmt: skip
    assert leaders(ragged, "at", higher=False) == ["b", "a"]


def test_names_keep_apart_inside_the_frame():
    placed = _kept_apart({"a": 339.0, "b": 338.0, "c": 0.0, "d": 1.0}, 340)
    assert list(placed) == ["c", "d", "b", "a"]
    places = list(placed.values())
    assert all(b - a >= APART for a, b in pairwise(places))
    assert min(places) >= 0
    assert max(places) <= 340
