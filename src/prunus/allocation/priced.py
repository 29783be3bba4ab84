"""Units ranked by what they are worth for what they cost."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.allocation.growth import CostOf, Growth, Kept, Pools
from prunus.check import unknown

__all__ = ["COSTS", "checked_cost", "priced_growth", "priced_scores"]

COSTS = ("macs", "parameters", "latency")
RENEWALS = 64  # how often the savings are counted anew on the way down


def checked_cost(per: str | None) -> None:
    """Raise a ValueError for a cost that units cannot be priced by."""
    if per is not None and per not in COSTS:
        raise unknown("cost to rank by", str(per), COSTS)


def priced_scores(pools: Pools, cost: CostOf, per: str) -> dict[str, Tensor]:
    """Scores of single weights over what one of them costs in its layer.

    Raises:
        ValueError: a negative score, latencies of single weights, or multiply-adds without an
            example.
    """
    if per == "latency":
        raise ValueError("Zeros inside a dense weight save no time. Rank by 'macs', or use Node().")
    _check_scores(pools)
    full = _full(pools)
    whole = _spent(cost, full, per)
    found = {}
    for name, scores in pools.items():
        fewer = {**full, name: torch.zeros_like(full[name])}
        each = (whole - _spent(cost, fewer, per)) / max(1, int(full[name].sum()))
        found[name] = scores.to(torch.float64) / each if each > 0 else scores.to(torch.float64)
    return found


def priced_growth(pools: Pools, minimum: int, cost: CostOf, per: str) -> Growth:
    """Plans of channel classes, from the dense one down by the least score for what it saves.

    Each time the class goes whose score over the cost that it saves at the present plan is least
    (the greedy rule of the knapsack problem, within one class of the best for additive scores and
    costs). Savings change as neighbours shrink; they are counted anew 64 times on the way, at every
    class in networks of fewer. Latencies are measured once, for half of each group.

    Returns:
        as `ranked_growth`.

    Raises:
        ValueError: a negative score, or multiply-adds without an example.
    """
    _check_scores(pools)
    kept = {name: int(scores.shape[1]) for name, scores in pools.items()}
    floor = {name: min(minimum, size) for name, size in kept.items()}
    rising = {
        name: scores[0].detach().to("cpu", torch.float64).sort(descending=True, stable=True).values
        for name, scores in pools.items()
    }
    total, low = sum(kept.values()), sum(floor.values())
    every = max(1, (total - low) // RENEWALS)
    removed: list[str] = []
    saving: dict[str, float] = {}
    while sum(kept.values()) > low:
        if len(removed) % every == 0 and (per != "latency" or not removed):
            saving = _savings(kept, floor, cost, per)
        open_ = [name for name in kept if kept[name] > floor[name]]
        cheapest = min(open_, key=lambda name: _price(rising[name][kept[name] - 1], saving[name]))
        kept[cheapest] -= 1
        removed.append(cheapest)
    joining = removed[::-1]
    names = list(pools)

    def plan_at(k: int) -> dict[str, Tensor]:
        counts = dict(floor)
        for name in joining[: max(0, k - low)]:
            counts[name] += 1
        return {name: torch.tensor([counts[name]]) for name in names}

    return plan_at, low, total


def _price(score: Tensor, saving: float) -> float:
    """−∞ for what is gone already; what saves nothing goes last."""
    value = float(score)
    if value == -torch.inf:
        return value
    return value / saving if saving > 0 else float("inf")


def _savings(
    kept: Mapping[str, int], floor: Mapping[str, int], cost: CostOf, per: str
) -> dict[str, float]:
    """What one class less of each group saves at this plan."""
    whole = _spent(cost, _tensors(kept), per)
    found = {}
    for name, count in kept.items():
        step = min(count - floor[name], max(1, cost.multiple_of))
        if per == "latency":
            step = max(step, (count - floor[name]) // 2)
        if step <= 0:
            found[name] = 0.0
            continue
        fewer = _spent(cost, _tensors({**kept, name: count - step}), per)
        found[name] = max(0.0, (whole - fewer) / step)
    return found


def _spent(cost: CostOf, kept: Kept, per: str) -> float:
    spent = getattr(cost(kept), "latency_share" if per == "latency" else per)
    if spent is None:
        what = (
            "a Budget(latency=…)" if per == "latency" else "`data`, whose first batch is an example"
        )
        raise ValueError(f"Ranking by {per} needs {what}. Pass it, or rank by 'parameters'.")
    return float(spent)


def _tensors(kept: Mapping[str, int]) -> dict[str, Tensor]:
    return {name: torch.tensor([count]) for name, count in kept.items()}


def _full(pools: Pools) -> dict[str, Tensor]:
    return {name: torch.full((s.shape[0],), s.shape[1]) for name, s in pools.items()}


def _check_scores(pools: Pools) -> None:
    for name, scores in pools.items():
        alive = scores[scores > -torch.inf]
        if bool((alive < 0).any()):
            raise ValueError(
                f"Scores are ranked by what they cost, so they must be >= 0, got "
                f"{float(alive.min()):.3g} in {name!r}. Take another score, or per=None."
            )
