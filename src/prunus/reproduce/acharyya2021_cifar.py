"""Acharyya et al. (2021): six ways to prune the first layer of a CIFAR-10 MLP."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from prunus.bench.data.models import mlp
from prunus.bench.data.tasks import TASKS
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.acharyya2021 import Setting, run
from prunus.reproduce.harness import Harness

__all__ = ["deep_digits", "reproduce"]

KEPT = (20, 30, 40, 50, 60, 70, 80, 90)
PUBLISHED = {
    "DPP edge": dict(
        zip(KEPT, (52.77, 52.73, 52.71, 52.70, 52.68, 52.67, 52.66, 52.66), strict=True)
    ),
    "DIVNET (DPP node)": dict(
        zip(KEPT, (53.37, 53.04, 53.07, 52.89, 52.87, 52.81, 52.85, 52.73), strict=True)
    ),
}


def _network() -> nn.Module:
    return mlp((64, 100, 100, 100, 10))


deep_digits = replace(
    TASKS["digits-mlp"],
    name="prunus.reproduce.acharyya2021_cifar:deep_digits",
    title="digits, MLP 64-100-100-100-10, ReLU",
    model=_network,
)


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """3072-1000-1000-1000-10 on CIFAR-10 at full scale; 64-100-100-100-10 on digits at small scale.

    Args:
        scale: "full" needs CIFAR-10.
        seed: of the first network and draw.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    return run(setting(scale), seed=seed, data_dir=data_dir, progress=progress, harness=harness)


def setting(scale: Scale) -> Setting:
    """What is run at a scale."""
    name, title = "acharyya2021-cifar", "First layer pruned by six methods"
    paper = "Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning"
    if scale == "small":
        return Setting(
            name=name,
            title=title,
            paper=f"{paper}, CIFAR-10",
            task=deep_digits.name,
            densities=(0.2, 0.5, 0.8),
            seeds=range(3),
            samples=1000,
            bandwidth="median",
            published={},
            published_dense=None,
            conditions=[
                "Small scale: the digits and a smaller network, to see the order of the methods; "
                "nothing published compares. β is one over the median squared distance."
            ],
        )
    return Setting(
        name=name,
        title=title,
        paper=f"{paper}, CIFAR-10",
        task="cifar10-mlp",
        densities=[p / 100 for p in (10, *KEPT)],
        seeds=range(3),
        samples=50_000,
        bandwidth="median",
        published=PUBLISHED,
        published_dense=52.68,
        poisson=True,
        dpp_edge_densities=(0.2, 0.5, 0.8),
        dpp_edge_seeds=range(1),
        conditions=[
            "β is one over the median squared distance; the paper's is unknown.",
            "DPP edges are drawn by the Poisson form of the k-DPP (its inclusion probabilities "
            "without its repulsion), at 3 densities and for 1 network: a k-DPP of 3072 items for "
            "each of 1000 units takes 13 to 22 minutes of a core per mask even so.",
        ],
    )
