"""The Poisson approximation of a k-DPP: its marginals without its repulsion."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Generator, Tensor

import prunus.dpp as dpp
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import Composition
from prunus.selection.choice import Choice, Selection
from prunus.selection.dpp_sets import Pool, each_pool, reason_without_kernel, require_memory
from prunus.selection.k_dpp import KDPP, kernel_facts

__all__ = ["DPPPoisson"]


@dataclass(frozen=True)
class DPPPoisson(Selection):
    """Independent coins with the DPP's marginals, conditioned on the count.

    For edge kernels nothing is lost that could be measured: next to none of a k-DPP's distance
    from uniform draws is repulsion.

    Attributes:
        process: the k-DPP that is approximated; its kernel fields and its memory limit count.
        accuracy: relative accuracy of the expected size at which marginals are read off. The draw
            is scaled to the exact count in any case.
    """

    process: KDPP = field(default_factory=KDPP)
    accuracy: float = 0.02
    random: ClassVar[bool] = True

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the process needs."""
        return self.process.statistics

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
        """The mask of one draw for each pool.

        Raises:
            ValueError: the kernel and its factors take more than the process's memory.
        """

        def choose(pool: Pool, k: int) -> tuple[Int[Tensor, " k"], dict[str, float | str]]:
            n = len(pool.row)
            require_memory(n, 8 * 3 * n * n, self.process.memory)
            kernel = pool.matrix()
            odds, _ = dpp.poisson_odds(kernel, k, accuracy=self.accuracy)
            return dpp.poisson_sample(odds, k, generator=generator), kernel_facts(kernel)

        return each_pool(scores, kept, layer, self.process, choose)
