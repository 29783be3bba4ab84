"""The subset of given numbers whose sum is nearest to a target: exact, many problems at once."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import as_float64

__all__ = ["MOST_ITEMS", "nearest_single", "nearest_subset"]

MOST_ITEMS = 34  # halves of 2^17 sums
ENUMERATED = 10  # items up to which all sums are formed
CHUNK_BYTES = 2**26  # of sums formed at a time


def nearest_subset(
    items: Any, targets: Any
) -> tuple[Bool[Tensor, "problems items"], Float[Tensor, " problems"]]:
    """For each row of items the subset whose sum is nearest to the row's target.

    Exact. Up to 10 items all 2ⁿ sums are compared; above, the two halves meet in the middle: for
    every sum of one half the best partner among the sorted sums of the other, O(2^(n/2) n) time and
    memory. Of equal distances one is taken, always the same.

    Args:
        items: X (problems, n), 1 ≤ n ≤ 34.
        targets: z (problems,).

    Returns:
        the subsets, and |Σ_S x − z| as summed in float64.

    Raises:
        ValueError: NaN or infinite numbers, shapes that do not fit, no item or more than 34.

    Example:
        >>> mask, error = nearest_subset([[0.5, -0.25, 0.125]], [0.3])
        >>> mask.tolist(), round(float(error[0]), 3)
        ([[True, True, False]], 0.05)

    References:
        Horowitz and Sahni (1974), Computing partitions with applications to the knapsack problem.
    """
    x, z = _problems(items, targets)
    n = x.shape[1]
    solve = _enumerate if n <= ENUMERATED else _meet
    sums = 2**n if n <= ENUMERATED else 2 ** (n - n // 2)
    size = max(1, CHUNK_BYTES // (8 * 4 * sums))
    masks = [solve(x[i : i + size], z[i : i + size]) for i in range(0, len(x), size)]
    mask = torch.cat(masks) if masks else torch.zeros(0, n, dtype=torch.bool)
    return mask, ((x * mask).sum(1) - z).abs()


def nearest_single(
    items: Any, targets: Any
) -> tuple[Bool[Tensor, "problems items"], Float[Tensor, " problems"]]:
    """The one item of each row that is nearest to the row's target, or none where 0 is nearer.

    The polynomial construction of Malach et al. (2020), the baseline of `nearest_subset`.
    """
    x, z = _problems(items, targets)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    distance, place = (x - z[:, None]).abs().min(1)
    better = distance < z.abs()
    mask[better.nonzero()[:, 0], place[better]] = True
    return mask, ((x * mask).sum(1) - z).abs()


def _problems(items: Any, targets: Any) -> tuple[Tensor, Tensor]:
    x = as_float64("items", items, dims=2).cpu()
    z = as_float64("targets", targets, dims=1).cpu()
    if len(x) != len(z):
        raise ValueError(
            f"`targets` must have one number for each of the {len(x)} rows of `items`, got "
            f"{len(z)}."
        )
    n = x.shape[1]
    if n < 1:
        raise ValueError("`items` must have at least one item per problem, got 0.")
    if n > MOST_ITEMS:
        need = 8 * 4 * 2 ** (n - n // 2) / 2**30
        raise ValueError(
            f"`items` must have at most {MOST_ITEMS} items per problem, got {n}: its half sums "
            f"would take {need:.3g} GiB per problem. An error of 1e-6 needs about 25 items."
        )
    return x, z


def _subsets(n: int) -> Float[Tensor, "items subsets"]:
    """All subsets of n items as columns of zeros and ones; column s holds the bits of s."""
    return (torch.arange(2**n)[None] >> torch.arange(n)[:, None] & 1).to(torch.float64)


def _enumerate(x: Tensor, z: Tensor) -> Tensor:
    subsets = _subsets(x.shape[1])
    best = (x @ subsets - z[:, None]).abs().argmin(1)
    return subsets[:, best].T.bool()


def _meet(x: Tensor, z: Tensor) -> Tensor:
    left, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    few, many = _subsets(left.shape[1]), _subsets(right.shape[1])
    sorted_sums, order = (right @ many).sort(1)
    asked = z[:, None] - left @ few
    above = torch.searchsorted(sorted_sums, asked).clamp_(max=sorted_sums.shape[1] - 1)
    below = (above - 1).clamp_(min=0)
    up = (sorted_sums.gather(1, above) - asked).abs_()
    down = (sorted_sums.gather(1, below) - asked).abs_()
    distance = torch.minimum(up, down)
    first = distance.argmin(1, keepdim=True)
    near = torch.where(down.gather(1, first) < up.gather(1, first), below.gather(1, first),
                       above.gather(1, first))  # fmt: skip
    second = order.gather(1, near)[:, 0]
    return torch.cat([few[:, first[:, 0]].T.bool(), many[:, second].T.bool()], 1)
