"""Probabilities of being kept, in proportion to scores and of a given sum."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["inclusion"]


def inclusion(
    scores: Float[Tensor, " units"], kept: float, *, smallest: float = 0.05
) -> Float[Tensor, " units"]:
    """Probabilities π = min(1, max(π_min, λ · score)) that sum to `kept`, float64.

    With score |w| √S these are the probabilities of least first-order variance
    Σ w² S (1/π − 1) of the output, among those at least π_min. Units with score −∞ have
    π = 0, unless the others are fewer than `kept`.

    Args:
        scores: at least 0, or −∞ for units that an earlier step removed.
        kept: expected number; a whole one can be met exactly by a sample.
        smallest: π_min, which bounds the factor 1/π; never above kept / units.

    Raises:
        ValueError: a score is negative.
    """
    s = scores.detach().to("cpu", torch.float64)
    live = s != -torch.inf
    if bool((s[live] < 0).any()):
        raise ValueError(
            f"sampling in proportion needs scores >= 0, got {float(s[live].min()):g}. Use a score "
            f"such as Sensitivity() or Magnitude()."
        )
    found = torch.zeros_like(s)
    count = int(live.sum())
    if kept >= count:  # all of them, and those that are removed only to make up the number
        found[live] = 1.0
        found[torch.nonzero(~live).flatten()[: int(kept) - count]] = 1.0
        return found
    if kept == 0:
        return found
    own = s[live]
    floor = min(smallest, kept / count)
    if not float(own.max()) > 0:
        found[live] = kept / count
        return found
    low, high = 0.0, 1.0 / max(float(own[own > 0].min()), 1e-300)
    for _ in range(2000):  # scores may lie hundreds of orders apart
        rate = (low + high) / 2
        if float((rate * own).clamp(floor, 1.0).sum()) < kept:
            low = rate
        else:
            high = rate
        if high - low <= 1e-15 * high:
            break
    p = (high * own).clamp(floor, 1.0)
    between = (p > floor) & (p < 1.0)  # λ is exact once it is known who lies between
    rest = kept - float(p[~between].sum())
    if bool(between.any()) and 0 < rest <= int(between.sum()):
        p[between] *= rest / float(p[between].sum())
    elif float(p.sum()) < kept:  # zero scores take what certain units leave
        at_floor = p <= floor
        p[between] = 1.0  # at most a rounding below it
        p[at_floor] += (kept - float(p.sum())) / int(at_floor.sum())
    found[live] = p.clamp(max=1.0)
    return found
