"""`sparsify`: a recipe inside the caller's own training loop."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from prunus.calibration.place import device_of
from prunus.calibration.select import check_ready
from prunus.check import whole
from prunus.courses import COURSES, Course
from prunus.engine.job import State, job_of
from prunus.engine.kinds import unit_of
from prunus.engine.target import Target, target_of
from prunus.hints import Batch
from prunus.modes import private
from prunus.presets import recipes, resolve
from prunus.recipe import Recipe
from prunus.training.attached import check_free, check_parameters, torch_optimizer
from prunus.training.chooser import Chooser, everything
from prunus.training.sparsifier import Sparsifier
from prunus.weights import weight_at

__all__ = ["sparsify"]


def sparsify(
    model: nn.Module,
    recipe: str | Recipe,
    density: Any = None,
    *,
    optimizer: Any,
    steps: int,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
    example: Batch = None,
) -> Sparsifier:
    """Put sparsity into a training loop; the model is changed in place, the loop stays as it is.

    From here on every step of `optimizer` leaves exact zeros outside the masks, whatever momentum,
    weight decay or clipping do, and the masks follow the recipe's course.

    Args:
        model: the network that is about to be trained, or fine-tuned.
        recipe: a name such as "gradual" or "rigl", or a `Recipe` whose schedule is a course
            (`prunus.courses`).
        density: kept / total in (0, 1] at the end; or {glob: density}, a `Budget(density=…)` or a
            `Plan`. None where the granularity fixes it.
        optimizer: what trains the model; None for a loop without one, which calls `.step()`.
        steps: optimizer steps of the whole training.
        layers: names or globs of the layers whose weights (edges) or outputs (nodes) are pruned.
        exclude: names or globs to leave alone.
        seed: of all random draws.
        example: a batch, for recipes for nodes, which trace the network.

    Returns:
        a `Sparsifier`; its `finish()` gives the `Pruned`.

    Raises:
        ValueError: an unknown recipe or one that prunes before or after training, a density outside
            (0, 1], a course without a change of masks in `steps`, an optimizer that does not hold
            the pruned weights, masks that are held already.
        TypeError: no torch model or optimizer.

    Example:
        >>> import torch, prunus
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = prunus.sparsify(model, "gradual", 0.1, optimizer=optimizer, steps=400)
        >>> for _ in range(400):
        ...     loss = model(torch.ones(4, 20)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruned = sparse.finish()
        >>> int((model.weight != 0).sum())
        20
    """
    name, method = resolve(recipe)
    course = method.schedule
    if not isinstance(course, Course):
        known = [key for key in recipes if recipes[key].schedule.inside]
        raise ValueError(
            f"Recipe {name!r} prunes by {course!r}, not inside training. Use prunus.prune, or one "
            f"of {', '.join(known)}, or a Recipe with one of {', '.join(COURSES)} as schedule."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    whole("steps", steps, low=1)
    whole("seed", seed, low=0)
    target = _target(density, method)
    if method.granularity.needs_example and example is None:
        raise ValueError(
            f"Recipe {name!r} removes nodes, and traces the network for what goes together. Pass "
            f"example=, a batch."
        )
    check_ready(model)
    check_free(model)
    inner = torch_optimizer(optimizer)
    with ExitStack() as stack:
        # Whatever runs the network to learn of it runs a twin; without an example nothing does.
        seen = model if example is None else stack.enter_context(private(model))
        job, notes = job_of(
            seen,
            method,
            name,
            None if example is None else [example],
            layers=layers,
            exclude=exclude,
            verifying=None,
            loss=None,
            seed=seed,
            device=device_of(model),
            progress=False,
            memo=None,
            blocks=None,
            keep=None,
        )
        state = State(target=target, planner=method, not_pruned=job.not_pruned)
        unit = unit_of(job, method, state, seen).after(model, {}, {})
    own = dict(model.named_parameters())
    able = {key: own[key] for key in everything(model, unit).masks}
    held = dict.fromkeys(weight_at(model, key).path for key in unit.layers)
    check_parameters(able, [key for key in held if key in able], inner)
    chooser = Chooser(job=job, unit=unit, target=target, course=course)
    return Sparsifier(model, chooser, inner, steps, notes)


def _target(density: Any, recipe: Recipe) -> Target:
    target = target_of(density, recipe)
    if target.budget is not None and target.budget.density is None:
        raise ValueError(
            f"A training follows a density, got a budget of {target.budget.target}. Give a "
            f"density, or a Plan that prunus.plan or a pruning made."
        )
    return target
