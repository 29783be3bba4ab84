"""Cells whose masks change inside a training, and what a cell asks of its task's trainer."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import Task, Train, task
from prunus.bench.data.train import Distil
from prunus.bench.grid.budgets import Target, budget_of
from prunus.bench.grid.cell import Cell, recipe_of, schedule_of
from prunus.budget import Budget
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.rng import generator_for
from prunus.schedules import Schedule, steps_of
from prunus.training import sparsify

__all__ = ["asked_of", "pruned_inside", "share_of", "unfit_schedules"]


def share_of(schedule: Schedule) -> float:
    """The share of a training that each of a schedule's may have, so that all together are one."""
    if schedule.inside:
        return 1.0
    return 1.0 / sum(s.span[1] - s.span[0] for s in steps_of(schedule) if s.train)


def asked_of(train: Train, cell: Cell, dense: nn.Module | None) -> dict[str, Any]:
    """What the cell's settings ask of a trainer, beside the part of a training.

    Args:
        train: of a task.
        cell: whose settings count.
        dense: the teacher, where the cell distils.

    Raises:
        ValueError: it takes no such argument.
    """
    found: dict[str, Any] = {}
    if cell.settings.equal_training:
        schedule, _, _ = schedule_of(cell.schedule)
        if (share := share_of(schedule)) != 1.0:
            found["share"] = share
    if cell.settings.distil is not None:
        found |= {"distil": Distil(*cell.settings.distil), "teacher": dense}
    known = inspect.signature(train).parameters
    for name in found:
        if name not in known:
            raise ValueError(
                f"The trainer of {cell.task} takes no `{name}`, which the grid asks for "
                f"(equal_training, distil). Let it take one; see prunus.bench.Task."
            )
    return found


def pruned_inside(
    chosen: Task,
    data: Dataset,
    cell: Cell,
    model: nn.Module,
    recipe: Recipe,
    target: Target,
    dense: nn.Module | None,
) -> Pruned:
    """A fresh network trained once, its masks changing by the recipe's course.

    Raises:
        ValueError: the training took another number of steps than the task says.
    """
    steps = _steps_of(chosen, data)
    made: list[Any] = []

    def tie(optimizer: torch.optim.Optimizer) -> None:
        made.append(
            sparsify(
                model, recipe, target, optimizer=optimizer, steps=steps, seed=cell.seed,
                layers=cell.settings.layers, exclude=cell.settings.exclude,
                example=data.x_train[:8].to(cell.settings.device),
            )
        )  # fmt: skip

    generator = generator_for(cell.seed, "training", cell.task)
    more = asked_of(chosen.train, cell, dense)
    chosen.train(model, data, generator=generator, hold=tie, progress=False, **more)
    [sparse] = made
    if sparse.step_count != steps:
        raise ValueError(
            f"Task {chosen.name} says that its training takes {steps} steps, and it took "
            f"{sparse.step_count}. Mend its `steps`."
        )
    model.eval()
    done: Pruned = sparse.finish(strict=True)
    return done


def _steps_of(chosen: Task, data: Dataset) -> int:
    if chosen.steps is None:
        raise ValueError(
            f"Task {chosen.name} does not say how many optimizer steps its training takes, which "
            f"a course needs. Give it `steps`, a function of the data set."
        )
    return chosen.steps(data)


def unfit_schedules(
    tasks: Sequence[str],
    asked: Iterable[tuple[str, str, str, str]],
    *,
    equal: bool,
    train: bool,
) -> list[str]:
    """What of (label, recipe, schedule, budget) cannot be carried out, each reason once."""
    mistakes: list[str] = []
    for label, recipe, text, budget in asked:
        schedule, trains, from_start = schedule_of(text)
        needed = text == "retrain" or from_start or (trains and schedule.trains)
        if needed and not train:
            mistakes.append(
                f"train: {text} is not without a training. Leave `train` out, or take schedules "
                f"that prune a trained network alone, such as none and Refine(rounds=5)."
            )
        try:
            replace(recipe_of(recipe), schedule=schedule)
        except ValueError as error:
            mistakes.append(f"{label} with {text}: {error}")
        if equal and not from_start:
            mistakes.append(
                f"equal_training: {text} begins from a trained network. Leave it out, or take "
                f"schedules from untrained weights."
            )
        if not schedule.inside:
            continue
        target = budget_of(budget)
        if isinstance(target, Budget) and target.density is None:
            mistakes.append(
                f"{label} with {text}: a training follows a density, got a budget of "
                f"{target.target}."
            )
        mistakes += [
            f"{name}: the task does not give its `steps`, which {text} needs."
            for name in tasks
            if task(name).steps is None
        ]
    return list(dict.fromkeys(mistakes))
