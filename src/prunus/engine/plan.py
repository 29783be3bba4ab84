"""`plan`: how much each layer keeps, for a limit on the gap or on what a metric may lose."""

from typing import Any

from torch import nn

from prunus.budget import Budget, Plan
from prunus.engine.prune import prune
from prunus.guarantee import plan as gap_plan
from prunus.hints import Data, Evaluate
from prunus.recipe import Recipe

__all__ = ["plan"]


def plan(
    model: nn.Module,
    limit: float | Budget,
    *,
    kind: str = "predicted",
    method: str = "magnitude",
    delta: float = 0.05,
    relative: bool = True,
    radius: float | None = None,
    data: Data | None = None,
    density: float | None = None,
    recipe: str | Recipe = "magnitude",
    evaluate: Evaluate | None = None,
    **options: Any,  # whatever `prune` takes beside
) -> Plan:
    """How much each layer keeps while the gap, or the loss of a metric, stays within a limit.

    With a number, the limit is one on the gap; what it says and how it is found stands at
    `prunus.theory.gap` and in docs/gap.md. With `Budget(metric=…, drop=…)` the network is pruned by
    `recipe` to one density after another until `evaluate` is `drop` worse, and the plan is that of
    the lowest density within it; its notes say how many evaluations this took.

    Args:
        model: the dense network.
        limit: ε of a gap: of kind "changed" a share of predictions, else a gap; or a budget of
            `drop`.
        kind: of a gap: "predicted" (root mean square gap; no guarantee), "mean_square" (bound on
            the root mean square over the data), "sup" (certificate over a ball) or "changed".
        method: of a gap: "magnitude", or "random" or "random_rescaled" for masks that are not drawn
            yet.
        delta: of a gap: failure probability.
        relative: a gap is a share of the root mean square output on the data.
        radius: of the ball for kind "sup"; the largest distance of the data from their mean if
            None.
        data: batches, as the kind or the recipe needs them.
        density: of a gap: the plan may keep this share of the weights at most.
        recipe: of a drop: a name in `prunus.recipes`, or a `Recipe`; prune by the same one.
        evaluate: of a drop: a function model -> float or dict.
        options: of a drop, as for `prune`.

    Returns:
        a `Plan`, which `prune` takes in the place of a density.

    Raises:
        Unsupported: a module without a rule for a bound, by its name.
        ValueError: an unknown kind or method, data are missing or empty, NaN weights, or no
            density whose metric is within the drop.
        TypeError: options that do not belong to the kind of limit.
    """
    if not isinstance(limit, Budget):
        if evaluate is not None or options:
            given = ["evaluate"] * (evaluate is not None) + sorted(options)
            raise TypeError(
                f"A plan for a gap takes no {', '.join(given)}. For a limit on a metric, give "
                f"Budget(metric=…, drop=…) instead of {limit!r}."
            )
        return gap_plan(
            model, limit, kind=kind, method=method, delta=delta, relative=relative, radius=radius,
            data=data, density=density,
        )  # fmt: skip
    if limit.drop is None:
        raise ValueError(
            f"`plan` takes a budget of drop, got one of {limit.target}: `prune` plans for that by "
            f"itself, and its answer's `.plan` is the plan."
        )
    return prune(model, recipe, limit, data=data, evaluate=evaluate, **options).plan
