"""Acharyya et al. (2021), figure 2: six ways to prune the first layer of an MNIST MLP."""

from pathlib import Path

from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.acharyya2021 import Setting, run
from prunus.reproduce.harness import Harness

__all__ = ["reproduce"]

KEPT = (20, 30, 40, 50, 60, 70, 80, 90)
PUBLISHED = {
    "DPP edge": dict(zip(KEPT, (3.99, 3.84, 3.77, 3.73, 3.71, 3.69, 3.67, 3.66), strict=True)),
    "DIVNET (DPP node)": dict(
        zip(KEPT, (4.01, 3.97, 3.93, 3.87, 3.81, 3.84, 3.71, 3.72), strict=True)
    ),
    "random edge": dict(zip(KEPT, (4.81, 4.21, 3.99, 3.81, 3.75, 3.72, 3.69, 3.67), strict=True)),
}


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """784-500-500-10 on MNIST at full scale; 64-300-100-10 on the digits at small scale.

    Args:
        scale: "full" needs MNIST.
        seed: of the first network and draw.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    return run(setting(scale), seed=seed, data_dir=data_dir, progress=progress, harness=harness)


def setting(scale: Scale) -> Setting:
    """What is run at a scale."""
    full = scale == "full"
    return Setting(
        name="acharyya2021-mnist",
        title="First layer pruned by six methods, with and without reweighting",
        paper="Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning, "
        "MNIST",
        task="mnist-mlp" if full else "digits-mlp",
        densities=[p / 100 for p in (10, *KEPT)] if full else (0.2, 0.5, 0.8),
        seeds=range(5 if full else 3),
        samples=60_000 if full else 1000,
        bandwidth=10.0 if full else "median",
        published=PUBLISHED if full else {},
        published_dense=3.67 if full else None,
        conditions=[
            "β = 10 per mean squared distance, the paper's 10/60000 per sum, at every density; the "
            "paper's own points above 50 % must come from another, unknown one."
        ]
        if full
        else [
            "Small scale: the digits and a smaller network, to see the order of the methods; "
            "nothing published compares. β is one over the median squared distance."
        ],
    )
