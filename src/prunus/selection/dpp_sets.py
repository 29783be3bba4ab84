"""What the determinantal rules share: kernels of pools, and how large ones are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import prunus.dpp as dpp
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import Composition
from prunus.selection.choice import Choice, checked_counts
from prunus.threads import single_threaded

__all__ = [
    "EXACT_ITEMS",
    "KernelRule",
    "Pool",
    "each_pool",
    "how_to_draw",
    "reason_without_kernel",
    "require_memory",
]

EXACT_ITEMS = 4608  # 512 channels of 3 × 3 taps; beyond, an exact draw takes minutes
Way = Literal["exact", "poisson", "chain"]


@runtime_checkable
class KernelRule(Protocol):
    """The fields that make a kernel."""

    @property
    def kernel(self) -> Literal["preactivation", "activation"]: ...
    @property
    def shape(self) -> Literal["gaussian", "linear"]: ...
    @property
    def bandwidth(self) -> float | str: ...
    @property
    def jitter(self) -> float: ...
    @property
    def include_bias(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Pool:
    """The items of one pool: of their Gram matrix `gram` scaled by `row`, A_ij = G_ij r_i r_j.

    Attributes:
        gram: G (n, n), float64 on the CPU, shared by the pools of a layer.
        row: r (n,), the weights of an output, or ones for nodes.
        rule: which kernel.
    """

    gram: Float[Tensor, "n n"]
    row: Float[Tensor, " n"]
    rule: KernelRule

    def matrix(self) -> Float[Tensor, "n n"]:
        """The kernel, formed."""
        if self.rule.shape == "gaussian":
            return dpp.edge_kernel(
                self.gram, self.row, bandwidth=self.rule.bandwidth, jitter=self.rule.jitter
            )
        return dpp.linear_kernel(dpp.edge_gram(self.gram, self.row), jitter=self.rule.jitter)

    def entries(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Blocks of the kernel on demand, for kernels that are never formed."""
        return dpp.kernel_entries(
            self.gram,
            self.row,
            bandwidth=None if self.rule.shape == "linear" else self.rule.bandwidth,
            jitter=self.rule.jitter,
        )


def how_to_draw(n: int, k: int, memory: float) -> Way:
    """The way a set of k of n items is drawn within `memory` bytes.

    Exactly where n ≤ 4608 and six n × n matrices and m columns, m = min(k, n − k), fit; else by a
    chain of swaps where k ≤ n/10, since its steps cost k²; else by the Poisson approximation where
    three n × n matrices fit; else by the chain, whose memory is 7 k² whatever n is.

    Raises:
        ValueError: none of the three fits.
    """
    exact = 8 * (6 * n * n + min(k, n - k) * n)
    poisson, chain = 8 * 3 * n * n, 8 * (7 * k * k + 8 * n)
    if n <= EXACT_ITEMS and exact <= memory:
        return "exact"
    if 10 * k <= n and chain <= memory:
        return "chain"
    if poisson <= memory:
        return "poisson"
    if chain <= memory:
        return "chain"
    raise ValueError(
        f"A determinantal draw of {k} of {n} items needs {min(chain, poisson) / 1e9:.1f} GB and "
        f"may take {memory / 1e9:.1f} GB. Raise `memory`, or choose another selection."
    )


def require_memory(n: int, needed: float, memory: float) -> None:
    """Raise where a rule that has one way only needs more than `memory` bytes for n items.

    Raises:
        ValueError: it does; with what it needs.
    """
    if needed > memory:
        raise ValueError(
            f"This selection needs {needed / 1e9:.2g} GB for {n} items and may take "
            f"{memory / 1e9:.2g} GB. Raise `memory`, or choose the k-DPP, which has ways that take "
            f"less."
        )


def reason_without_kernel(rule: object, recipe: Composition) -> str | None:
    """Why a determinantal rule cannot stand in this recipe, or None."""
    if recipe.granularity.pools in ("row", "group"):
        return None
    return (
        f"{rule!r} draws one set per output row or per group of nodes, so `granularity` must be "
        f"EdgePerRow() or Node(), got {recipe.granularity!r}."
    )


@single_threaded
def each_pool(
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    layer: Layer | ClassView,
    rule: KernelRule,
    choose: Callable[[Pool, int], tuple[Int[Tensor, " k"], dict[str, float | str]]],
) -> Choice:
    """The mask of `choose(items of the pool, k)` for every pool, and the joined notes.

    Units whose score is −∞ were removed by an earlier step and are no items. Numbers in the notes
    are averaged over pools (`offdiag_max` is the largest); words are collected.

    Raises:
        ValueError: a count outside its pool, or a layer without the statistics.
    """
    checked_counts(scores, kept)
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    notes: dict[str, list[float | str]] = {}
    pools = _pools(layer, rule, scores.shape)
    for pool, k in enumerate(kept.tolist()):
        items = (scores[pool] > -torch.inf).nonzero().flatten().cpu()
        if k == 0 or k >= len(items):
            mask[pool, items[:k]] = True
            continue
        part = pools(pool)
        if len(items) < len(part.row):
            part = Pool(part.gram[items][:, items], part.row[items], rule)
        chosen, facts = choose(part, k)
        mask[pool, items[chosen]] = True
        for name, value in facts.items():
            notes.setdefault(name, []).append(value)
    return Choice(mask=mask.to(scores.device), notes={n: _joined(n, v) for n, v in notes.items()})


def _pools(
    layer: Layer | ClassView, rule: KernelRule, shape: tuple[int, ...]
) -> Callable[[int], Pool]:
    """Pool number -> its items."""
    if not isinstance(layer, Layer):
        gram = layer.gram(rule.kernel, include_bias=rule.include_bias)
        whole = Pool(gram, torch.ones(len(gram), dtype=torch.float64), rule)
        return lambda pool: whole
    layer.require("gram")
    if tuple(shape) != tuple(layer.weight.shape):
        raise ValueError(
            f"A determinantal rule draws one set per output row of layer {layer.name!r}, but its "
            f"pools have shape {tuple(shape)}. Use EdgePerRow() or Node()."
        )
    parts = layer.blocks()
    rows = layer.weight.shape[0] // layer.groups
    grams = [part.gram.to("cpu", torch.float64) for part in parts if part.gram is not None]
    weight = layer.weight.detach().to("cpu", torch.float64)
    return lambda pool: Pool(grams[pool // rows], weight[pool], rule)


def _joined(name: str, values: list[float | str]) -> float | str:
    words = {value for value in values if isinstance(value, str)}
    if words:
        return ", ".join(sorted(words))
    numbers = [float(value) for value in values if not isinstance(value, str)]
    return max(numbers) if name.endswith("_max") else sum(numbers) / len(numbers)
