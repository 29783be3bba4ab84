"""The published claims of Frankle and Carbin (2019) alone, by the trainings that they compare."""

from pathlib import Path

from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.frankle2019_mnist import of_scale
from prunus.reproduce.harness import Harness

__all__ = ["reproduce"]


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Every published claim judged, by a third of the trainings of `frankle2019-mnist`.

    Args:
        scale: "full": LeNet-300-100 on MNIST, 15 rounds, five seeds; "small": an MLP on the
            digits, five rounds, three seeds.
        seed: the first.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
        harness: where records lie, which `frankle2019-mnist` goes on from.

    Raises:
        ValueError: workers or a cluster are asked for: rounds follow one another in this process.
    """
    return of_scale(
        scale, claims_alone=True, seed=seed, data_dir=data_dir, progress=progress, harness=harness
    )
