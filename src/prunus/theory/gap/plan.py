"""From a limit on the gap to how much each layer keeps: the separable problem, and L1 plans."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunus.check import positive, whole
from prunus.theory.gap.activations import Activation
from prunus.theory.gap.apriori import product_route
from prunus.theory.gap.laws import Law, Method
from prunus.theory.gap.network import LayerShape, norm_bound, random_network, threshold_of

__all__ = ["Allocation", "allocate", "dual_bound", "pruned_grid", "sup_plan", "tighten"]

Array = NDArray[np.float64]
UNITS = 4000
EXCHANGED = 20  # layers up to which pairs are exchanged


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Which option each layer takes.

    Attributes:
        choices: index of the option per layer.
        cost: Σ of the chosen costs.
        error: Σ of the chosen errors, at most the budget.
        dual: a lower bound on the cost of any allocation within the budget.
    """

    choices: tuple[int, ...]
    cost: float
    error: float
    dual: float


def pruned_grid(points: int = 120, smallest: float = 1e-5) -> Array:
    """Pruned shares 0 and `points` geometric steps up to 1."""
    return np.concatenate([[0.0], np.geomspace(smallest, 1.0, points)])


def allocate(
    costs: Sequence[Array], errors: Sequence[Array], budget: float, *, units: int = UNITS
) -> Allocation:
    """Least Σ cost with Σ error ≤ budget, one option per layer.

    Dynamic programme over the budget in `units` steps with errors rounded up, so every plan is
    feasible and optimal for the budget E(1 − l / units); then a greedy fill with the true errors,
    and never worse than the best allocation that gives all layers options of the same place.

    Args:
        costs: kept weights of each option, per layer; the first option prunes nothing.
        errors: error of each option, per layer; 0 for the first, made monotone upwards.
        budget: E ≥ 0.
        units: Q.
    """
    limit = positive("budget", budget, zero=True)
    steps = whole("units", units, low=1)
    if not costs or len(costs) != len(errors):
        raise ValueError(f"`costs` and `errors` need one row per layer, got {len(costs)} and "
                         f"{len(errors)}.")  # fmt: skip
    kept = [np.asarray(c, dtype=np.float64) for c in costs]
    risks = [np.maximum.accumulate(np.asarray(e, dtype=np.float64)) for e in errors]
    for i, (c, e) in enumerate(zip(kept, risks, strict=True)):
        if c.shape != e.shape or e[0] != 0 or not np.isfinite(c).all() or np.isnan(e).any():
            raise ValueError(
                f"layer {i}: costs and errors must match and start with an option of error 0, got "
                f"shapes {c.shape} and {e.shape}, first error {e[0]}."
            )
    candidates = [tuple(0 for _ in kept)]
    if limit > 0:
        candidates.append(_dynamic(kept, risks, limit, steps))
        for part in (1 / 3, 2 / 3, 1):  # give the rounding back, where the true errors allow it
            hopeful = _dynamic(kept, risks, limit * (1 + part * len(kept) / steps), steps)
            if _total(risks, hopeful) <= limit:
                candidates.append(hopeful)
    shortest = min(len(c) for c in kept)
    uniform = [
        tuple([g] * len(kept)) for g in range(shortest) if sum(float(e[g]) for e in risks) <= limit
    ]
    candidates += uniform
    filled = [
        _exchange(kept, risks, _fill(kept, risks, choice, limit), limit)
        for choice in candidates[:5]
    ]
    filled += [_fill(kept, risks, choice, limit) for choice in candidates[5:]]
    best = min(filled, key=lambda choice: _total(kept, choice))
    return Allocation(
        choices=best,
        cost=_total(kept, best),
        error=_total(risks, best),
        dual=dual_bound(kept, risks, limit),
    )


def _total(rows: Sequence[Array], choice: Sequence[int]) -> float:
    return sum(float(row[g]) for row, g in zip(rows, choice, strict=True))


def _dynamic(
    costs: Sequence[Array], errors: Sequence[Array], limit: float, steps: int
) -> tuple[int, ...]:
    best = np.zeros(steps + 1)
    taken: list[NDArray[np.int64]] = []
    rounded = []
    for cost, error in zip(costs, errors, strict=True):
        sizes = np.minimum(np.ceil(error / limit * steps - 1e-9), steps + 1).astype(int)
        rounded.append(sizes)
        new = np.full(steps + 1, np.inf)
        choice = np.zeros(steps + 1, dtype=np.int64)
        for g, size in enumerate(sizes):
            if size > steps:
                continue
            trial = np.full(steps + 1, np.inf)
            trial[size:] = best[: steps + 1 - size] + cost[g]
            better = trial < new
            new[better], choice[better] = trial[better], g
        best = new
        taken.append(choice)
    at, choices = steps, []
    for i in reversed(range(len(costs))):
        g = int(taken[i][at])
        choices.append(g)
        at -= int(rounded[i][g])
    found = tuple(reversed(choices))
    while _total(errors, found) > limit:  # only the last rounding bit can bring this about
        worst = max(range(len(found)), key=lambda i: float(errors[i][found[i]]))
        found = tuple(g - (i == worst) for i, g in enumerate(found))
    return found


def _fill(
    costs: Sequence[Array], errors: Sequence[Array], choice: tuple[int, ...], limit: float
) -> tuple[int, ...]:
    """Move single layers to cheaper options while the true errors allow it."""
    current = list(choice)
    used = _total(errors, current)
    while True:
        best, move = 0.0, None
        for i, g in enumerate(current):
            room = limit - used + float(errors[i][g])
            allowed = np.flatnonzero(errors[i] <= room)
            if not len(allowed):
                continue
            to = int(allowed[np.argmin(costs[i][allowed])])
            gain = float(costs[i][g] - costs[i][to])
            if gain > best:
                trial = [*current[:i], to, *current[i + 1 :]]
                if _total(errors, trial) <= limit:
                    best, move = gain, (i, to)
        if move is None:
            return tuple(current)
        current[move[0]] = move[1]
        used = _total(errors, current)


def _exchange(
    costs: Sequence[Array], errors: Sequence[Array], choice: tuple[int, ...], limit: float
) -> tuple[int, ...]:
    """Re-choose pairs of layers together until no pair gains; for few layers only."""
    current = list(choice)
    if len(current) > EXCHANGED:
        return choice
    improved = True
    while improved:
        improved = False
        for i in range(len(current)):
            for j in range(i + 1, len(current)):
                others = sum(float(errors[k][g]) for k, g in enumerate(current) if k not in (i, j))
                together = errors[i][:, None] + errors[j][None, :]
                cost = costs[i][:, None] + costs[j][None, :]
                cost = np.where(together <= limit - others, cost, np.inf)
                a, b = divmod(int(cost.argmin()), cost.shape[1])
                now = float(costs[i][current[i]] + costs[j][current[j]])
                trial = [a if k == i else b if k == j else g for k, g in enumerate(current)]
                if cost[a, b] < now * (1 - 1e-12) and _total(errors, trial) <= limit:
                    current, improved = trial, True
    return tuple(current)


def dual_bound(costs: Sequence[Array], errors: Sequence[Array], budget: float) -> float:
    """max over λ ≥ 0 of Σ min_g (cost + λ error) − λ E: no allocation within E costs less."""

    def value(rate: float) -> float:
        return (
            sum(float((c + rate * e).min()) for c, e in zip(costs, errors, strict=True))
            - rate * budget
        )

    finite = [np.where(np.isfinite(e), e, 1e300) for e in errors]
    errors = finite
    largest = max(float(c.max()) for c in costs)
    positive_errors = [float(e[e > 0].min()) for e in errors if (e > 0).any()]
    if not positive_errors:
        return value(0.0)
    high = 10 * largest * len(costs) / min(positive_errors)
    # concave in λ: golden-section search over ln λ, every point of which is a valid bound
    low_log, high_log = math.log(high) - 60, math.log(high)
    ratio = (math.sqrt(5) - 1) / 2
    best = value(0.0)
    for _ in range(120):
        left = high_log - ratio * (high_log - low_log)
        right = low_log + ratio * (high_log - low_log)
        at_left, at_right = value(math.exp(left)), value(math.exp(right))
        best = max(best, at_left, at_right)
        if at_left >= at_right:
            high_log = right
        else:
            low_log = left
    return best


def tighten(
    solve: Callable[[float], tuple[int, ...]],
    exact: Callable[[tuple[int, ...]], float],
    cost: Callable[[tuple[int, ...]], float],
    limit: float,
    start: float,
    *,
    evaluations: int = 20,
    largest: float = 1e6,
) -> tuple[int, ...]:
    """Inflate the separable budget as far as the exact value stays within the limit.

    Args:
        solve: choices for a separable budget.
        exact: the true value of choices.
        cost: of choices, less is better.
        limit: on the exact value.
        start: separable budget to begin with.
        evaluations: of `exact`.
        largest: inflation factor tried at most.
    """
    best = solve(start)
    if exact(best) > limit:  # predictions need not be conservative: shrink first
        low, high = 0.0, 1.0
        best = solve(0.0)
    else:
        low, high = 1.0, 2.0
        while evaluations > 0 and high < largest:
            evaluations -= 1
            trial = solve(start * high)
            if exact(trial) > limit:
                break
            if cost(trial) < cost(best):
                best = trial
            low, high = high, 2 * high
    for _ in range(evaluations):
        middle = (low + high) / 2
        trial = solve(start * middle)
        if exact(trial) <= limit:
            low = middle
            if cost(trial) < cost(best):
                best = trial
        else:
            high = middle
        if high - low < 1e-3 * high:
            break
    return best


def sup_plan(
    widths: Sequence[int] | Sequence[LayerShape],
    limit: float,
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "magnitude",
    delta: float = 0.05,
    radius: float = 1.0,
    points: int = 120,
) -> tuple[float, ...]:
    """Densities that prune most while the a-priori sup bound (product route) stays ≤ limit.

    Separable form B Δ_i(q_i) ∏_{j≠i} w_j on a grid of pruned shares, solved by `allocate`, then
    checked with the exact bound and inflated by bisection; never worse than a uniform density.
    """
    epsilon = positive("limit", limit, zero=True)
    whole_net = random_network(widths, 1.0, laws=laws, activations=activations, method=method)
    count = len(whole_net.shapes)
    share = delta / ((3 + (method == "magnitude")) * count)
    grid = pruned_grid(points)
    if method == "random_rescaled":
        grid = grid[grid < 1]
    norms = [norm_bound(s, law, share, part="dense") for s, law in
             zip(whole_net.shapes, whole_net.laws, strict=True)]  # fmt: skip
    costs, errors = [], []
    shares = [np.floor(grid * shape.total) / shape.total for shape in whole_net.shapes]
    for i, (shape, law) in enumerate(zip(whole_net.shapes, whole_net.laws, strict=True)):
        others = math.prod(norms[:i]) * math.prod(norms[i + 1 :])
        gains = math.prod(phi.lipschitz for phi in whole_net.activations)
        gains *= math.prod(s.gain for s in whole_net.shapes)
        costs.append(shape.total * (1 - shares[i]))
        curve = [_difference(shape, law, share, method, float(1 - q)) for q in shares[i]]
        errors.append(radius * others * gains * np.array(curve))

    def densities(choice: tuple[int, ...]) -> list[float]:
        return [float(1 - q[g]) for q, g in zip(shares, choice, strict=True)]

    def exact(choice: tuple[int, ...]) -> float:
        network = random_network(
            whole_net.shapes,
            densities(choice),
            laws=whole_net.laws,
            activations=whole_net.activations,
            method=method,
        )
        return product_route(network, delta, radius).value

    def solve(budget: float) -> tuple[int, ...]:
        return allocate(costs, errors, budget).choices

    def cost(choice: tuple[int, ...]) -> float:
        return _total(costs, choice)

    found = tighten(solve, exact, cost, epsilon, epsilon)
    uniform = [tuple([g] * count) for g in range(len(grid))]
    low, high = 0, len(uniform)
    while high - low > 1:  # the exact bound does not fall along the grid
        middle = (low + high) // 2
        low, high = (middle, high) if exact(uniform[middle]) <= epsilon else (low, middle)
    return tuple(densities(min(found, uniform[low], key=cost)))


def _difference(shape: LayerShape, law: Law, share: float, method: Method, p: float) -> float:
    if method != "magnitude":
        return norm_bound(shape, law, share, method, p, "pruned")
    cut = threshold_of(shape, law, p, share)
    return norm_bound(shape, law, share, method, 0.0, "pruned", cut)
