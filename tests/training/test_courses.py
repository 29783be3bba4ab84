"""Courses: their formulas, their steps, what they stand beside."""

import re

import pytest
import torch

import prunus
from prunus.courses import COURSES, Dynamic, Gradual, RandomGrowth, Static, updates
from prunus.granularity import NM, Edge, EdgePerRow, Node
from prunus.joint import OBS
from prunus.recipe import Recipe, parse
from prunus.scores import SCORES, Constant, Movement, RemovalError
from prunus.selection import RandomK
from prunus.training.exchange import exchange


def test_gradual_and_dynamic_have_the_reference_values():
    gradual = Gradual(start=0.0, stop=1.0)
    quarters = [gradual.density(u / 4, 0.1) for u in range(5)]
    assert quarters == pytest.approx([1, 0.479688, 0.2125, 0.114063, 0.1], abs=1e-6)
    dynamic = Dynamic(stop=1.0)
    replaced = [dynamic.replace(u / 4) for u in range(5)]
    assert replaced == pytest.approx([0.3, 0.256066, 0.15, 0.043934, 0.0], abs=1e-6)
    assert {dynamic.density(u / 4, 0.2) for u in range(5)} == {0.2}


def test_gradual_keeps_to_its_span_and_dynamic_to_its_stop():
    course = Gradual(start=0.2, stop=0.6, power=1)
    assert [course.density(u, 0.5) for u in (0.0, 0.2, 0.4, 0.6, 0.9)] == pytest.approx(
        [1, 1, 0.75, 0.5, 0.5]
    )
    assert Dynamic(stop=0.5, decay="constant").replace(0.49) == 0.3
    assert Dynamic(stop=0.5, decay="constant").replace(0.5) == 0.0
    assert Dynamic(stop=0.5).replace(0.7) == 0.0
    falling = Dynamic(stop=0.5)  # a cosine that ends where the exchange stops
    assert [falling.replace(u) for u in (0.0, 0.25, 0.5 - 1e-9)] == pytest.approx(
        [0.3, 0.15, 0.0], abs=1e-9
    )
    assert Static().density(0.0, 0.3) == 0.3
    assert Static().replace(0.5) == 0.0


def test_steps_are_multiples_within_the_span():
    assert updates(Gradual(start=0.1, stop=0.7, every=100), 1000) == [*range(100, 701, 100)]
    assert updates(Gradual(start=0.0, stop=0.7, every=3), 10) == [3, 6]
    assert updates(Dynamic(stop=0.75, every=1), 4) == [1, 2, 3]
    assert updates(Static(), 10) == []
    # 0.1 · 70 and 0.7 · 10 are a hair off 7 in binary fractions
    assert updates(Gradual(start=0.1, stop=0.7, every=7), 70) == [7, 14, 21, 28, 35, 42, 49]
    with pytest.raises(ValueError, match=r"^No step from 0\.1 to 0\.7 of 50 is a multiple of "):
        updates(Gradual(), 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradual(start=0.7, stop=0.7), r"^Gradual needs 0 <= start < stop <= 1"),
        (lambda: Gradual(start=-0.1), r"^Gradual needs 0 <= start < stop <= 1"),
        (lambda: Gradual(stop=1.1), r"^Gradual needs 0 <= start < stop <= 1"),
        (lambda: Gradual(stop=float("nan")), r"^Gradual needs 0 <= start < stop <= 1"),
        (lambda: Gradual(power=0), r"^`power` must be a finite number > 0"),
        (lambda: Gradual(every=0), r"^`every` must be a whole number >= 1"),
        (lambda: Dynamic(drop=0), r"^`drop` must lie in \(0, 1\)"),
        (lambda: Dynamic(drop=1), r"^`drop` must lie in \(0, 1\)"),
        (lambda: Dynamic(every=2.5), r"^`every` must be a whole number >= 1"),
        (lambda: Dynamic(decay="linear"), r"^Unknown decay 'linear'"),
    ],
)
def test_what_is_no_course_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": RemovalError(), "schedule": Gradual()}, r"^RemovalError\(.*\) reads statistics"),
        ({"selection": OBS(), "schedule": Static()}, r"reads statistics of data"),
        ({"inputs": "pruned", "schedule": Static()}, r"^inputs='pruned' needs data"),
        ({"granularity": NM(2, 4), "schedule": Dynamic()}, r"fixes the counts"),
        ({"granularity": NM(2, 4), "schedule": Gradual()}, r"fixes the counts"),
        ({"granularity": Node(), "schedule": Dynamic()}, r"serves edges"),
        ({"score": Movement()}, r"^Movement\(\) is gathered while removed weights go on"),
        ({"score": Movement(), "schedule": Gradual()}, r"Use Gradual\(soft=True\)"),
    ],
)  # fmt: skip
def test_what_a_course_cannot_stand_beside(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize("name", COURSES)
@pytest.mark.parametrize("granularity", [Edge(), EdgePerRow()], ids=repr)
def test_every_course_stands_beside_every_score_without_statistics(name, granularity):
    course = COURSES[name]()
    for make in SCORES.values():
        score = make()
        if not score.statistics and not score.gathers and "edges" in score.serves:
            recipe = Recipe(granularity=granularity, score=score, schedule=course)
            assert parse(repr(recipe)) == recipe
            assert not recipe.needs_data
    assert Recipe(granularity=NM(2, 4), schedule=Static()).schedule.inside


def test_a_course_of_ones_own_needs_nothing_but_a_density():
    class Halves:
        inside = True
        every = 10

        def density(self, share, final):
            return final if share > 0.5 else 1.0

        def __repr__(self):
            return "Halves()"

    recipe = Recipe(schedule=Halves())
    assert recipe.schedule.stop == 1.0
    assert recipe.schedule.replace(0.3) == 0.0
    assert updates(recipe.schedule, 30) == [10, 20, 30]
    with pytest.raises(ValueError, match=r"^Recipe 'recipe-\w+' changes masks inside training"):
        prunus.prune(torch.nn.Linear(3, 3), recipe, 0.5)
    with pytest.raises(ValueError, match=r"^Recipe 'mine' changes masks inside training"):
        prunus.compare(
            torch.nn.Linear(3, 3), {"mine": recipe}, [0.5], data=torch.ones(4, 3), evaluate=len
        )
    with pytest.raises(ValueError, match=r"^Gradual\(.*\) changes masks inside training"):
        Gradual()()


def slow_exchange(size, kept, growth, part):
    """From the definition, one pool at a time."""
    new = []
    for s, k, g in zip(size.tolist(), kept.tolist(), growth.tolist(), strict=True):
        there = [i for i, there in enumerate(k) if there]
        moved = int(part * len(there))
        by_size = sorted(there, key=lambda i: (-s[i], i))
        stay = set(by_size[: len(there) - moved])
        out = sorted((i for i in range(len(k)) if i not in stay), key=lambda i: (-g[i], i))
        stay |= set(out[:moved])
        new.append([i in stay for i in range(len(k))])
    return torch.tensor(new)


@pytest.mark.parametrize("part", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("levels", [3, 1000])
def test_exchange_is_that_of_the_definition(part, levels):
    generator = torch.Generator().manual_seed(1)
    for pools, units in ((1, 1), (1, 40), (5, 17)):
        size, growth = torch.randint(levels, (2, pools, units), generator=generator).double()
        for density in (0.0, 0.2, 0.7, 1.0):
            kept = torch.rand(pools, units, generator=generator) < density
            found = exchange(size.masked_fill(~kept, -torch.inf), growth, part)
            assert torch.equal(found, slow_exchange(size, kept, growth, part))
            assert torch.equal(found.sum(1), kept.sum(1))


def test_dropped_weights_may_return():
    """RigL's candidates are all that do not stay: a dropped weight of large gradient returns."""
    size = torch.tensor([[1.0, 2.0, 3.0, -torch.inf]])
    growth = torch.tensor([[9.0, 0.0, 0.0, 1.0]])
    assert exchange(size, growth, 0.4).tolist() == [[True, True, True, False]]
    assert exchange(size, -growth, 0.4).tolist() == [[False, True, True, True]]


def test_random_growth_draws_evenly():
    """Counts of 400 draws of 1 in 8: all within 5.5 standard deviations (1e-6 with 8 counts)."""
    drawn = torch.zeros(8)
    for seed in range(400):
        scores = RandomGrowth()(torch.zeros(1, 8), torch.Generator().manual_seed(seed))
        drawn[scores.argmax()] += 1
    assert bool(((drawn - 50).abs() < 5.5 * (50 * 7 / 8) ** 0.5).all())


def test_the_message_of_prune_names_sparsify():
    message = "Recipe 'rigl' changes masks inside training. Use prunus.sparsify("
    with pytest.raises(ValueError, match=re.escape(message)):
        prunus.prune(torch.nn.Linear(3, 3), "rigl", 0.5)
    with pytest.raises(ValueError, match=r"^Recipe 'magnitude' prunes by OneShot\(\), not inside"):
        prunus.sparsify(torch.nn.Linear(3, 3), "magnitude", 0.5, optimizer=None, steps=10)
    own = Recipe(score=Constant(), selection=RandomK(), schedule=Static())
    assert own.schedule.inside
