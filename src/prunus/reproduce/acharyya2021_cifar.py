"""Acharyya et al. (2021): six ways to prune the first layer of a CIFAR-10 MLP."""

from dataclasses import replace
from pathlib import Path

from prunus.bench.models import mlp
from prunus.bench.tasks import TASKS
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.acharyya2021 import Setting, run

__all__ = ["reproduce"]

KEPT = (20, 30, 40, 50, 60, 70, 80, 90)
PUBLISHED = {
    "DPP edge": dict(
        zip(KEPT, (52.77, 52.73, 52.71, 52.70, 52.68, 52.67, 52.66, 52.66), strict=True)
    ),
    "DIVNET (DPP node)": dict(
        zip(KEPT, (53.37, 53.04, 53.07, 52.89, 52.87, 52.81, 52.85, 52.73), strict=True)
    ),
}


def _deep_digits() -> object:
    return mlp((64, 100, 100, 100, 10))


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None, progress: bool | None
) -> Reproduction:
    """3072-1000-1000-1000-10 on CIFAR-10 at full scale; 64-100-100-100-10 on digits at small scale.

    Args:
        scale: "full" needs CIFAR-10 and, for the DPP over 3072 edges of 1000 units, days on two
            cores.
        seed: of the first network and draw.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
    """
    full = scale == "full"
    small = replace(
        TASKS["digits-mlp"],
        name="digits-mlp-deep",
        title="digits, MLP 64-100-100-100-10, ReLU",
        model=_deep_digits,  # type: ignore[arg-type]
    )
    setting = Setting(
        name="acharyya2021-cifar",
        title="First layer pruned by six methods, with and without reweighting",
        paper="Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning, "
        "CIFAR-10",
        task=TASKS["cifar10-mlp"] if full else small,
        densities=[p / 100 for p in (10, *KEPT)] if full else (0.2, 0.5, 0.8),
        seeds=range(5) if full else range(2),
        samples=50_000 if full else 1000,
        bandwidth="median",
        published=PUBLISHED if full else {},
        published_dense=52.68 if full else None,
        conditions=["β is one over the median squared distance; the paper's is unknown."]
        if full
        else [
            "Small scale: the digits and a smaller network, to see the order of the methods; "
            "nothing published compares. β is one over the median squared distance."
        ],
    )
    return run(setting, seed=seed, data_dir=data_dir, progress=progress)
