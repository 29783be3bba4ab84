"""Bases: the same network before it is scored, and what its units are worth then."""

import pytest
import torch

import prunus
from prunus import Recipe
from prunus.bases import BASES, AsGiven, Rotate
from prunus.compensation import LeastSquares
from prunus.courses import Gradual
from prunus.granularity import Node
from prunus.recipe import as_written, parse
from prunus.scores import Constant, Magnitude
from surgery.test_rotation import IDS, decoder

WIDTH = {"down.0": 0.5, "*": 1.0}
CHANNELS = Recipe(granularity=Node(), score=Magnitude(reduction="l2"))
TURNED = Recipe(granularity=Node(), score=Magnitude(reduction="l2"), basis=Rotate())


@torch.no_grad()
@pytest.mark.parametrize("name", BASES)
def test_every_basis_leaves_the_network_what_it_is(name):
    model = decoder()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = BASES[name]()(model, IDS, progress=False)
    torch.testing.assert_close(other(IDS), model(IDS), rtol=1e-10, atol=1e-10)
    assert list(other.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@torch.no_grad()
def test_nothing_removed_is_the_rotated_network_to_rounding():
    model = decoder()
    pruned = prunus.prune(model, TURNED, 1.0, data=IDS)
    torch.testing.assert_close(pruned.model(IDS), model(IDS), rtol=1e-10, atol=1e-10)
    assert not torch.equal(pruned.model.head.weight, model.head.weight)
    assert pruned.dense is model


@torch.no_grad()
@pytest.mark.parametrize("compensation", [{}, {"compensation": LeastSquares()}])
def test_a_narrower_stream_costs_less_when_it_was_turned(compensation, tmp_path):
    model = decoder()
    errors = []
    for recipe in (CHANNELS, TURNED):
        own = Recipe(
            granularity=recipe.granularity, score=recipe.score, basis=recipe.basis, **compensation
        )
        layers = None if recipe is TURNED else "*"  # a turned stream is asked for by itself
        pruned = prunus.prune(model, own, WIDTH, data=IDS, layers=layers)
        small = pruned.compact(IDS)
        assert small.tokens.embedding_dim == 8
        torch.testing.assert_close(small(IDS), pruned.model(IDS), rtol=1e-8, atol=1e-9)
        errors.append(float((small(IDS) - model(IDS)).norm() / model(IDS).norm()))
    if not compensation:  # least squares makes up for channels that others tell, turned or not
        assert errors[1] < 0.8 * errors[0]
    pruned.save(tmp_path, example=IDS)
    again = prunus.load(tmp_path, decoder())
    assert again.recipe == own
    assert torch.equal(again.model(IDS), pruned.model(IDS))
    assert torch.equal(again.compact()(IDS), small(IDS))


def test_recipes_of_before_are_written_as_before():
    plain = Recipe(granularity=Node())
    assert "basis" not in repr(plain)
    assert Recipe(granularity=Node(), basis=AsGiven()).digest == plain.digest
    assert TURNED.digest != CHANNELS.digest
    assert parse(repr(TURNED)) == TURNED
    assert as_written(repr(TURNED)) == TURNED
    own = repr(TURNED).replace("Magnitude(side='consumer', reduction='l2')", "mine.score")
    assert as_written(own, "nodes").basis == Rotate()
    assert repr(as_written(own, "nodes")) == own


def test_bad_input():
    model = decoder()
    with pytest.raises(ValueError, match=r"Pass batches as data"):
        prunus.prune(model, TURNED, 0.5, data=prunus.calibrate(model, IDS))
    with pytest.raises(ValueError, match="needs data"):
        prunus.prune(model, Recipe(basis=Rotate()), 0.5)
    with pytest.raises(ValueError, match="can be read only once"):
        prunus.prune(model, TURNED, 0.5, data=iter([IDS]))
    with pytest.raises(ValueError, match="inside its training"):
        Recipe(schedule=Gradual(), basis=Rotate())
    with pytest.raises(ValueError, match="one residual stream"):
        prunus.prune(
            torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), TURNED, 0.5,
            data=torch.randn(8, 4),
        )  # fmt: skip
    with pytest.raises(TypeError, match="`basis` must be an instance"):
        Recipe(basis=Rotate)
    found = prunus.compare(
        model, {"turned": Recipe(score=Constant(), basis=Rotate())}, [0.9], data=[IDS],
        evaluate=lambda m: float(m(IDS).detach().square().mean()), progress=False,
    )  # fmt: skip
    assert len(found.table()) == 1
