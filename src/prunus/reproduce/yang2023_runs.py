"""Simulations of the reproduction of Yang et al., made once each and shared by its parts."""

import dataclasses
import math
import warnings
from typing import Any

import torch

from prunus.rng import generator_for
from prunus.theory.at_init import DensitySummary, Setting, Simulation, simulate, summarise

__all__ = ["SMALL_START", "Runs", "mean", "strong", "summarised"]

SMALL_START = Setting()  # experiment A


class Runs:
    """Simulations of one reproduction, made once each."""

    def __init__(self, seed: int, seeds: int, progress: bool | None) -> None:
        self.count, self.progress = seeds, progress
        draws = torch.randint(2**31, (seeds,), generator=generator_for(seed, "yang2023"))
        self.seeds = [int(s) for s in draws]
        self.done: dict[str, Simulation] = {}

    def run(
        self, name: str, setting: Setting, densities: list[float], **options: Any
    ) -> Simulation:
        """Train, or return what was trained under this name."""
        if name not in self.done:
            options = {"checkpoints": 0, "dtype": torch.float32, "seeds": self.seeds, **options}
            with warnings.catch_warnings():
                # over-pruned networks may memorise late; the table shows their train loss
                warnings.simplefilter("ignore", RuntimeWarning)
                self.done[name] = simulate(setting, densities, progress=self.progress, **options)
        return self.done[name]


def summarised(run: Simulation) -> list[DensitySummary]:
    """Summaries without the warning about few seeds, which the conditions state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return summarise(run)


def strong(found: Runs) -> Simulation:
    """A with a stronger signal, μ = 8."""
    return found.run(
        "A8", dataclasses.replace(SMALL_START, signal=8.0), [1, 0.6, 0.35, 0.25, 0.12, 0.05]
    )


def mean(values: torch.Tensor) -> tuple[float, float]:
    """The mean over seeds and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
