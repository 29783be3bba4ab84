"""A diverse set of units: one k-DPP per output row (edges) or per group of nodes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Generator, Tensor

import prunus.dpp as dpp
from prunus.check import positive, unknown
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import Composition
from prunus.selection.choice import Choice, Selection
from prunus.selection.dpp_sets import Pool, each_pool, how_to_draw, reason_without_kernel

__all__ = ["KDPP"]


@dataclass(frozen=True)
class KDPP(Selection):
    """k-DPP draws with a Gaussian or a linear kernel, from Gram matrices alone.

    For edges the items of an output are its incoming signals w_i x_i. For nodes they are the
    classes' pre-activations or activations. Scores are not read, but units that an earlier step
    removed stay out. Draws are exact while they fit; `how_to_draw` states the rule for larger
    layers, and the result's notes say which way was taken.

    Attributes:
        kernel: for nodes, "preactivation" (as published) or "activation".
        shape: "gaussian" for exp(−β‖a_i − a_j‖²) + εI, "linear" for a_i·a_j + εI.
        bandwidth: β of the Gaussian kernel per mean squared distance, or "median" for one over
            the median squared distance.
        jitter: ε.
        include_bias: for pre-activations, count the producer's bias.
        memory: bytes that one draw may take.

    References:
        Acharyya et al. (2021), for edges; Mariet and Sra (2016), for nodes.
    """

    kernel: Literal["preactivation", "activation"] = "preactivation"
    shape: Literal["gaussian", "linear"] = "gaussian"
    bandwidth: float | str = "median"
    jitter: float = 0.01
    include_bias: bool = True
    memory: float = 4e9
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kernel not in ("preactivation", "activation"):
            raise unknown("kernel", self.kernel, ["preactivation", "activation"])
        if self.shape not in ("gaussian", "linear"):
            raise unknown("shape of a kernel", self.shape, ["gaussian", "linear"])
        if self.bandwidth != "median":
            positive("bandwidth", float(self.bandwidth))
        positive("jitter", self.jitter, zero=True)
        positive("memory", self.memory)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The Gram matrix, and the mean for pre-activations with their bias."""
        return ("gram", "mean") if self.include_bias else ("gram",)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses pools whose units have no kernel."""
        return reason_without_kernel(self, recipe)

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: Layer | ClassView,
        generator: Generator,
    ) -> Choice:
        """The mask of one draw for each pool, and the kernels' diagnostics."""

        def choose(pool: Pool, k: int) -> tuple[Int[Tensor, " k"], dict[str, float | str]]:
            n = len(pool.row)
            way = how_to_draw(n, k, self.memory)
            if way == "chain":
                drawn = dpp.swap_chain(pool.entries(), k, n=n, generator=generator)
                return drawn, {"draw": f"swap chain of {2 * n} steps, approximate"}
            kernel = pool.matrix()
            facts = kernel_facts(kernel)
            if way == "poisson":
                odds, _ = dpp.poisson_odds(kernel, k)
                drawn = dpp.poisson_sample(odds, k, generator=generator)
                return drawn, {**facts, "draw": "Poisson approximation"}
            return dpp.draw_once(kernel, k, generator=generator), {**facts, "draw": "exact"}

        return each_pool(scores, kept, layer, self, choose)


def kernel_facts(kernel: Float[Tensor, "n n"]) -> dict[str, float | str]:
    """Off-diagonal mean and maximum of a kernel, and in words what is wrong with it."""
    facts = dpp.diagnose(kernel)
    found: dict[str, float | str] = {
        "offdiag_mean": facts.offdiag_mean,
        "offdiag_max": facts.offdiag_max,
    }
    if facts.kinds:
        found["kernel"] = ", ".join(facts.kinds)
    return found
