"""Zeros that hold: after every step, against momentum from before, after rewinding."""

import copy

import pytest
import torch

import models
import prunus
from prunus.schedules import Rewinding
from prunus.surgery.bits import IDLE, IDLED, clear, kept_bits


def network(recipe="magnitude", density=0.5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = models.MLP((12, 16, 10, 5), norm=True), torch.randn(32, 12)
    return model, x, prunus.prune(model, recipe, density, data=x)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
}


def broken(model, masks):
    """The parameters that have a value where their mask says zero."""
    return [n for n, p in model.named_parameters() if n in masks and p[~masks[n]].any()]


@pytest.mark.parametrize("recipe", ["magnitude", "importance-node"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stand_after_each_step_whatever_momentum_came_before(name, recipe):
    _, x, pruned = network(recipe)
    optimizer = OPTIMIZERS[name](pruned.model.parameters())

    def step():
        optimizer.zero_grad()
        pruned.model(x).square().mean().backward()
        optimizer.step()

    generator = torch.Generator().manual_seed(1)
    for parameter in pruned.model.parameters():  # as before the pruning: nothing is zero
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for _ in range(3):  # momentum gathers on what should be zero
        step()
    assert broken(pruned.model, pruned.masks)
    holder = pruned.hold(optimizer)
    assert not broken(pruned.model, pruned.masks)
    for _ in range(4):
        before = pruned.model.layers[6].weight.clone()
        step()
        assert not broken(pruned.model, pruned.masks)
        assert not torch.equal(pruned.model.layers[6].weight, before)  # the others go on learning
    holder.remove()
    step()
    assert broken(pruned.model, pruned.masks)  # nothing holds any more
    if recipe == "magnitude":  # and no hook is left on a gradient (removed nodes have none anyway)
        for key, mask in pruned.masks.items():
            assert pruned.model.get_parameter(key).grad[~mask].any(), key


def test_gradients_of_zeros_do_not_count_in_a_norm():
    _, x, pruned = network()
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.1)
    with pruned.hold(optimizer):
        pruned.model(x).square().mean().backward()
        for name, parameter in pruned.model.named_parameters():
            if name in pruned.masks:
                assert not parameter.grad[~pruned.masks[name]].any()
                assert parameter.grad.any()


def test_zeros_stand_at_every_step_of_a_rewinding_schedule():
    model, x, _ = network()
    recipe = prunus.Recipe(schedule=Rewinding(rounds=3))
    seen = []

    def train(work, step):
        optimizer = torch.optim.SGD(work.parameters(), lr=0.1, momentum=0.9)
        zeros = {n: p == 0 for n, p in work.named_parameters() if "weight" in n and p.ndim == 2}
        for _ in range(3):
            optimizer.zero_grad()
            work(x).square().mean().backward()
            optimizer.step()
            for name, where in zeros.items():
                assert not work.get_parameter(name)[where].any()
        seen.append(sum(int(z.sum()) for z in zeros.values()))

    pruned = prunus.prune(model, recipe, 0.2, data=x, train=train)
    assert len(seen) == 4  # the first training is dense
    assert 0 == seen[0] < seen[1] < seen[2] < seen[3]
    assert not broken(pruned.model, pruned.masks)


def test_zeros_stand_after_a_training_without_an_optimizer():
    model, x, _ = network()

    def train(work, step):
        with torch.no_grad():
            for parameter in work.parameters():
                parameter.add_(0.1)

    pruned = prunus.prune(model, "magnitude", 0.5, data=x, train=train)
    assert not broken(pruned.model, pruned.masks)


def test_what_is_evaluated_after_rewinding_has_its_zeros():
    model, x, _ = network()
    density = []

    def evaluate(work):
        weights = [p for p in work.parameters() if p.ndim == 2]
        density.append(sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights))
        return 0.0

    def train(work, step):
        work(x)

    recipe = prunus.Recipe(schedule=Rewinding(rounds=2))
    prunus.prune(model, recipe, 0.25, data=x, train=train, evaluate=evaluate)
    assert density == pytest.approx([1, 0.25, 0.25], abs=0.01)  # before, pruned, trained


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_stays_learns_as_under_masks_by_hand_to_the_bit(name):
    _, x, pruned = network(density=0.2)
    twin = copy.deepcopy(pruned.model)
    own, other = (OPTIMIZERS[name](m.parameters()) for m in (pruned.model, twin))
    removed = {n: ~pruned.masks[n] for n, _ in twin.named_parameters() if n in pruned.masks}
    with pruned.hold(own):
        for _ in range(2 * IDLED + 3):
            for model, optimizer in ((pruned.model, own), (twin, other)):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                for n, gone in removed.items() if model is twin else ():
                    model.get_parameter(n).grad.masked_fill_(gone, 0.0)
                optimizer.step()
            with torch.no_grad():
                for n, gone in removed.items():
                    twin.get_parameter(n).masked_fill_(gone, 0.0)
            for p, q in zip(pruned.model.parameters(), twin.parameters(), strict=True):
                assert torch.equal(p, q)
    if name.startswith("adam"):  # no slow roots of zero; what stays has its own moments
        for n, gone in removed.items():
            moment = own.state[pruned.model.get_parameter(n)]["exp_avg_sq"]
            assert bool((moment[gone] > 0).all())
            assert float(moment[gone].max()) <= IDLE
            assert torch.equal(
                moment[~gone], other.state[twin.get_parameter(n)]["exp_avg_sq"][~gone]
            )


def test_zeros_follow_parameters_into_another_type():
    _, x, pruned = network()
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.1, momentum=0.9)
    with pruned.hold(optimizer):
        pruned.model.double()
        for _ in range(2):
            pruned.model(x.double()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for parameter in pruned.model.parameters():
                parameter.data += 1
            optimizer.step()
        for value in pruned.model.parameters():
            value.grad = torch.full_like(value, float("inf"))
        optimizer.step()
        assert not broken(pruned.model, pruned.masks)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
)
def test_entries_of_any_width_are_cleared(dtype):
    """Infinite ones too; the others keep every bit."""
    values = torch.full((3, 4), torch.inf, dtype=dtype)
    values[0] = -0.1
    before, mask = values.clone(), torch.arange(12).view(3, 4) % 3 == 0
    clear(values, kept_bits(mask, values))
    assert torch.equal(values[mask], before[mask])
    assert not values[~mask].any()


def test_an_optimizer_of_another_network_is_refused():
    model, x, pruned = network()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"owns none of the 3 pruned parameters .*'layers.0.weigh"):
        pruned.hold(other)
    one = torch.optim.SGD([pruned.model.layers[3].weight], lr=0.1)  # of several optimizers
    pruned.hold(one).remove()
    pruned.model.requires_grad_(False)  # nothing to hold against
    pruned.hold(other).remove()


def test_an_optimizer_with_closures_and_several_groups():
    _, x, pruned = network()
    groups = [{"params": [p], "lr": 0.05} for p in pruned.model.parameters()]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        loss = pruned.model(x).square().mean()
        loss.backward()
        return loss

    with pruned.hold(optimizer):
        for _ in range(3):
            optimizer.step(closure)
            assert not broken(pruned.model, pruned.masks)


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: of the class, without its hooks, and with the real one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_an_optimizer_inside_others_is_found():
    model, x = models.MLP().eval(), torch.randn(8, 12)
    pruned = prunus.prune(model, "magnitude", 0.3, data=x)
    inner = torch.optim.SGD(pruned.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    outer = Wrapper(Wrapper(inner))
    with pruned.hold(outer):
        for _ in range(3):
            pruned.model(x).square().mean().backward()
            outer.step()
            for name, mask in pruned.masks.items():
                assert not bool(pruned.model.get_parameter(name)[~mask].any())
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, .* got Linear\. Pass"):
        pruned.hold(torch.nn.Linear(2, 2))
