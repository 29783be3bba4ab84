"""Grids of courses: masks that change inside a task's training, at equal cost, and distillation."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

import bench_tiny
import models
import prunus
from prunus.bench import Distil, Task, Training, fit, fresh_model
from prunus.bench.data import tasks
from prunus.bench.data.tasks import steps_of, trainer
from prunus.bench.grid.cell import baselines
from prunus.bench.grid.config import cells
from prunus.bench.grid.inside import share_of
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import finished, run
from prunus.courses import Gradual
from prunus.rng import generator_for
from prunus.schedules import AtInit, Rewinding
from prunus.training import distillation

QUICK = Training(epochs=6, learning_rate=1e-2, batch=16)  # of 80 samples: 30 steps
TINY = Task(
    name="bench.test_inside:TINY",
    title="tiny",
    data=bench_tiny.data,
    model=partial(models.MLP, (6, 12, 8, 2)),
    train=trainer(QUICK),
    retrain=trainer(replace(QUICK, epochs=2)),
    steps=steps_of(QUICK),
)
OFF = ["small-dense", "no-retraining", "random", "random-layers"]
GRADUAL = {
    "name": "gradual, often",
    "recipe": "Recipe(allocation=Global(), schedule=Gradual(every=5))",
}
EASY = {"tasks": [TINY.name], "recipes": [GRADUAL], "densities": [0.3], "seeds": 1, "without": OFF}


def made(values, folder):
    """{(label, role): record} of a grid that was run."""
    grid = make_grid(values)
    run(grid, out=folder, progress=False)
    found = finished(folder)
    records = {(c.label, c.role): found[c.id] for c in cells(grid)}
    assert {r.status for r in records.values()} == {"done"}, [r.traceback for r in found.values()]
    return records


def test_a_cell_is_the_training_by_hand(tmp_path):
    """The same network, order of samples and course in a plain loop give the record's scores."""
    [record] = made(EASY, tmp_path).values()
    model, data = fresh_model(TINY, 0), TINY.data()
    recipe = replace(prunus.recipes["gradual"], schedule=Gradual(every=5))
    held = []

    def tie(optimizer):
        held.append(prunus.sparsify(model, recipe, 0.3, optimizer=optimizer, steps=30))

    fit(model, data, QUICK, generator=generator_for(0, "training", TINY.name), hold=tie)
    pruned = held[0].finish(strict=True)
    assert record.retrained == TINY.evaluate(pruned.model, data)
    assert record.retrained == record.after
    kept = sum(int(r.mask.sum()) for r in pruned.layers.values())
    assert record.density == kept / (6 * 12 + 12 * 8 + 8 * 2) == pruned.cost_after.density
    assert record.macs[1] < record.macs[0]
    assert record.schedule == repr(recipe.schedule)


def test_recipes_bring_their_own_schedules_and_controls(tmp_path):
    values = {
        **EASY, "recipes": [
            GRADUAL, "magnitude",
            {"name": "rigl", "recipe": "Recipe(score=Constant(), allocation=ERK(), "
             "selection=RandomK(), schedule=Dynamic(every=5, grow=GradientGrowth()))"},
            {"name": "filters", "recipe": "Recipe(granularity=Node(), score=Magnitude("
             "side='producer', reduction='l2'), schedule=Gradual(every=5, soft=True))"},
            {"name": "movement", "recipe": "Recipe(score=Movement(), "
             "schedule=Gradual(every=5, soft=True))"},
        ], "without": ["small-dense"],
    }  # fmt: skip
    records = made(values, tmp_path)
    schedules = {label: r.schedule.partition("(")[0] for (label, _), r in records.items()}
    assert schedules == {
        "gradual, often": "Gradual", "rigl": "Dynamic", "filters": "Gradual", "magnitude": "none",
        "movement": "Gradual",
        "random-edge": "none", "static random-edge": "Static", "static random-node": "Static",
        "random in the layers of gradual, often": "Gradual",
        "random in the layers of rigl": "Dynamic",
    }  # fmt: skip
    twin = records["random in the layers of gradual, often", "random-layers"]
    own = records["gradual, often", "prune"]
    assert twin.parameters == own.parameters
    assert twin.layer_density == own.layer_density  # drawn at the start, with as many
    assert twin.extra["masks"] != own.extra["masks"]
    assert own.extra["baselines"].keys() == {"random", "random-layers", "small-dense"}


def test_all_trainings_of_a_schedule_take_one_training_together(tmp_path, monkeypatch):
    assert share_of(Rewinding(rounds=2)) == pytest.approx(1 / 3)
    assert share_of(Rewinding(rounds=1, early=0.25)) == pytest.approx(1 / 1.75)
    assert share_of(AtInit()) == share_of(Gradual()) == 1.0
    steps = []
    monkeypatch.setattr(tasks, "fit", counted(steps))
    lottery = "Recipe(allocation=Global(), schedule=Rewinding(rounds=2))"
    values = {**EASY, "recipes": [GRADUAL, {"name": "lottery", "recipe": lottery}]}
    records = made({**values, "equal_training": True}, tmp_path)
    assert {role for _, role in records} == {"prune", "re-initialised", "shuffled"}
    # A ticket's three, again for its two controls, and theirs; the dense network may be cached.
    assert sorted(steps) in ([2] * 8 + [6], [2] * 8 + [6, 6])
    assert records["lottery", "prune"].id not in finished_ids(values, tmp_path / "plain")


def counted(epochs):
    def counting(model, data, training, **options):
        epochs.append(training.epochs)
        return fit(model, data, training, **options)

    return counting


def finished_ids(values, folder):
    return {cell.id for cell in cells(make_grid(values))}


@pytest.mark.parametrize("schedule", ["retrain", "Gradual(every=5)"])
def test_trainings_ask_for_the_dense_networks_outputs(schedule, tmp_path):
    values = {**EASY, "recipes": ["magnitude"], "schedules": [schedule]}
    values |= {"without": [*OFF[:-2], "random", "random-layers"]}
    plain = made(values, tmp_path / "plain")
    asked = made({**values, "distil": [2.0, 0.75]}, tmp_path / "asked")
    [one], [other] = plain.values(), asked.values()
    assert one.before == other.before  # the dense network is trained as ever
    assert one.retrained["cross_entropy"] != other.retrained["cross_entropy"]
    assert one.id != other.id
    none = made({**values, "distil": [2.0, 0.0]}, tmp_path / "none")
    [third] = none.values()
    assert third.retrained == one.retrained  # labels alone


def test_fit_distils_as_a_plain_loop_does():
    data = TINY.data()
    teacher = fresh_model(TINY, 3)
    one, other = fresh_model(TINY, 1), fresh_model(TINY, 1)
    training = Training(epochs=1, learning_rate=0.05, batch=80, optimizer="sgd", decay="constant",
                        distil=Distil(3.0, 0.6))  # fmt: skip
    fit(one, data, training, generator=generator_for(0), teacher=teacher)
    order = torch.randperm(80, generator=generator_for(0))
    x, y = data.x_train[order], data.y_train[order]
    loss = distillation(copy.deepcopy(teacher), temperature=3.0, weight=0.6)
    optimizer = torch.optim.SGD(other.parameters(), 0.05, momentum=0.9, nesterov=True)
    other.train()
    loss(other(x), (x, y)).backward()
    optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"^Distil\(temperature=3\.0, weight=0\.6\) needs a teach"):
        fit(one, data, training, generator=generator_for(0))
    assert "distil" not in repr(QUICK)  # tasks' definitions, and so cached networks, stay
    assert repr(training).endswith("distil=Distil(temperature=3.0, weight=0.6))")
    with pytest.raises(ValueError, match=r"^`weight` must lie in \[0, 1\], got 2"):
        Distil(weight=2)


def silent(model, data, *, generator, hold=None, progress=None):
    """A trainer that takes nothing more, and says no steps."""
    return fit(model, data, QUICK, generator=generator, hold=hold)


SILENT = replace(TINY, name="bench.test_inside:SILENT", train=silent, retrain=silent, steps=None)


def test_what_does_not_go_together_is_said_before_anything_runs():
    values = {
        **EASY, "tasks": [TINY.name, SILENT.name], "recipes": ["wanda", "magnitude"],
        "densities": [], "budgets": [{"parameters": 100}], "equal_training": True,
        "schedules": ["Gradual()", "retrain"],
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        make_grid(values)
    said = str(caught.value)
    for words in (
        "wanda with Gradual(", "reads statistics of data, which a training does not collect",
        "magnitude with Gradual(", "a training follows a density, got a budget of parameters",
        f"{SILENT.name}: the task does not give its `steps`",
        "equal_training: retrain begins from a trained network",
    ):  # fmt: skip
        assert words in said
    for distil in ([1.0], "soft", [0.0, 0.5], [4.0, 1.5], ["hot", 0.5], [[4.0], 0.5], {"T": 4}):
        with pytest.raises(ValueError, match=r"distil: "):
            make_grid({**EASY, "distil": distil})


def test_what_a_trainer_cannot_do_is_a_failed_record(tmp_path):
    for number, (values, words) in enumerate((
        ({"schedules": ["retrain"], "recipes": ["magnitude"], "distil": [4.0, 0.9]},
         "The trainer of bench.test_inside:SILENT takes no `distil`"),
        ({"recipes": [{"name": "x", "recipe": "Recipe(schedule=Rewinding(rounds=2))"}],
          "equal_training": True, "without": [*OFF, "re-initialised", "shuffled"]},
         "takes no `share`"),
    )):  # fmt: skip
        grid = make_grid({**EASY, "tasks": [SILENT.name], **values})
        run(grid, out=tmp_path / str(number), progress=False)
        [record] = finished(tmp_path / str(number)).values()
        assert words in record.traceback
    four = {"name": "x", "recipe": "Recipe(schedule=Rewinding(rounds=3))"}
    grid = make_grid({
        **EASY, "recipes": [four], "equal_training": True,
        "without": [*OFF, "re-initialised", "shuffled"],
    })  # fmt: skip
    run(grid, out=tmp_path / "share", progress=False)
    [record] = finished(tmp_path / "share").values()
    assert "0.25 of 6 epochs are 1.5, no whole number" in record.traceback


def test_a_task_that_counts_its_steps_wrong_is_told(tmp_path):
    grid = make_grid({**EASY, "tasks": ["bench.test_inside:TWICE"]})
    run(grid, out=tmp_path, progress=False)
    [record] = finished(tmp_path).values()
    assert "says that its training takes 60 steps, and it took 30" in record.traceback


TWICE = replace(TINY, name="bench.test_inside:TWICE", steps=lambda data: 60)


def test_baselines_inside_training_are_static():
    [cell] = cells(make_grid(EASY))
    found = baselines(cell)
    assert found.keys() == {"random", "random-layers", "small-dense"}
    assert found["random"].schedule == "Static()"
    assert found["small-dense"].schedule == "none"  # one training, as the cell has
