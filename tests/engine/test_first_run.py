"""One run of the dense network counts its products and follows its channels."""

import pytest
import torch

import prunus
from models import ZOO, build
from prunus.coupling import coupling_of
from prunus.engine.first_run import first_run
from prunus.modes import owned


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("samples", [1, 2])
def test_both_are_what_runs_of_their_own_tell(name, samples):
    model, x = build(name, samples=samples)
    recipe, device = prunus.recipes["l1-filter"], torch.device("cpu")
    with owned(model):
        sizes, found = first_run(model, recipe, x, device, known=False)
        alone, nothing = first_run(model, recipe, x, device, known=True)
        own = coupling_of(model, x)
    assert nothing is None
    assert sizes.operations.uses.keys() == alone.operations.uses.keys()
    for key, uses in alone.operations.uses.items():
        assert sizes.operations.uses[key] == pytest.approx(uses, rel=1e-12)
    assert sizes.operations.other == pytest.approx(alone.operations.other, rel=1e-12)
    rest = [key for key in vars(sizes) if key != "operations"]
    assert all(getattr(sizes, key) == getattr(alone, key) for key in rest)
    assert [g.classes for g in found.groups] == [g.classes for g in own.groups]
    assert (found.refused, found.numbered) == (own.refused, own.numbered)


def test_an_example_of_more_samples_and_edges_count_alone():
    model, x = build("mlp-relu", samples=3)
    device = torch.device("cpu")
    with owned(model):
        assert first_run(model, prunus.recipes["l1-filter"], x, device, known=False)[1] is None
        assert first_run(model, prunus.recipes["magnitude"], x[:2], device, known=False)[1] is None
        assert first_run(model, prunus.recipes["magnitude"], None, device, known=False)[1] is None


def test_a_model_that_fails_on_the_example_says_so_itself():
    model, x = build("mlp-relu", samples=2)
    with owned(model), pytest.raises(ValueError, match="shapes cannot be multiplied"):
        first_run(model, prunus.recipes["l1-filter"], x[:, :3], torch.device("cpu"), known=False)
