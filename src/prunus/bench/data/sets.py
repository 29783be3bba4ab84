"""Data sets by name or from a file: images, labels and a fingerprint of what was read."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from prunus.bench.data import formats, openml
from prunus.check import unknown
from prunus.rng import generator_for

__all__ = ["DATA_SETS", "Dataset", "load_data", "stratified_split"]

TEST_SHARE = 0.25  # of a set that comes without a split of its own
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Inputs and labels, split into training and test.

    Attributes:
        name: as asked for, or the file's path.
        x_train: inputs; images are (samples, channels, height, width).
        y_train: whole-number labels, one per input.
        x_test: as `x_train`.
        y_test: as `y_train`.
        fingerprint: hash of the values before scaling; two sets with equal content share it.
        note: how the values were scaled and split, in words.
    """

    name: str
    x_train: Num[Tensor, "train ..."]
    y_train: Num[Tensor, " train"]
    x_test: Num[Tensor, "test ..."]
    y_test: Num[Tensor, " test"]
    fingerprint: str
    note: str = field(default="")

    def __repr__(self) -> str:
        classes = len(torch.unique(self.y_train))
        return (
            f"Dataset({self.name!r}: {len(self.x_train):,} + {len(self.x_test):,} samples of shape "
            f"{tuple(self.x_train.shape[1:])}, {classes} classes; {self.note or 'not scaled'})"
        )

    def batches(self, size: int = 1000, *, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The first `limit` training samples (None: all) as (inputs, labels) batches."""
        count = len(self.x_train) if limit is None else min(limit, len(self.x_train))
        x, y = self.x_train[:count], self.y_train[:count]
        return list(zip(torch.split(x, size), torch.split(y, size), strict=True))


@dataclass(frozen=True)
class ImageSet:
    """Where a named image set comes from, and how its pixels in [0, 1] are standardised."""

    read: Callable[[Path], Arrays]
    openml: openml.Source
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


IMAGE_SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        lambda folder: formats.read_idx_set(folder, "mnist"),
        openml.Source("mnist_784", 1, 60000, (1, 28, 28)),
        (0.1307,),
        (0.3081,),
    ),
    "fashion-mnist": ImageSet(
        lambda folder: formats.read_idx_set(folder, "fashion-mnist"),
        openml.Source("Fashion-MNIST", 1, 60000, (1, 28, 28)),
        (0.2860,),
        (0.3530,),
    ),
    "cifar10": ImageSet(
        formats.read_cifar10,
        openml.Source("CIFAR_10", 1, 50000, (3, 32, 32)),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
}
DATA_SETS = ("digits", *IMAGE_SETS)


def load_data(name: str | os.PathLike[str], *, data_dir: str | Path | None = None) -> Dataset:
    """The data set called `name`, or the one in a file with arrays x and y (.npz, .pt).

    `digits` comes with scikit-learn. `mnist`, `fashion-mnist` and `cifar10` are read from
    `data_dir` (or the folder that the environment variable PRUNUS_DATA names), in the form their
    sites offer them; without a folder they are fetched from OpenML and cached.

    Args:
        name: one of `DATA_SETS`, or the path of a `.npz` or `.pt` file. A file's x and y (in a .pt
            file also a pair) are split 3 : 1 by class; x_train, y_train, x_test and y_test are
            taken as they are.
        data_dir: folder with the files of the named sets.

    Returns:
        float32 images standardised by the set's usual mean and deviation (digits: scaled to
        [0, 1]); a file's floats as float32, its whole numbers beyond uint8 as int64, unscaled.

    Raises:
        ValueError: an unknown name, or a file whose arrays do not fit; the message says which.
        FileNotFoundError: files are missing; it says which, where it looked, how to get them.
        ImportError: scikit-learn (the extra `data`) is needed and not installed.
        OSError: nothing on disk and no network.
    """
    text = os.fspath(name)
    if text.endswith(formats.OWN_FILES):
        return _from_file(Path(text))
    if text == "digits":
        return _digits()
    if text not in IMAGE_SETS:
        error = unknown("data set", text, DATA_SETS)
        raise ValueError(
            f"{error} A file of your own must end in .npz or .pt and hold arrays x and y."
        )
    source = IMAGE_SETS[text]
    folder = data_dir or os.environ.get("PRUNUS_DATA") or None
    arrays = source.read(Path(folder)) if folder else openml.fetch(source.openml)
    mean = torch.tensor(source.mean)[:, None, None]
    deviation = torch.tensor(source.deviation)[:, None, None]

    def scaled(pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(np.array(pixels)).to(torch.float32).div_(255)
        return images.sub_(mean).div_(deviation)

    return Dataset(
        name=text,
        x_train=scaled(arrays["x_train"]),
        y_train=torch.from_numpy(arrays["y_train"].astype(np.int64)),
        x_test=scaled(arrays["x_test"]),
        y_test=torch.from_numpy(arrays["y_test"].astype(np.int64)),
        fingerprint=_fingerprint(arrays),
        note=f"pixels / 255, minus {source.mean}, over {source.deviation}; the set's own split",
    )


def stratified_split(
    labels: np.ndarray, share: float, *, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of training and test, with `share` of every class in the test part.

    A class of n samples gives floor(share · n + 1/2) to the test part, so a class of one stays in
    the training part when the share is below one half.
    """
    test: list[np.ndarray] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        test.append(members[order[: int(share * len(members) + 0.5)]])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed; it comes with an extra: "
            "pip install 'prunus[data]'."
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return _split("digits", images, labels.astype(np.int64), "pixels / 16; ")


def _from_file(path: Path) -> Dataset:
    arrays = formats.read_arrays(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        parts = {part: formats.checked_pair(path, arrays, part) for part in ("_train", "_test")}
        (x, y), (x_test, y_test) = parts["_train"], parts["_test"]
        if x.shape[1:] != x_test.shape[1:]:
            raise ValueError(
                f"{path}: `x_train` and `x_test` must agree in shape beyond the first axis, got "
                f"{x.shape} and {x_test.shape}."
            )
        return Dataset(
            name=str(path),
            x_train=torch.from_numpy(x),
            y_train=torch.from_numpy(y),
            x_test=torch.from_numpy(x_test),
            y_test=torch.from_numpy(y_test),
            fingerprint=_fingerprint({"x": x, "y": y, "x_test": x_test, "y_test": y_test}),
            note="as in the file",
        )
    x, y = formats.checked_pair(path, arrays, "")
    return _split(str(path), x, y, "")


def _split(name: str, x: np.ndarray, y: np.ndarray, note: str) -> Dataset:
    train, test = stratified_split(y, TEST_SHARE, generator=generator_for(0, "split"))
    if not len(test):
        raise ValueError(
            f"{name}: no class has two samples, so nothing is left to test on, got {len(y)} "
            f"samples. Add samples, or save x_train, y_train, x_test and y_test."
        )
    return Dataset(
        name=name,
        x_train=torch.from_numpy(x[train]),
        y_train=torch.from_numpy(y[train]),
        x_test=torch.from_numpy(x[test]),
        y_test=torch.from_numpy(y[test]),
        fingerprint=_fingerprint({"x": x, "y": y}),
        note=f"{note}a fixed quarter of every class is the test part",
    )


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
