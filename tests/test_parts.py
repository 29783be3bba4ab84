"""What parts declare: the tables' entries all of it, a user's own part the defaults."""

import ast
import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

import prunus
from laws.families import ARGUMENTS
from models import build
from prunus.allocation import ALLOCATIONS, Allocation
from prunus.compensation import COMPENSATIONS, Compensation, NoCompensation
from prunus.courses import COURSES, GROWTHS, Course, Growth
from prunus.engine.compare import compare
from prunus.granularity import GRANULARITIES, NM, Edge, EdgePerRow, Granularity, Node
from prunus.joint import JOINTS, Joint, JointResult, NetworkJoint
from prunus.parts import Own, shown
from prunus.recipe import Recipe, parse
from prunus.schedules import SCHEDULES, AtInit, OneShot, Schedule, Step
from prunus.scores import SCORES, Magnitude, Score
from prunus.selection import SELECTIONS, Choice, Selection, TopK

FAMILIES = {
    Granularity: GRANULARITIES, Score: SCORES, Allocation: ALLOCATIONS, Selection: SELECTIONS,
    Compensation: COMPENSATIONS, Schedule: SCHEDULES, Course: COURSES, Growth: GROWTHS,
}  # fmt: skip
ENTRIES = [
    (family, name, make(**ARGUMENTS.get(name, {})))
    for family, table in FAMILIES.items()
    for name, make in table.items()
]


@pytest.mark.parametrize(("family", "name", "part"), ENTRIES, ids=lambda v: getattr(v, "name", ""))
def test_every_entry_says_all_that_its_family_declares(family, name, part):
    assert isinstance(part, family)
    assert parse(repr(part)) == part
    assert shown(part) == repr(part)
    assert hash(part) == hash(parse(repr(part)))


@pytest.mark.parametrize("name", JOINTS)
def test_every_joint_method_says_so(name):
    part = JOINTS[name](**ARGUMENTS.get(name, {}))
    assert isinstance(part, NetworkJoint if part.network else Joint)
    assert part.joint
    assert parse(repr(part)) == part


def weight_score(layer, power=1.0):
    return layer.weight.abs() ** power


class Plain:
    """No dataclass, no `__repr__`."""

    def __init__(self, power):
        self.power = power

    def __call__(self, layer):
        return weight_score(layer, self.power)


class Named(Plain):
    def __repr__(self):
        return f"Named({self.power})"


@dataclass
class Mutable:
    """A dataclass that has no hash."""

    power: float = 1.0
    reduction: str = "l2"

    def __call__(self, layer):
        return weight_score(layer, self.power)


OWN = [
    (weight_score, "test_parts.weight_score"),
    (lambda layer: layer.weight.abs(), "test_parts.<lambda>"),
    (functools.partial(weight_score, power=2.0), "functools.partial("),
    (Plain(2.0), "test_parts.Plain(power=2.0)"),
    (Named(2.0), "Named(2.0)"),
    (Mutable(), "Mutable(power=1.0, reduction='l2')"),
    (Plain(2.0).__call__, "test_parts.Plain.__call__"),
]


@pytest.mark.parametrize(("score", "text"), OWN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_users_own_score_of_any_kind_is_a_part(score, text):
    recipe = Recipe(score=score)
    assert isinstance(recipe.score, Score)
    assert text in repr(recipe)
    assert " at 0x" not in repr(recipe)  # the same in every process
    assert recipe.score == score
    assert recipe == Recipe(score=score)
    assert recipe.digest == Recipe(score=score).digest
    assert hash(recipe) == hash(Recipe(score=score))
    assert {recipe.score: 1}[Recipe(score=score).score] == 1
    assert recipe != Recipe()
    assert (recipe.score.side, recipe.score.statistics) == ("consumer", ())
    assert recipe.score.reduction == getattr(score, "reduction", "sum")
    assert replace(recipe, score=recipe.score) == recipe
    assert copy.deepcopy(recipe).digest == recipe.digest
    model, x = build("mlp-relu")
    pruned = prunus.prune(model, recipe, 0.5)
    same = prunus.prune(model, "magnitude", 0.5)
    assert all(torch.equal(pruned.masks[k], same.masks[k]) for k in same.masks)
    nodes = prunus.prune(model, replace(recipe, granularity=Node()), 0.5, data=x)
    assert nodes.cost_after.density <= 0.5


def test_what_a_partial_binds_is_written_down():
    first = Recipe(score=functools.partial(weight_score, power=2.0))
    other = Recipe(score=functools.partial(weight_score, power=3.0))
    assert "weight_score, power=2.0)" in repr(first)
    assert first.digest != other.digest


def test_parts_of_ones_own_survive_pickling():
    recipe = Recipe(score=functools.partial(weight_score, power=2.0), selection=own_selection)
    again = pickle.loads(pickle.dumps(recipe))
    assert again.digest == recipe.digest
    assert again.selection.random is True
    assert again.score.beside(again) is None


def own_selection(scores, kept, *, layer, generator):
    return TopK()(scores, kept, layer=layer, generator=generator)


def own_allocation(pools, cost, budget):
    return ALLOCATIONS["Uniform"]()(pools, cost, budget)


def own_compensation(layer, mask):
    return NoCompensation()(layer, mask)


class OwnSchedule:
    def __call__(self):
        yield Step(index=0, last=True, budget=1.0, train=True)


class Columns:
    """One pool per input: a granularity with nothing but its two methods."""

    def pool(self, name, scores):
        return scores.T

    def unpool(self, mask, shape):
        return mask.T.reshape(shape)


def test_own_parts_have_the_declared_defaults():
    recipe = Recipe(
        granularity=Columns(),
        allocation=own_allocation,
        selection=own_selection,
        compensation=own_compensation,
        schedule=OwnSchedule(),
    )
    assert (recipe.units, recipe.granularity.pools, recipe.granularity.fixed) == (
        "edges", "own", None,
    )  # fmt: skip
    assert (recipe.allocation.minimum, recipe.allocation.reads_scores) == (1, True)
    assert (recipe.selection.random, recipe.joint) == (True, False)
    assert recipe.compensation.refits
    assert not recipe.schedule.trains
    assert not recipe.schedule.before_training
    model, x = build("mlp-relu")
    pruned = prunus.prune(model, recipe, 0.5, data=x)
    plain = Recipe(granularity=Columns(), allocation=own_allocation)
    same = prunus.prune(model, plain, 0.5, data=x)
    for name, result in pruned.layers.items():
        assert torch.equal(result.mask, same.layers[name].mask)
        assert result.mask.sum(0).max() - result.mask.sum(0).min() <= 1  # one pool per input


@dataclass(frozen=True)
class KeepFirst(Joint):
    """A joint method of one's own: the first of every row, and the weights doubled."""

    def __call__(self, layer, granularity, kept):
        mask = torch.zeros_like(layer.weight, dtype=torch.bool)
        for row, k in zip(mask, kept.tolist(), strict=True):
            row[:k] = True
        return JointResult(mask=mask, weight=2 * layer.weight.masked_fill(~mask, 0.0))


def test_a_joint_method_of_ones_own_needs_no_table():
    model, x = build("mlp-relu")
    recipe = Recipe(granularity=EdgePerRow(), selection=KeepFirst())
    assert recipe.joint
    assert recipe.refits
    pruned = prunus.prune(model, recipe, 0.5, data=x)
    dense = dict(model.named_modules())
    for name, result in pruned.layers.items():
        kept = result.mask
        assert torch.equal(result.weight[kept], 2 * dense[name].weight[kept])
        assert bool((kept[:, :-1] >= kept[:, 1:]).all())
    with pytest.raises(ValueError, match=r"^KeepFirst\(\) removes edges, not nodes\.$"):
        Recipe(granularity=Node(), selection=KeepFirst())


@dataclass(frozen=True)
class Shy(Magnitude):
    """A part that refuses company for a reason of its own."""

    def beside(self, recipe):
        return "Shy() wants to be alone." if recipe.schedule.before_training else None


def test_a_part_refuses_its_company_without_the_recipe_knowing_it():
    Recipe(score=Shy())
    with pytest.raises(ValueError, match=r"^Shy\(\) wants to be alone\.$"):
        Recipe(score=Shy(), schedule=AtInit())


@dataclass(frozen=True)
class Half(Edge):
    """A granularity of another kind of unit, which no part of the tables serves."""

    units = "halves"


def test_a_new_kind_of_unit_is_refused_by_the_parts_that_do_not_know_it():
    message = (
        r"^Magnitude\(.*\) serves edges and nodes, so `granularity` must not be Half\(\), whose "
        r"units are halves\. Choose another `score` or `granularity`\.$"
    )
    with pytest.raises(ValueError, match=message):
        Recipe(granularity=Half())


def test_no_part_is_asked_for_by_its_class():
    """`Recipe` combines declarations: it imports no part but the defaults of its fields."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(Recipe)))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    tables = [GRANULARITIES, SCORES, ALLOCATIONS, SELECTIONS, JOINTS, COMPENSATIONS]
    tables += [SCHEDULES, COURSES, GROWTHS]
    defaults = {"Edge", "Magnitude", "Uniform", "TopK", "NoCompensation", "OneShot"}
    assert {name for table in tables for name in table} & imported == defaults


def test_a_choice_has_what_it_is_asked_for():
    assert Choice(mask=torch.ones(1, 2, dtype=torch.bool)).scale is None
    assert isinstance(Own(own_selection, Selection), Callable)
    assert OneShot().single
    assert not AtInit().single
    assert NM(2, 4).fixed == (2, 4)


def test_own_functions_of_one_name_are_told_apart_or_refused():
    model, x = build("mlp-relu")
    first = Recipe(score=lambda layer: layer.weight.abs())
    other = Recipe(score=lambda layer: -layer.weight.abs())
    with pytest.raises(ValueError, match=r"have the same name.*Pass \{label: recipe\}"):
        compare(model, [first, other], [0.5], data=x, evaluate=lambda m: 0.0)
    found = compare(
        model, {"large": first, "small": other}, [0.5], data=x, evaluate=lambda m: 0.0, seeds=1
    )
    assert {r["recipe"] for r in found.records} == {"large", "small"}
