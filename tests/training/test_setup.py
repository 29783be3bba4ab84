"""What `sparsify` leaves alone: the model before its training, other processes, kept weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ddp_worker
import prunus
from forks import both
from prunus.surgery.bits import IDLE
from prunus.training import sparsifier
from traces import Home, home, same, state_of, surroundings


def untied(model):
    """The model's state without the hooks of a sparsifier, which hang on parameters."""
    hooks = [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()]
    return state_of(model), hooks


@pytest.mark.parametrize("name", ["gradual", "soft-filter"])
def test_nothing_runs_the_model_itself(name):
    """It trains, drops out and counts its batches, and asserts that only copies of it run."""
    model, x, _ = home()
    before, around = untied(model), surroundings()
    for _ in range(2):
        sparse = prunus.sparsify(
            model, name, 0.5, optimizer=None, steps=200, exclude="encoder*", example=x[:8]
        )
        sparse.remove()
        assert same(untied(model), before)
    sparse = prunus.sparsify(
        model, name, 0.5, optimizer=None, steps=200, exclude="encoder*", example=x[:8]
    )
    with pytest.warns(RuntimeWarning, match=r"^The training ended at step 0"):
        sparse.finish()
    assert same(untied(model), before)
    assert same(surroundings(), around)


def test_an_interrupted_set_up_leaves_nothing(monkeypatch):
    """The interrupt comes in every one of the network's forward passes, one after another."""
    forward, left = Home.forward, 0

    def interrupted(self, x):
        nonlocal left
        left -= 1
        out = forward(self, x)  # its norm's statistics have moved by then
        if left == 0:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(Home, "forward", interrupted)
    model, x, _ = home()
    before, around = untied(model), surroundings()
    passes = 0
    while left >= 0:
        passes += 1
        left = passes
        try:
            sparse = prunus.sparsify(
                model, "soft-filter", 0.5, optimizer=None, steps=200, exclude="encoder*",
                example=x[:8],
            )  # fmt: skip
        except KeyboardInterrupt:
            left = 0
            assert same(untied(model), before)
            assert same(surroundings(), around)
        else:
            assert left > 0  # all passes are done
            sparse.remove()
            break
    assert passes > 3
    assert same(untied(model), before)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", ["gradual", "rigl"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_second_moments_off_zero_change_no_weight(optimizer, name, monkeypatch):
    """Bit for bit the training in which removed weights keep moments of 0."""

    def run():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4))
        own = OPTIMIZERS[optimizer](model.parameters())
        recipe = prunus.recipes[name]
        recipe = replace(recipe, schedule=replace(recipe.schedule, every=7))
        sparse = prunus.sparsify(model, recipe, 0.3, optimizer=own, steps=60)
        generator = torch.Generator().manual_seed(1)
        for _ in range(60):
            own.zero_grad()
            x = torch.randn(16, 8, generator=generator)
            F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            own.step()
        removed = ~sparse.masks["0.weight"]
        moments = next(
            value
            for key, value in own.state[model[0].weight].items()
            if key in ("exp_avg_sq", "square_avg")
        )
        return dict(sparse.finish(strict=True).model.state_dict()), moments[removed]

    lifted, moments = run()
    assert bool((moments > 0).all())
    assert float(moments.max()) <= IDLE
    monkeypatch.setattr(sparsifier, "idle", lambda *_: None)
    plain, moments = run()
    assert bool((moments == 0).any())
    assert same(lifted, plain)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes trained together."""
    folder = tmp_path_factory.mktemp("ddp")
    both(ddp_worker.main, folder)
    return [torch.load(folder / f"said-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ddp_worker.RECIPES)
def test_two_processes_choose_alike_and_as_one_does(processes, name):
    """DistributedDataParallel over gloo: gradients are means over both, and so all is as in one."""
    one, other = (said["found"][name] for said in processes)
    assert same(one, other)
    alone = ddp_worker.trained(name, 0, 1, wrapped=False)
    assert one.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-5)


def test_processes_with_seeds_of_their_own_are_told(processes):
    for said in processes:
        assert said["refusal"].startswith("The processes of ranks 0 and 1 keep different weights.")
