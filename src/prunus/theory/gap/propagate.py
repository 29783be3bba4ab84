"""How an error travels through a network whose weights and masks are known: products of norms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from prunus.theory.gap.stages import (
    LayerNorms,
    LinearPair,
    Lipschitz,
    Pointwise,
    Stage,
    apply_linear,
    bias_shift,
    layer_norms,
)

__all__ = ["Reach", "product_bound"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reach:
    """What is known of the hidden vectors after a stage, over the whole ball of inputs.

    Attributes:
        dense: bound on the distance of h from its value at the centre.
        pruned: the same for the pruned network.
        gap: bound on ‖h − ĥ‖.
        centre: h at the centre of the ball.
        pruned_centre: ĥ at the centre.
    """

    dense: float
    pruned: float
    gap: float
    centre: Tensor
    pruned_centre: Tensor

    @property
    def trivial(self) -> float:
        """The bound on ‖h − ĥ‖ that knows nothing of the difference of the weights."""
        return self.dense + self.pruned + float((self.centre - self.pruned_centre).norm())


def product_bound(
    stages: Sequence[Stage],
    reach: Reach,
    norms: Callable[[LinearPair], LayerNorms] = layer_norms,
) -> Reach:
    """Carry `reach` through the stages by norms alone (the product route).

    z − ẑ = V(h − ĥ) + D h = W(h − ĥ) + D ĥ, so with radii R, R̂ around the centre values c, ĉ the
    gap is at most min(v e + Δ R + ‖D c + δb‖, w e + Δ R̂ + ‖D ĉ + δb‖); activations multiply by
    their Lipschitz constant, bounded ones cap; a sum of branches sums, a concatenation takes the
    root of the sum of squares. Never above the trivial R + R̂ + ‖c − ĉ‖.

    References:
        docs/gap.md, propagation.
    """
    for stage in stages:
        if isinstance(stage, LinearPair):
            reach = _through_linear(stage, reach, norms(stage))
        elif isinstance(stage, Pointwise):
            phi = stage.activation
            lip = phi.lipschitz
            cap = math.inf
            if math.isfinite(phi.width):
                cap = phi.width * math.sqrt(reach.centre.numel())
            reach = Reach(
                dense=min(lip * reach.dense, cap),
                pruned=min(lip * reach.pruned, cap),
                gap=min(lip * reach.gap, cap),
                centre=phi.function(reach.centre),
                pruned_centre=phi.function(reach.pruned_centre),
            )
        elif isinstance(stage, Lipschitz):
            reach = Reach(
                dense=stage.gain * reach.dense,
                pruned=stage.gain * reach.pruned,
                gap=stage.gain * reach.gap,
                centre=stage.function(reach.centre),
                pruned_centre=stage.function(reach.pruned_centre),
            )
        else:
            left = product_bound(stage.shortcut, reach, norms)
            right = product_bound(stage.branch, reach, norms)
            reach = Reach(
                dense=stage.size(left.dense, right.dense),
                pruned=stage.size(left.pruned, right.pruned),
                gap=stage.size(left.gap, right.gap),
                centre=stage.join(left.centre, right.centre),
                pruned_centre=stage.join(left.pruned_centre, right.pruned_centre),
            )
        reach = replace(reach, gap=min(reach.gap, reach.trivial))
    return reach


def _through_linear(stage: LinearPair, reach: Reach, norms: LayerNorms) -> Reach:
    difference, shift = stage.weight - stage.pruned_weight, bias_shift(stage)
    at_dense = float(apply_linear(stage, difference, shift, reach.centre).norm())
    at_pruned = float(apply_linear(stage, difference, shift, reach.pruned_centre).norm())
    gap = min(
        norms.pruned * reach.gap + norms.difference * reach.dense + at_dense,
        norms.dense * reach.gap + norms.difference * reach.pruned + at_pruned,
    )
    return Reach(
        dense=norms.dense * reach.dense,
        pruned=norms.pruned * reach.pruned,
        gap=gap,
        centre=apply_linear(stage, stage.weight, stage.bias, reach.centre),
        pruned_centre=apply_linear(
            stage, stage.pruned_weight, stage.pruned_bias, reach.pruned_centre
        ),
    )
