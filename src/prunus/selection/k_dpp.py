"""A diverse set of units: one k-DPP per output row (edges) or per group of nodes."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

import prunus.dpp as dpp
from prunus.check import positive, unknown
from prunus.layer import Layer
from prunus.selection.choice import Choice, checked_counts

__all__ = ["KDPP", "kernel_of"]


@dataclass(frozen=True)
class KDPP:
    """Exact k-DPP draws with a Gaussian or a linear kernel, from Gram matrices alone.

    For edges the items of an output are its incoming signals w_i x_i. For nodes they are the
    classes' pre-activations or activations. Scores are not read.

    Attributes:
        kernel: for nodes, "preactivation" (as published) or "activation".
        shape: "gaussian" for exp(−β‖a_i − a_j‖²) + εI, "linear" for a_i·a_j + εI.
        bandwidth: β of the Gaussian kernel per mean squared distance, or "median" for one over
            the median squared distance.
        jitter: ε.
        include_bias: for pre-activations, count the producer's bias.

    References:
        Acharyya et al. (2021), for edges; Mariet and Sra (2016), for nodes.
    """

    kernel: Literal["preactivation", "activation"] = "preactivation"
    shape: Literal["gaussian", "linear"] = "gaussian"
    bandwidth: float | str = "median"
    jitter: float = 0.01
    include_bias: bool = True
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kernel not in ("preactivation", "activation"):
            raise unknown("kernel", self.kernel, ["preactivation", "activation"])
        if self.shape not in ("gaussian", "linear"):
            raise unknown("shape of a kernel", self.shape, ["gaussian", "linear"])
        if self.bandwidth != "median":
            positive("bandwidth", float(self.bandwidth))
        positive("jitter", self.jitter, zero=True)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The Gram matrix, and the mean for pre-activations with their bias."""
        return ("gram", "mean") if self.include_bias else ("gram",)

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: Any,
        generator: Generator,
    ) -> Choice:
        """The mask of one draw for each pool, and the kernels' diagnostics."""
        checked_counts(scores, kept)
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        means, tops = [], []
        for pool, k in enumerate(kept.tolist()):
            # Units that an earlier step removed have score −∞ and are no items.
            items = (scores[pool] > -torch.inf).nonzero().flatten().cpu()
            if k == 0 or k >= len(items):
                mask[pool, items[:k]] = True
                continue
            kernel = kernel_of(self, layer, pool)
            if len(items) < len(kernel):
                kernel = kernel[items][:, items]
            facts = dpp.diagnose(kernel)
            means.append(facts.offdiag_mean)
            tops.append(facts.offdiag_max)
            mask[pool, items[dpp.KDPP(kernel).sample(k, generator=generator)]] = True
        notes = {}
        if means:
            notes = {"offdiag_mean": sum(means) / len(means), "offdiag_max": max(tops)}
        return Choice(mask=mask.to(scores.device), notes=notes)


def kernel_of(rule: Any, layer: Any, pool: int) -> Float[Tensor, "units units"]:
    """The kernel of one pool: the edges of output `pool` of a layer, or a group's classes."""
    if isinstance(layer, Layer):
        layer.require("gram")
        rows = layer.weight.shape[0] // layer.groups
        part = layer.blocks()[pool // rows]
        row = part.weight[pool % rows].to("cpu", torch.float64)
        gram = part.gram.cpu()  # type: ignore[union-attr]
        if rule.shape == "gaussian":
            return dpp.edge_kernel(gram, row, bandwidth=rule.bandwidth, jitter=rule.jitter)
        return dpp.linear_kernel(dpp.edge_gram(gram, row), jitter=rule.jitter)
    gram = layer.gram(rule.kernel, include_bias=rule.include_bias)
    if rule.shape == "gaussian":
        return dpp.gaussian_kernel(gram, bandwidth=rule.bandwidth, jitter=rule.jitter)
    return dpp.linear_kernel(gram, jitter=rule.jitter)
