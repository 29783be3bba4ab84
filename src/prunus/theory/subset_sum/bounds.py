"""How wide a random network must be for a given error, before it is drawn."""

import math
from collections.abc import Sequence

from prunus.check import fraction, positive, whole
from prunus.theory.subset_sum.law import items_needed

__all__ = ["network_items_needed", "weight_precision"]


def weight_precision(
    eps: float, shapes: Sequence[tuple[int, int]], *, signed: bool = True
) -> float:
    """The largest error of single weights with which no input of norm ≤ 1 moves by more than ε.

    For layers (out, in) of spectral norm ≤ 1: with d ≤ ε_w √(2 out in) (√(out in) where inputs are
    ≥ 0) the outputs differ by at most (1 + d)^l − 1 ≤ ε when d ≤ ε / (2 l), ε ≤ 1.

    Raises:
        ValueError: ε outside (0, 1], or a size below 1.
    """
    share = fraction("eps", eps, one=True) / (2 * len(_checked(shapes)))
    copies = [2 if signed and i == 0 else 1 for i in range(len(shapes))]
    return min(share / math.sqrt(c * a * b) for c, (a, b) in zip(copies, shapes, strict=True))


def network_items_needed(
    eps: float,
    delta: float,
    shapes: Sequence[tuple[int, int]],
    *,
    largest: float = 1.0,
    signed: bool = True,
    items: str = "product",
) -> int:
    """Items per slot that bring the built network within ε with probability 1 − δ, by the law.

    `weight_precision` for the weights, a union bound over all of them, and `items_needed` in units
    of 2 · `largest` (targets are scaled into [−1/2, 1/2]).

    Args:
        eps: ε, of the output over inputs of norm ≤ 1.
        delta: δ.
        shapes: (out, in) of every layer, spectral norms ≤ 1.
        largest: bound on the |weights|; 1 follows from the norms.
        signed: inputs of the first layer may be negative.
        items: law of the items; "product" is that of two random matrices.
    """
    problems = sum(a * b * (2 if signed and i == 0 else 1) for i, (a, b) in enumerate(shapes))
    unit = 2 * positive("largest", largest)
    return items_needed(weight_precision(eps, shapes, signed=signed) / unit, delta, problems, items)


def _checked(shapes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    if not shapes:
        raise ValueError("`shapes` must hold one (out, in) per layer, got none.")
    for a, b in shapes:
        whole("out", a, low=1)
        whole("in", b, low=1)
    return shapes
