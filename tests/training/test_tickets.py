"""Lottery tickets: rewinding, its steps and spans, its controls, the line between two networks."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.bench import Dataset, Task, Training, evaluate, fit
from prunus.bench.grid.cell import baselines, schedule_of
from prunus.bench.grid.config import cells
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import finished, run
from prunus.bench.grid.tickets import shuffled
from prunus.recipe import Recipe, parse
from prunus.rng import generator_for
from prunus.schedules import Rewinding
from prunus.training import connection


def data(*, data_dir=None):
    x = torch.randn(120, 6, generator=generator_for(0, "tickets"))
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Dataset(
        name="tickets", x_train=x[:96], y_train=y[:96], x_test=x[96:], y_test=y[96:],
        fingerprint="tickets",
    )  # fmt: skip


QUICK = Training(epochs=4, learning_rate=1e-2, batch=16)


def train(model, data, *, generator, hold=None, span=(0.0, 1.0), progress=None):
    return fit(model, data, QUICK, generator=generator, hold=hold, span=span, progress=progress)


TINY = Task(
    name="training.test_tickets:TINY",
    title="tiny",
    data=data,
    model=lambda: models.MLP((6, 12, 8, 2)),
    train=train,
    retrain=train,
)


def test_steps_of_every_form():
    def told(schedule):
        return [(s.index, s.budget, s.span, bool(s.rewind), s.snapshot) for s in schedule()]

    whole = (0.0, 1.0)
    assert told(Rewinding(rounds=2)) == [
        (0, None, whole, False, False), (1, 0.5, whole, True, False), (2, 1.0, whole, True, False),
    ]  # fmt: skip
    assert told(Rewinding(rounds=1, early=0.1)) == [
        (0, None, (0.0, 0.1), False, True), (1, None, (0.1, 1.0), False, False),
        (2, 1.0, (0.1, 1.0), True, False),
    ]  # fmt: skip
    assert told(Rewinding(rounds=1, early=0.1, what="rate")) == [
        (0, None, whole, False, False), (1, 1.0, (0.1, 1.0), False, False),
    ]  # fmt: skip
    assert repr(Rewinding(rounds=3)) == "Rewinding(rounds=3)"  # as in kept records
    late = Rewinding(rounds=2, early=0.25, what="rate")
    assert parse(repr(late)) == late
    assert [step.last for step in late()] == [False, False, True]
    for fields, message in (
        ({"early": 1.0}, r"^`early` must be a share of the training in \[0, 1\), got 1\.0"),
        ({"early": -0.1}, r"^`early` must be"),
        ({"early": float("nan")}, r"^`early` must be"),
        ({"what": "both"}, r"^Unknown what of Rewinding 'both'"),
    ):
        with pytest.raises(ValueError, match=message):
            Rewinding(**fields)


@pytest.mark.parametrize("what", ["weights", "rate"])
def test_weights_return_to_the_moment_or_stay(what):
    """Late: kept weights begin each round as they were at `early`. Rate: as they were left."""
    begun, left, digits = [], [], data()

    def carry_out(model, step):
        begun.append((step, copy.deepcopy(model.state_dict())))
        train(model, digits, generator=generator_for(0, step.index), span=step.span)
        left.append(copy.deepcopy(model.state_dict()))

    model = models.MLP((6, 12, 8, 2), norm=True)
    recipe = Recipe(schedule=Rewinding(rounds=2, early=0.25, what=what))
    pruned = prunus.prune(model, recipe, 0.25, train=carry_out)
    first = 2 if what == "weights" else 1
    assert len(begun) == first + 2
    for i in range(first, first + 2):
        source = left[0] if what == "weights" else left[i - 1]
        assert begun[i][0].span == (0.25, 1.0)
        for key, value in begun[i][1].items():
            kept = value != 0
            assert torch.equal(value[kept], source[key][kept])
    # Ranked as training has left them, before they return.
    weights = left[first]["layers.0.weight"].abs().flatten()
    largest = set(weights.topk(18).indices.tolist())
    assert set(pruned.masks["layers.0.weight"].flatten().nonzero().flatten().tolist()) <= largest


def test_a_training_in_two_spans_is_the_whole_but_for_the_optimizer():
    """With SGD without momentum nothing is forgotten between them: equal to the bit."""
    tiny, plain = data(), Training(epochs=3, learning_rate=0.05, optimizer="sgd", batch=16)
    parts, seen = [], []

    class Plain(torch.optim.SGD):
        def __init__(self, params, lr, **_):
            super().__init__(params, lr)

    real, torch.optim.SGD = torch.optim.SGD, Plain
    try:
        for spans in ([(0.0, 1.0)], [(0.0, 0.4), (0.4, 1.0)]):
            torch.manual_seed(0)
            model = models.MLP((6, 12, 8, 2))
            rates = []
            for span in spans:
                fit(
                    model, tiny, plain, generator=generator_for(1), span=span,
                    hold=lambda o, rates=rates: o.register_step_pre_hook(
                        lambda o, *_: rates.append(o.param_groups[0]["lr"])
                    ),
                )  # fmt: skip
            parts.append(model.state_dict())
            seen.append(rates)
    finally:
        torch.optim.SGD = real
    assert seen[0] == seen[1]
    assert len(seen[0]) == 18
    assert all(torch.equal(v, parts[1][k]) for k, v in parts[0].items())


def test_masks_are_shuffled_within_their_layers():
    masks = {
        "a": torch.tensor([[True, False]]),
        "b": torch.rand(9, 7) < 0.3,
        "c": torch.ones(3) > 0,
    }
    new = shuffled(masks, generator_for(0))
    assert {k: int(m.sum()) for k, m in new.items()} == {k: int(m.sum()) for k, m in masks.items()}
    assert not torch.equal(new["a"], masks["a"])
    assert not torch.equal(new["b"], masks["b"])
    assert torch.equal(new["c"], masks["c"])
    assert {k: m.shape for k, m in new.items()} == {k: m.shape for k, m in masks.items()}


def test_tickets_come_with_their_controls(tmp_path):
    grid = make_grid({
        "tasks": [TINY.name], "recipes": ["magnitude-global", "importance-node"],
        "densities": [0.25], "seeds": 2, "schedules": [
            "Rewinding(rounds=2)", "Rewinding(rounds=1, early=0.25)",
            "Rewinding(rounds=1, early=0.25, what='rate')",
        ], "without": ["small-dense", "random", "random-layers", "no-retraining"],
    })  # fmt: skip
    every = cells(grid)
    roles = {(c.recipe.partition("(")[0], c.schedule, c.role) for c in every if "Edge" in c.recipe}
    for schedule in grid.schedules:
        controls = {role for _, own, role in roles if own == schedule} - {"prune"}
        assert controls == (set() if "rate" in schedule else {"re-initialised", "shuffled"})
    assert {c.role for c in every if "Node" in c.recipe} == {"prune"}
    one = make_grid({**EASY, "tasks": [TINY.name]})
    run(one, out=tmp_path, progress=False)
    made = finished(tmp_path)
    known = {cell.role: made[cell.id] for cell in cells(one)}
    assert {r.status for r in known.values()} == {"done"}
    ticket, fresh, other = (known[r] for r in ("prune", "re-initialised", "shuffled"))
    assert fresh.extra["masks"] == ticket.extra["masks"] != other.extra["masks"]
    assert ticket.parameters == fresh.parameters == other.parameters
    assert len({r.retrained["cross_entropy"] for r in known.values()}) == 3
    again = finished(run_again(one, tmp_path / "again"))
    assert {k: r.retrained for k, r in made.items()} == {k: r.retrained for k, r in again.items()}


EASY = {
    "recipes": ["magnitude-global"], "densities": [0.25], "seeds": 1,
    "schedules": ["Rewinding(rounds=1, early=0.25)"],
    "without": ["small-dense", "random", "random-layers", "no-retraining"],
}  # fmt: skip


def run_again(grid, folder):
    run(grid, out=folder, progress=False)
    return folder


def test_a_task_whose_trainer_knows_no_span_trains_in_full(tmp_path):
    grid = make_grid({**EASY, "tasks": ["training.test_tickets:SPANLESS"]})
    run(grid, out=tmp_path, progress=False)
    assert {r.status for r in finished(tmp_path).values()} == {"done"}


def spanless(model, data, *, generator, hold=None, progress=None):
    return fit(model, data, QUICK, generator=generator, hold=hold, progress=progress)


SPANLESS = replace(
    TINY, name="training.test_tickets:SPANLESS", train=spanless, retrain=spanless, definition="s"
)


def test_only_schedules_that_rewind_weights_have_controls():
    grid = make_grid({**EASY, "tasks": [TINY.name], "schedules": ["retrain"]})
    assert not {"re-initialised", "shuffled"} & set(baselines(cells(grid)[0]))
    course, trains, from_start = schedule_of("Gradual()")
    assert (course.inside, trains, from_start) == (True, True, True)


def test_the_lottery_recipe_needs_a_training():
    with pytest.raises(ValueError, match=r"trains between its steps\. Pass train="):
        prunus.prune(models.MLP(), "lottery", 0.5)
    assert "lottery+ls" not in prunus.recipes


def line(values):
    """Two networks of one weight, whose error is a function of it."""
    ends = []
    for value in values:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, value)
        ends.append(model)
    return ends


def test_the_barrier_is_that_of_the_definition():
    one, other = line([1.0, -1.0])

    def error(model):  # a hill between the two, lower on the side of `other`
        return 10 - 8 * model.weight.item() ** 2 + model.weight.item()

    found = connection(one, other, error)
    assert found.errors == {0.0: 1.0, 0.25: 7.5, 0.5: 10.0, 0.75: 8.5, 1.0: 3.0}
    assert found.barrier == 10.0 - 2.0
    assert connection(one, one, error).barrier == 0.0
    with pytest.raises(ValueError, match=r"^The two networks have other parameters"):
        connection(one, nn.Linear(2, 1), error)
    with pytest.raises(ValueError, match=r"^`points` must lie in \(0, 1\)"):
        connection(one, other, error, points=[1.0])
    with pytest.raises(ValueError, match=r"`points` must hold a share in \(0, 1\), got none"):
        connection(one, other, error, points=[])
    apart = {0.5: math.nan}  # what is in between has come apart: nothing is worse
    shares = iter([1.0, 0.0, 0.25, 0.5, 0.75])
    broken = connection(one, other, lambda _: apart.get(share := next(shares), share))
    assert broken.barrier == math.inf


def test_batch_norm_between_networks_gets_its_own_statistics():
    """Two equal networks whose hidden units are permuted: statistics of the middle from data."""
    torch.manual_seed(0)
    one, x = models.MLP((6, 12, 8, 2), norm=True).train(), torch.randn(64, 6) * 3 + 1
    other = models.MLP((6, 12, 8, 2), norm=True).train()
    for model in (one, other):
        for _ in range(40):
            model(x)
        model.eval()
    seen = {}

    def error(model):
        with torch.no_grad():
            hidden = model.layers[0](x)
        norm = model.layers[1]
        seen[model] = float((norm.running_mean - hidden.mean(0)).abs().max())
        return 0.0

    with pytest.raises(ValueError, match=r"^Between two networks the statistics of batch norm"):
        connection(one, other, error)
    before = copy.deepcopy(one.state_dict())
    connection(one, other, error, data=[x[:32], x[32:]])
    (middle,) = (model for model in seen if model not in (one, other))
    assert seen[middle] < 1e-5
    assert not any(module.training for module in middle.modules())
    assert all(torch.equal(v, before[k]) for k, v in one.state_dict().items())
    assert evaluate(middle, data())["test_error"] >= 0
