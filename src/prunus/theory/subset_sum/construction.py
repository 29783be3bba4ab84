"""A target network inside a random one: which units read what, and which weights are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from prunus.check import as_float64, positive, whole
from prunus.theory.subset_sum.solver import MOST_ITEMS, nearest_subset

__all__ = ["Block", "Construction", "construct"]

ASSIGNED_EXACTLY = 3000  # hidden units up to which the assignment is optimal, greedy above
DAMPING = 0.01  # of the Gram matrix' mean diagonal, as in SparseGPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """One target layer y = W x inside a random block V relu(U x).

    Hidden unit h reads one input alone, so that for every x the masked block computes
    W₊ relu(x) − W₋ relu(−x), with W₊ = scale V′ max(U′, 0) and W₋ = −scale V′ max(−U′, 0) (primes:
    masked). Units are shared by all outputs.

    Attributes:
        hidden: U (H, in), iid U[−1, 1].
        output: V (out, H), iid U[−1, 1].
        hidden_mask: what is kept of U: one weight in each row.
        output_mask: what is kept of V.
        scale: 2 max|W|, by which the block's output is multiplied; 0 for W = 0.
        target: W (out, in).
        bias: of the target, kept as it is, or None.
        nonnegative: inputs are ≥ 0, so that W₋ does not count.
    """

    hidden: Float[Tensor, "hidden in"]
    output: Float[Tensor, "out hidden"]
    hidden_mask: Bool[Tensor, "hidden in"]
    output_mask: Bool[Tensor, "out hidden"]
    scale: float
    target: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    nonnegative: bool

    @property
    def positive(self) -> Float[Tensor, "out in"]:
        """W₊: what the block multiplies relu(x) by."""
        kept = (self.hidden * self.hidden_mask).clamp(min=0)
        return self.scale * (self.output * self.output_mask) @ kept

    @property
    def negative(self) -> Float[Tensor, "out in"]:
        """W₋: what the block multiplies −relu(−x) by."""
        kept = (-self.hidden * self.hidden_mask).clamp(min=0)
        return -self.scale * (self.output * self.output_mask) @ kept

    @property
    def error(self) -> float:
        """The largest |W₊ − W|, and |W₋ − W| where inputs may be negative."""
        halves = [self.positive] if self.nonnegative else [self.positive, self.negative]
        return max(float((half - self.target).abs().max()) for half in halves)

    @property
    def distance(self) -> float:
        """d = √(‖W₊ − W‖² + ‖W₋ − W‖²), or ‖W₊ − W‖ for inputs ≥ 0, in spectral norms."""
        halves = [self.positive] if self.nonnegative else [self.positive, self.negative]
        squares = [float(torch.linalg.matrix_norm(h - self.target, 2)) ** 2 for h in halves]
        return float(np.sqrt(sum(squares)))


class _Scale(nn.Module):
    """Multiplies by a number, and adds the target's bias."""

    bias: Tensor | None

    def __init__(self, scale: float, bias: Tensor | None) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.scale * x
        return scaled if self.bias is None else scaled + self.bias


@dataclass(frozen=True, eq=False)
class Construction:
    """A chain of ReLU layers inside a random network of twice the depth.

    Attributes:
        blocks: one per target layer.
    """

    blocks: tuple[Block, ...]

    def network(self) -> nn.Sequential:
        """The masked random matrices: Linear, ReLU, Linear, scale (and bias) for each layer."""
        parts: list[nn.Module] = []
        for i, block in enumerate(self.blocks):
            first = _linear(block.hidden * block.hidden_mask)
            second = _linear(block.output * block.output_mask)
            parts += [first, nn.ReLU(), second, _Scale(block.scale, block.bias)]
            if i < len(self.blocks) - 1:
                parts.append(nn.ReLU())
        return nn.Sequential(*parts)

    def effective(self) -> tuple[Float[Tensor, "out in"], ...]:
        """W₊ of each layer: the target-shaped weights that the network has for inputs ≥ 0."""
        return tuple(block.positive for block in self.blocks)

    def error_bound(self, radius: float = 1.0) -> float:
        """No input of norm ≤ radius is answered further away from the target's answer than this.

        e_ℓ ≤ (‖W_ℓ‖ + d_ℓ) e_{ℓ−1} + d_ℓ r_{ℓ−1}, e_0 = 0, where r_ℓ ≤ ‖W_ℓ‖ r_{ℓ−1} + ‖b_ℓ‖ bounds
        the target's activations. From the built weights, so it holds for every draw; in exact
        arithmetic (float64 adds some 1e-15 of the activations).

        Proof in docs/subset_sum.md.
        """
        error, reach = 0.0, positive("radius", radius)
        for block in self.blocks:
            norm = float(torch.linalg.matrix_norm(block.target, 2))
            error = (norm + block.distance) * error + block.distance * reach
            bias = 0.0 if block.bias is None else float(block.bias.norm())
            reach = norm * reach + bias
        return error

    @property
    def kept(self) -> int:
        """Kept entries of all random matrices."""
        return sum(int(b.hidden_mask.sum()) + int(b.output_mask.sum()) for b in self.blocks)

    @property
    def total(self) -> int:
        """Entries of all random matrices."""
        return sum(b.hidden_mask.numel() + b.output_mask.numel() for b in self.blocks)


def construct(
    weights: Sequence[Any],
    n: int,
    *,
    generator: Generator,
    biases: Sequence[Any] | None = None,
    gram: Sequence[Any] | None = None,
    nonnegative: bool = False,
    assign: bool = True,
) -> Construction:
    """Prune a random network of n hidden units per input and sign until it is the target network.

    Args:
        weights: W of every layer of a chain with ReLU between, each (out, in).
        n: hidden units (items of a subset sum) for each slot: an input, or an input and a sign.
        generator: of the random matrices.
        biases: of every layer, kept as they are, or None.
        gram: second moment of every layer's slots, (in, in) where inputs are ≥ 0; for a first
            layer with signed inputs that of (relu(x), −relu(−x)), (2 in, 2 in). An entry may be
            None. With it the error made at one input is passed on to those not yet met, as
            SparseGPT does, and the outputs' error is what falls, not each weight's.
        nonnegative: the network's inputs are ≥ 0 (those of later layers always are).
        assign: units read the inputs that suit their weights (one assignment problem per layer,
            greedy above 3000 units); else unit h reads input h mod in, as published.

    Raises:
        ValueError: a bad n, weights that are no matrices, do not chain, or are not finite; a Gram
            of another size, of inputs below 0 where there are none, or that is no second moment.

    References:
        Pensia, Rajput, Nagle, Vishwakarma, Papailiopoulos (2020), Optimal lottery tickets via
        subset sum; assignment and feedback are ours, docs/subset_sum.md.
    """
    n = whole("n", n, low=1, high=MOST_ITEMS)
    targets = [_matrix(f"weights[{i}]", w) for i, w in enumerate(weights)]
    if not targets:
        raise ValueError("`weights` must hold at least one matrix, got none.")
    for i, (before, after) in enumerate(pairwise(targets)):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"`weights` must chain, got {tuple(before.shape)} and then {tuple(after.shape)} at "
                f"{i + 1}. Give matrices (out, in) in their order."
            )
    given = _given("biases", biases, len(targets), 1)
    grams = _given("gram", gram, len(targets), 2)
    blocks = []
    for i, (target, bias, moment) in enumerate(zip(targets, given, grams, strict=True)):
        one_sided = nonnegative or i > 0
        if bias is not None and len(bias) != len(target):
            raise ValueError(
                f"`biases[{i}]` must have {len(target)} entries, one per output, got {len(bias)}."
            )
        blocks.append(_block(target, n, bias, moment, one_sided, assign, generator, i))
    return Construction(tuple(blocks))


def _block(
    target: Tensor,
    n: int,
    bias: Tensor | None,
    gram: Tensor | None,
    one_sided: bool,
    assign: bool,
    generator: Generator,
    place: int,
) -> Block:
    outputs, inputs = target.shape
    slots = inputs if one_sided else 2 * inputs
    if gram is not None and gram.shape != (slots, slots):
        raise ValueError(
            f"`gram[{place}]` must have shape {(slots, slots)}, that of the layer's slots"
            f"{'' if one_sided else ' relu(x) and −relu(−x)'}, got {tuple(gram.shape)}."
        )
    if gram is not None and one_sided and float(gram.min()) < 0:
        raise ValueError(
            f"`gram[{place}]` must be the second moment of inputs ≥ 0, as nonnegative=True and "
            f"every layer after a ReLU say, got the entry {float(gram.min()):.3g}. Shift the "
            f"inputs, or leave nonnegative=True out."
        )
    width = n * slots
    hidden = 2 * torch.rand(width, inputs, dtype=torch.float64, generator=generator) - 1
    output = 2 * torch.rand(outputs, width, dtype=torch.float64, generator=generator) - 1
    slot = _assigned(hidden, n, one_sided) if assign else _tied(hidden, one_sided)
    scale = 2 * float(target.abs().max())
    mask = torch.zeros(outputs, width, dtype=torch.bool)
    column = torch.where(slot >= 0, slot, 0) % inputs
    strength = hidden.gather(1, column[:, None])[:, 0].abs()
    if scale > 0:
        goals = target / scale
        goals = goals if one_sided else torch.cat([goals, goals], 1)
        signs = torch.ones(slots, dtype=torch.float64)
        signs[inputs:] = -1.0  # the second half serves −relu(−x)
        _solve(mask, goals, output * strength, slot, signs, gram)
    used = slot >= 0
    kept = torch.zeros(width, inputs, dtype=torch.bool)
    kept[used.nonzero()[:, 0], column[used]] = True
    if scale == 0:
        kept[:] = False
    return Block(
        hidden=hidden,
        output=output,
        hidden_mask=kept,
        output_mask=mask,
        scale=scale,
        target=target,
        bias=bias,
        nonnegative=one_sided,
    )


def _solve(
    mask: Tensor,
    goals: Tensor,
    items: Tensor,
    slot: Tensor,
    signs: Tensor,
    gram: Tensor | None,
) -> None:
    """Fill the mask slot by slot, all outputs at once; with a Gram, pass errors to later slots."""
    left = goals.clone()
    factor = None if gram is None else _feedback(gram)
    for s in range(goals.shape[1]):
        units = (slot == s).nonzero()[:, 0]
        if len(units):
            chosen, _ = nearest_subset(items[:, units], left[:, s] * signs[s])
            mask[:, units] = chosen
            met = (items[:, units] * chosen).sum(1) * signs[s]
        else:
            met = torch.zeros(len(goals), dtype=goals.dtype)
        if factor is not None:
            error = (left[:, s] - met) / factor[s, s]
            left[:, s + 1 :] -= error[:, None] * factor[s, s + 1 :]


def _feedback(gram: Tensor) -> Float[Tensor, "slots slots"]:
    """The upper Cholesky factor of (G + 0.01 mean diag)⁻¹, of which SparseGPT's sweep is made."""
    size = float(gram.diagonal().mean())
    damped = gram + (DAMPING * size if size > 0 else 1.0) * torch.eye(len(gram), dtype=gram.dtype)
    factor, fault = torch.linalg.cholesky_ex(damped)
    if bool(fault):
        raise ValueError(
            f"`gram` must be a second moment E[x xᵀ], got a matrix that is not positive definite "
            f"even with {DAMPING} of its mean diagonal added. Average outer products of inputs."
        )
    inverse = torch.cholesky_inverse(factor)
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def _tied(hidden: Tensor, one_sided: bool) -> Int[Tensor, " hidden"]:
    """The slot of each unit as published: input h mod in, by the weight's own sign; −1 unusable.

    A slot keeps the first 34 units that fall to it, the most that are solved exactly.
    """
    width, inputs = hidden.shape
    column = torch.arange(width) % inputs
    own = hidden.gather(1, column[:, None])[:, 0]
    slot = torch.where(own > 0, column, -1 if one_sided else column + inputs)
    slot = torch.where(own == 0, -1, slot)
    for s in sorted(set(slot.tolist())):
        if s >= 0:
            slot[(slot == s).nonzero()[MOST_ITEMS:, 0]] = -1
    return slot


def _assigned(hidden: Tensor, n: int, one_sided: bool) -> Int[Tensor, " hidden"]:
    """The slot of each unit that makes Σ ±U as large as can be, n units a slot; −1 unusable."""
    profit = hidden if one_sided else torch.cat([hidden, -hidden], 1)
    width = len(profit)
    if width <= ASSIGNED_EXACTLY:
        from scipy.optimize import linear_sum_assignment

        _, place = linear_sum_assignment(profit.repeat_interleave(n, 1).numpy(), maximize=True)
        slot = torch.from_numpy(place // n)
    else:
        slot = _greedily(profit, n)
    own = profit.gather(1, slot[:, None])[:, 0]
    return torch.where(own > 0, slot, -1)


def _greedily(profit: Tensor, n: int) -> Int[Tensor, " hidden"]:
    """Entries by descending profit; each unit goes once, each slot takes n."""
    width, slots = profit.shape
    slot = torch.full((width,), -1)
    room = np.full(slots, n)
    free = np.ones(width, dtype=bool)
    step = 64  # the best slots of each unit are looked at first; all where those are full
    looked = 0
    while free.any() and looked < slots:
        units = np.flatnonzero(free)
        best, order = profit[units].sort(1, descending=True)
        part = slice(looked, looked + step)
        values, places = best[:, part].reshape(-1), order[:, part].reshape(-1)
        for k in values.argsort(descending=True, stable=True).tolist():
            unit, s = units[k // min(step, slots - looked)], int(places[k])
            if free[unit] and room[s]:
                slot[unit], free[unit], room[s] = s, False, room[s] - 1
        looked += step
    return slot


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _matrix(name: str, values: Any) -> Tensor:
    tensor = as_float64(name, values)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(
            f"`{name}` must be a matrix (out, in), got shape {tuple(tensor.shape)}. Convolutions "
            f"are not built; a matrix of their patches is."
        )
    return tensor.detach().cpu()


def _given(name: str, values: Sequence[Any] | None, count: int, dims: int) -> list[Tensor | None]:
    if values is None:
        return [None] * count
    if len(values) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, one per layer (None for none), got {len(values)}."
        )
    return [
        None if v is None else as_float64(f"{name}[{i}]", v, dims=dims).detach().cpu()
        for i, v in enumerate(values)
    ]
