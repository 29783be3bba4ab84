"""The data that a command names, as batches: some that calibrate, others that score."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunus.cli.imports import named_function

__all__ = ["Given", "evaluator", "first_samples", "needed_evaluator", "read", "scores"]

BATCH = 1000


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """Data in two parts.

    Attributes:
        name: as given.
        train: batches that calibrate.
        test: batches that had no part in it, or None where there are none.
        fingerprint: of the whole set; None where a user's function gives the batches.
    """

    name: str
    train: Any
    test: Any = None
    fingerprint: str | None = None

    def first(self, rows: int, *, fresh: bool = False) -> Any:
        """The inputs of the first samples, of the test part where `fresh` and there is one."""
        from prunus.calibration.batches import Batches, first_of

        source = self.test if fresh and self.test is not None else self.train
        batch = first_of(Batches(source).peek(), rows)
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key != "labels"}
        return batch[0] if isinstance(batch, tuple | list) else batch

    def limited(self, samples: int | None) -> Any:
        """The batches that calibrate, up to so many samples."""
        return self.train if samples is None else first_samples(self.train, samples)

    def needed(self, option: str) -> Any:
        """The test part, for what would mean nothing on the other."""
        if self.test is None:
            raise ValueError(
                f"{option} needs data that had no part in the pruning, and --data {self.name} has "
                f"one part alone. Give x and y, or a function that returns "
                f'{{"train": batches, "test": batches}}.'
            )
        return self.test

    @property
    def scored(self) -> bool:
        """Whether the test part holds whole-number labels, from which scores follow."""
        from prunus.calibration.batches import Batches

        return self.test is not None and _labels(Batches(self.test).peek()) is not None

    def scores(self, model: Any) -> dict[str, float]:
        """Accuracy, test error and cross-entropy on the test part."""
        return scores(model, self.test)

    def halves(self, option: str) -> tuple["Given", "Given"]:
        """Every other sample of the test part: those that choose, and those that then score."""
        from prunus.calibration.batches import Batches
        from prunus.inputs import samples_of

        parts: list[list[Any]] = [[], []]
        for batch in Batches(self.needed(option)):
            samples = samples_of(batch)
            if samples.size is None or samples.size < 2 or samples.mixed is not None:
                parts[len(parts[0]) > len(parts[1])].append(batch)
                continue
            for start, part in enumerate(parts):
                part.append(samples.take(slice(start, None, 2)))
        if not all(parts):
            raise ValueError(f"{option} needs two test samples at the least, one to choose by.")
        one, other = (replace(self, test=part) for part in parts)
        return one, other


def read(data: str, data_dir: Path | None) -> Given:
    """The data of --data.

    Raises:
        ValueError: no such set, a file that does not fit, or a function that gives no batches.
        FileNotFoundError: no such file.
    """
    if ":" in data and not Path(data).exists():
        return _own(data, named_function("--data", data)())
    from prunus.bench import load_data
    from prunus.bench.data.formats import OWN_FILES, read_arrays

    if data.endswith(OWN_FILES):
        arrays = read_arrays(Path(data))
        if set(arrays) == {"x"}:
            return Given(name=data, train=_unlabelled(data, arrays["x"]))
    loaded = load_data(data, data_dir=data_dir)
    return Given(
        name=data,
        train=loaded.batches(BATCH),
        test=_pairs(loaded.x_test, loaded.y_test),
        fingerprint=loaded.fingerprint,
    )


def _pairs(x: Any, y: Any) -> list[Any]:
    import torch

    return list(zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True))


def _unlabelled(name: str, x: Any) -> list[Any]:
    import numpy as np
    import torch

    if x.ndim < 2 or not len(x) or x.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must hold numbers of shape (samples, ...), got {x.dtype} of shape {x.shape}."
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite; remove the samples with NaN or infinity.")
    whole = x.dtype.kind in "iu" and x.dtype != np.uint8
    tensor = torch.from_numpy(x.astype(np.int64 if whole else np.float32))
    return list(torch.split(tensor, BATCH))


def _own(name: str, found: Any) -> Given:
    """What a user's function gave."""
    from prunus.calibration.batches import Batches

    parts = {"train": found}
    if isinstance(found, Mapping) and set(found) <= {"train", "test"} and "train" in found:
        parts = dict(found)
    read_once = {}
    for key, part in parts.items():
        batches = Batches(part)
        # Batches are read by several passes: to calibrate, to measure, to score.
        read_once[key] = list(batches) if batches.one_shot else part
        batches.peek() if not batches.one_shot else None
    return Given(name=name, train=read_once["train"], test=read_once.get("test"))


def first_samples(batches: Any, samples: int) -> list[Any]:
    """The batches up to so many samples."""
    from prunus.calibration.batches import Batches, first_of, size_of

    kept: list[Any] = []
    left = samples
    for batch in Batches(batches):
        kept.append(first_of(batch, left))
        left -= size_of(kept[-1]) or 1
        if left <= 0:
            break
    return kept


def _labels(batch: Any) -> Any:
    """The whole-number labels of a batch, or None."""
    from torch import Tensor

    found = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) > 1:
        found = batch[1]
    if not isinstance(found, Tensor) or found.is_floating_point() or found.ndim != 1:
        return None
    return found


def scores(model: Any, batches: Any) -> dict[str, float]:
    """Accuracy and test error as shares, and the mean cross-entropy in nats.

    Raises:
        ValueError: labels or logits are missing.
    """
    import torch
    from torch import nn

    from prunus.calibration.batches import Batches, call, to_device
    from prunus.calibration.place import device_of
    from prunus.modes import evaluating, private

    device, right, total, loss = device_of(model), 0, 0, 0.0
    with private(model) as own, evaluating(own, fused=True), torch.no_grad():
        for i, batch in enumerate(Batches(batches)):
            labels = _labels(batch)
            output = call(own, to_device(batch, device), i)
            if isinstance(output, tuple | list) and len(output) == 1:
                output = output[0]  # as programs of torch.export give it
            logits = getattr(output, "logits", output)
            if labels is None or not isinstance(logits, torch.Tensor) or logits.ndim != 2:
                raise ValueError(
                    "Accuracy needs batches with a whole-number label for each sample, and a "
                    "network that gives (samples, classes). Give --evaluate "
                    "package.module:function, called as evaluate(model)."
                )
            odd = labels[(labels < 0) | (labels >= logits.shape[1])]
            if len(odd):
                raise ValueError(
                    f"Labels must lie in [0, {logits.shape[1] - 1}], the network's classes, got "
                    f"{int(odd[0])}. Look at the data, or whether they are this network's."
                )
            labels = labels.to(device)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            total += len(labels)
    return {
        "accuracy": right / total,
        "test_error": (total - right) / total,
        "cross_entropy": loss / total,
    }


Evaluate = Callable[[Any], Any]


def evaluator(given: Given | None, own: str | os.PathLike[str] | None) -> Evaluate | None:
    """A user's own function, or the scores of the test part; None where neither is there."""
    if own is not None:
        return named_function("--evaluate", os.fspath(own))
    return given.scores if given is not None and given.scored else None


def needed_evaluator(given: Given | None, own: str | os.PathLike[str] | None, why: str) -> Evaluate:
    """The same, for what means nothing without one.

    Args:
        given: of --data.
        own: of --evaluate.
        why: the option or command that asks for it.

    Raises:
        ValueError: there is none.
    """
    if given is None and own is None:
        raise ValueError(f"{why} needs --data, or --evaluate, which says what the metric is.")
    found = evaluator(given, own)
    if found is None:
        name = "" if given is None else f" {given.name}"
        raise ValueError(f"{why}: --data{name} has no labels to score by. Give --evaluate.")
    return found
