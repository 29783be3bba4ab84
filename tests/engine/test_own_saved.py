"""What a user's own parts leave behind is saved, and loads where the parts are not at hand."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import models
import prunus
from prunus.granularity import Edge, EdgePerRow, Node
from prunus.parts import Written
from prunus.recipe import Recipe, as_written
from prunus.scores import Magnitude
from prunus.selection import Choice, TopK


def plain(layer):
    return layer.weight.abs()


@dataclass(frozen=True)
class Power:
    by: float = 1.0
    word: str = "a, selection=(b)"

    def __call__(self, layer):
        return layer.weight.abs() ** self.by


class NoRepr:
    def __init__(self, power):
        self.power = power

    def __call__(self, layer):
        return layer.weight.abs() ** self.power


class Talkative:
    """A selection whose notes are of every kind."""

    def __call__(self, scores, kept, *, layer, generator):
        choice = TopK()(scores, kept, layer=layer, generator=generator)
        notes = {
            "tensor": scores.detach().mean(), "array": np.arange(3), "number": np.float32(0.5),
            "nan": float("nan"), "set": {1}, 7: "seven",
        }  # fmt: skip
        return Choice(mask=choice.mask, notes=notes)


PARTS = {
    "function": {"score": plain},
    "lambda": {"score": lambda layer: layer.weight.abs()},
    "partial": {"score": functools.partial(plain)},
    "dataclass": {"score": Power(2.0)},
    "object": {"score": NoRepr(2.0)},
    "node score": {"granularity": Node(), "score": Power(2.0)},
    "selection": {"selection": Talkative()},
    "everything": {"score": Power(), "selection": Talkative()},
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_network_of_own_parts_is_saved_and_loads(kind, tmp_path):
    model, x = models.MLP((12, 16, 10, 5)), torch.randn(32, 12)
    recipe = Recipe(**PARTS[kind])
    metrics = {"loss": np.float32(0.25), "tensor": torch.tensor(2.0), "nan": float("nan")}
    pruned = prunus.prune(model, recipe, 0.5, data=x, evaluate=lambda m: metrics)
    pruned.save(tmp_path / "net", example=x)
    again = prunus.load(tmp_path / "net", model)
    assert repr(again.recipe) == repr(recipe)
    assert again.recipe.digest == recipe.digest
    assert again.recipe.units == recipe.units
    assert torch.equal(again.model(x), pruned.model(x))
    assert again.metrics["before"]["loss"] == 0.25
    assert again.metrics["before"]["tensor"] == 2.0
    assert recipe.digest[:8] in again.summary() or again.name in again.summary()
    again.save(tmp_path / "again")
    assert repr(prunus.load(tmp_path / "again", model).recipe) == repr(recipe)


def test_own_parts_that_were_read_say_so_when_they_are_asked():
    recipe = as_written(repr(Recipe(score=Power(2.0))))
    assert isinstance(recipe.score.wrapped, Written)
    with pytest.raises(ValueError, match=r"^This recipe was read from a file, and Power\(by=2"):
        prunus.prune(models.MLP((4, 3)), recipe, 0.5)
    whole = replace(recipe, score=Power(2.0))
    assert whole == Recipe(score=Power(2.0))
    assert as_written(repr(Recipe(score=Magnitude()))) == Recipe(score=Magnitude())


@pytest.mark.parametrize(
    "text", ["", "Magnitude()", "Recipe()", "Recipe(granularity=Edge()", "import os"]
)
def test_what_is_no_recipe(text):
    if text == "Recipe()":
        assert as_written(text) == Recipe()
        return
    with pytest.raises(ValueError, match="is no recipe"):
        as_written(text)


def test_the_kind_of_units_of_an_own_granularity():
    class Mine(Edge):
        def __repr__(self):
            return "Mine!"

    text = repr(Recipe(granularity=Mine()))
    assert as_written(text, "nodes").units == "nodes"
    assert repr(as_written(text)) == text


def test_no_fact_of_a_family_takes_the_place_of_the_part_itself():
    """A granularity of one's own is called as itself, whatever its family comes to declare."""

    class Rows(EdgePerRow):
        calls = 0

        def pool(self, layer, values):
            Rows.calls += 1
            return super().pool(layer, values)

    class Plain:
        def __init__(self):
            self.inner = Rows()

        def pool(self, layer, values):
            return self.inner.pool(layer, values)

        def unpool(self, layer, pools):
            return self.inner.unpool(layer, pools)

        def __call__(self):
            raise AssertionError

    mine = Plain()
    assert Recipe(granularity=mine).granularity.wrapped is mine
    assert Recipe(granularity=mine) == Recipe(granularity=mine)
