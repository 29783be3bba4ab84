"""How many random items meet any weight: a law for subset sums, and the count for single items."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from prunus.check import fraction, positive, unknown, whole
from prunus.rng import generator_for
from prunus.theory.subset_sum.solver import MOST_ITEMS

__all__ = [
    "ITEMS",
    "draw_items",
    "failure_probability",
    "items_needed",
    "largest_error",
    "least_items",
    "median_error",
    "single_items_needed",
]

DRAWS = 4096  # of item sets over which the law is averaged
CELLS = 1024  # of (0, 1/2], on which the sums of positive items are convolved
FEW = 100 / DRAWS  # below this probability the draws are too few to count rare sets


def _uniform(u: Tensor, v: Tensor) -> Tensor:
    del u  # one number a item
    return 2 * v - 1


def _product(u: Tensor, v: Tensor) -> Tensor:
    return u * (2 * v - 1)


ITEMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"uniform": _uniform, "product": _product}


def draw_items(
    law: str, problems: int, n: int, *, generator: torch.Generator
) -> Float[Tensor, "problems items"]:
    """Items of a random network: "uniform" U[−1, 1], or "product" U[0, 1] · U[−1, 1]."""
    if law not in ITEMS:
        raise unknown("law of items", law, ITEMS)
    u = torch.rand(2, problems, n, dtype=torch.float64, generator=generator)
    return ITEMS[law](u[0], u[1])


@lru_cache(maxsize=4)
def _moments(items: str) -> tuple[ndarray, ndarray, ndarray]:
    """Mean ΣX/2, deviation √(ΣX²)/2 and half range Σ|X|/2 of the subset sums, for every n.

    Of 4096 fixed draws. The sums lie between mean − half range and mean + half range.
    """
    x = draw_items(items, DRAWS, 64, generator=generator_for(0, f"subset sums of {items}"))
    mean = (x.cumsum(1) / 2).numpy()
    spread = (x.square().cumsum(1).sqrt() / 2).numpy()
    return mean, spread, (x.abs().cumsum(1) / 2).numpy()


@lru_cache(maxsize=2 * MOST_ITEMS)
def _short(items: str, n: int) -> ndarray:
    """The law of Σ max(X, 0) of n items below 1/2: its masses at the multiples of 1/2048.

    A single item's are the means of its density under hat functions, so that sums are right to the
    square of a cell; F(y) = (1 + y)/2 for "uniform" and (1 + y − y ln y)/2 for "product".
    """
    cell = 0.5 / CELLS
    y = np.arange(CELLS + 2) * cell
    if items == "uniform":
        area = y / 2 + y**2 / 4  # ∫ F
    else:
        area = y / 2 + 0.375 * y**2 - 0.25 * y**2 * np.log(np.maximum(y, 1e-300))
    one = np.empty(CELLS + 1)
    one[0] = (area[1] - area[0]) / cell
    one[1:] = np.diff(area, 2) / cell
    masses: ndarray = one
    for _ in range(n - 1):
        masses = np.convolve(masses, one)[: CELLS + 1]
    return masses


def _unreached(n: int, below: float, items: str) -> float:
    """P(Σ max(X, 0) < below): even all positive items together fall short; below ≤ 1/2."""
    if below <= 0:
        return 0.0
    masses = _short(items, n)
    share = np.clip(below * 2 * CELLS - np.arange(CELLS + 1) + 0.5, 0.0, 1.0)
    share[0] = 1.0
    return float(masses @ share)


def failure_probability(n: int, eps: float, target: float = 0.5, items: str = "uniform") -> float:
    """P(no subset of n random items sums to within ε of the target), by a law.

    The 2ⁿ sums of fixed items lie about a target z like a Poisson process of density
    2ⁿ φ(z), φ the Gaussian density of mean ΣX/2 and variance ΣX²/4, so that

        P ≈ P(Σ max(X, 0) < z − ε) + E[exp(−2 ε 2ⁿ φ_X(z)); Σ max(X, 0) ≥ z − ε]

    for z ≥ 0, and 0 where z ≤ ε, which no item at all meets. The first term is of items whose sums
    do not reach z; it is a convolution of n densities, and for products most of the small
    probabilities. The second is averaged over 4096 fixed draws of the items. Where it is too small
    for draws to count, the sign of each item is averaged in closed form: given their sizes ΣX/2 is
    nearly normal with the variance ΣX²/4, the same. A law, not a theorem: tests hold it to a fifth
    of the probability (and 4 standard errors of draws) for n ≥ 8, and of small ones too.

    Args:
        n: items per weight, 1 to 34.
        eps: ε, in units in which weights lie in [−1/2, 1/2]; 0 < ε < 1/2.
        target: z in [−1/2, 1/2]; the default is the hardest.
        items: "uniform" or "product"; see `draw_items`.

    References:
        Lueker (1998), Exponentially small bounds on the expected optimum of the partition and
        subset sum problems; the law is derived in docs/subset_sum.md.
    """
    n = whole("n", n, low=1, high=MOST_ITEMS)
    return _failure(n, _precision(eps), _target(target), items)


def items_needed(
    eps: float,
    delta: float,
    problems: int = 1,
    items: str = "uniform",
    *,
    target: float = 0.5,
) -> int:
    """The fewest items with which all of `problems` weights are met to ε, with probability 1 − δ.

    By `failure_probability` and a union bound over the problems. It grows like log₂(1/ε).

    Raises:
        ValueError: ε outside (0, 1/2), δ outside (0, 1), or more than 34 items needed (the message
            says which ε 34 items reach).
    """
    eps, share = _precision(eps), fraction("delta", delta) / whole("problems", problems, low=1)
    z = _target(target)
    if items not in ITEMS:
        raise unknown("law of items", items, ITEMS)
    for n in range(1, MOST_ITEMS + 1):
        enough = 2 * eps * 2**n >= 1 and _unreached(n, z - eps, items) <= share
        if enough and _failure(n, eps, z, items) <= share:
            return n
    raise ValueError(
        f"eps={eps:g} at delta/problems={share:.3g} needs more than {MOST_ITEMS} items, the most "
        f"that are solved exactly. Ask for a larger eps or delta."
    )


def least_items(eps: float) -> int:
    """A lower bound for every choice of items: 2ⁿ sums cover [−1/2, 1/2] to ε only if 2ⁿ 2ε ≥ 1."""
    return max(0, math.ceil(math.log2(1 / (2 * _precision(eps)))))


def median_error(n: int, target: float = 0.5, items: str = "uniform") -> float:
    """The median over draws of ln 2 / (2 · 2ⁿ φ_X(z)), the median distance of fixed items' sums."""
    n, z = whole("n", n, low=1, high=MOST_ITEMS), _target(target)
    mean, spread, _ = _of(items, n)
    density = np.exp(-0.5 * ((z - mean) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    return float(np.median(math.log(2) / (2 * 2.0**n * np.maximum(density, 1e-300))))


def largest_error(n: int, problems: int, items: str = "uniform", *, target: float = 0.5) -> float:
    """The ε that the worst of so many independent weights exceeds with probability 1/2, by the law.

    In units in which weights lie in [−1/2, 1/2]; 1/2 where not even that is reached.
    """
    n, z = whole("n", n, low=1, high=MOST_ITEMS), _target(target)
    share = -math.expm1(-math.log(2) / whole("problems", problems, low=1))
    low, high = math.log(1e-16), math.log(0.5)
    if _failure(n, 0.5, z, items) > share:
        return 0.5
    for _ in range(60):  # the probability falls with ε
        middle = (low + high) / 2
        if _failure(n, math.exp(middle), z, items) > share:
            low = middle
        else:
            high = middle
    return math.exp(high)


def single_items_needed(
    eps: float, delta: float, weight: float = 0.5, items: str = "uniform"
) -> int:
    """Items of which one lies within ε of the weight with probability 1 − δ: ln(1/δ) / (2 ε f(w)).

    f is the items' density at w: 1/2 for "uniform", ½ ln(1/|w|) for "product". The count of the
    polynomial construction.

    References:
        Malach, Yehudai, Shalev-Shwartz, Shamir (2020), Proving the lottery ticket hypothesis.
    """
    eps, delta = _precision(eps), fraction("delta", delta)
    if items not in ITEMS:
        raise unknown("law of items", items, ITEMS)
    size = abs(float(weight))
    if not 0 < size < 1:
        raise ValueError(f"`weight` must lie in (−1, 1) and not be 0, got {weight!r}. Scale it.")
    density = 0.5 if items == "uniform" else 0.5 * math.log(1 / size)
    return math.ceil(math.log(1 / delta) / (2 * eps * density))


def _of(items: str, n: int) -> tuple[ndarray, ndarray, ndarray]:
    if items not in ITEMS:
        raise unknown("law of items", items, ITEMS)
    mean, spread, half = _moments(items)
    return mean[:, n - 1], spread[:, n - 1], half[:, n - 1]


@lru_cache(maxsize=1024)
def _failure(n: int, eps: float, z: float, items: str) -> float:
    mean, spread, half = _of(items, n)
    if z <= eps:
        return 0.0
    rate = 2 * eps * 2.0**n / (spread * math.sqrt(2 * math.pi))
    reached = half + mean >= z - eps
    missed = np.exp(-rate * np.exp(-0.5 * ((z - mean) / spread) ** 2)) * reached
    short, direct = _unreached(n, z - eps, items), float(missed.mean())
    if direct >= FEW:
        return min(1.0, short + direct)
    # Given the sizes, (z − ΣX/2) / spread is normal with mean z / spread and variance 1.
    g = np.linspace(-12.0, 12.0, 481)
    weight = np.exp(-0.5 * g**2)
    weight /= weight.sum()
    inside = np.exp(-rate[:, None] * np.exp(-0.5 * (g + (z / spread)[:, None]) ** 2))
    inside *= half[:, None] - spread[:, None] * g >= z - eps
    return min(1.0, short + float((inside @ weight).mean()))


def _precision(eps: float) -> float:
    number = positive("eps", eps)
    if number >= 0.5:
        raise ValueError(f"`eps` must lie in (0, 0.5), got {eps!r}: no item at all gives 0.5.")
    return number


def _target(target: float) -> float:
    number = float(target)
    if not -0.5 <= number <= 0.5:
        raise ValueError(f"`target` must lie in [−0.5, 0.5], got {target!r}. Scale the weights.")
    return abs(number)
