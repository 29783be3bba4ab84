"""How the settings of `han2015b-lenet` are chosen: on images that neither train nor test."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import TASKS, Task
from prunus.bench.data.train import Training
from prunus.bench.record import Record
from prunus.reproduce.han2015b_tasks import HELD, held_out_task

__all__ = ["Candidate", "candidates", "decay_01", "decay_05", "decay_10", "smallest"]


ROUNDING = 1e-9  # points; errors are whole numbers over 5000


def _data(*, data_dir: str | Path | None) -> Dataset:
    """The training images of `lenet300`, and in the test's place those that it holds out."""
    whole = TASKS["mnist-lenet300"].data(data_dir=data_dir)
    return replace(
        whole,
        x_train=whole.x_train[:-HELD], y_train=whole.y_train[:-HELD],
        x_test=whole.x_train[-HELD:], y_test=whole.y_train[-HELD:],
    )  # fmt: skip


def _tried(name: str, decay: float) -> Task:
    """`lenet300` with another weight decay in retraining, scored on what it holds out."""
    own = held_out_task(
        name,
        TASKS["mnist-lenet300"],
        HELD,
        Training(epochs=10, learning_rate=2e-3, batch=256),
        Training(epochs=6, learning_rate=2e-3, weight_decay=decay, batch=256),
        Training(epochs=2, learning_rate=2e-4, batch=256),
    )
    return replace(
        own,
        name=f"prunus.reproduce.han2015b_choice:{name}",
        data=_data,
        definition=f"{own.definition}, which test",
    )


decay_01 = _tried("decay_01", 0.1)
decay_05 = _tried("decay_05", 0.5)
decay_10 = _tried("decay_10", 1.0)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting that was tried.

    Attributes:
        task: whose weight decay.
        budget: the densities, as records have them.
        way: to compress.
        networks: of which the others are means.
        bytes: of the file.
        ratio: dense bytes over these.
        excess: error on held-out images above the dense networks', in points.
    """

    task: str
    budget: str
    way: str
    networks: int
    bytes: float
    ratio: float
    excess: float


def candidates(records: Sequence[Record]) -> list[Candidate]:
    """All settings of finished records, the smallest files first."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.budget), []).append(record)
    found = []
    for (task, budget), own in groups.items():
        for way in own[0].extra["compressed"]:
            files = [r.extra["compressed"][way] for r in own]
            size = statistics.fmean(file["bytes"] for file in files)
            found.append(
                Candidate(
                    task=task,
                    budget=budget,
                    way=way,
                    networks=len(own),
                    bytes=size,
                    ratio=statistics.fmean(file["dense_bytes"] for file in files) / size,
                    excess=statistics.fmean(
                        100 * (file["scores"]["test_error"] - r.before["test_error"])
                        for file, r in zip(files, own, strict=True)
                    ),
                )
            )
    return sorted(found, key=lambda c: c.bytes)


def smallest(records: Sequence[Record], above: float) -> Candidate:
    """The smallest file whose network errs at most `above` points more than the dense one.

    Raises:
        ValueError: none does.
    """
    for candidate in candidates(records):
        if candidate.excess <= above + ROUNDING:
            return candidate
    raise ValueError(f"No setting errs at most {above} points more than dense. Ask for more.")
