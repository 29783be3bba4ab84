"""The greedy mode of a k-DPP: diverse, and the same every time."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

import prunus.dpp as dpp
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import Composition
from prunus.selection.choice import Choice, Selection
from prunus.selection.dpp_sets import Pool, each_pool, reason_without_kernel, require_memory
from prunus.selection.k_dpp import KDPP, kernel_facts

__all__ = ["DPPMap"]


@dataclass(frozen=True)
class DPPMap(Selection):
    """Each unit raises the determinant most, as in `greedy_map`; no eigenvectors, no randomness.

    Attributes:
        process: the k-DPP whose mode is sought; its kernel fields and its memory limit count.

    References:
        Chen, Zhang, Zhou (2018), Fast greedy MAP inference for determinantal point process.
    """

    process: KDPP = field(default_factory=KDPP)
    random: ClassVar[bool] = False

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
        """The mask of each pool's greedy mode.

        Where the kernel's rank ends before k, the lowest indices fill up.

        Raises:
            ValueError: the kernel and k columns take more than the process's memory.
        """
        del generator

        def choose(pool: Pool, k: int) -> tuple[Int[Tensor, " k"], dict[str, float | str]]:
            n = len(pool.row)
            require_memory(n, 8 * (3 * n * n + k * n), self.process.memory)
            kernel = pool.matrix()
            chosen = dpp.greedy_map(kernel, k)
            facts = kernel_facts(kernel)
            if len(chosen) < k:
                rest = torch.ones(len(kernel), dtype=torch.bool)
                rest[chosen] = False
                filler = rest.nonzero().flatten()[: k - len(chosen)]
                chosen, facts["filled"] = torch.cat([chosen, filler]), "rank below k: lowest index"
            return chosen, facts

        return each_pool(scores, kept, layer, self.process, choose)
