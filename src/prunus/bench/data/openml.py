"""The image sets from OpenML, for those who name no folder."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Source", "fetch"]


@dataclass(frozen=True)
class Source:
    """A set on OpenML whose first `train` rows are the published training part."""

    name: str
    version: int
    train: int
    shape: tuple[int, int, int]


def fetch(source: Source) -> dict[str, np.ndarray]:
    """The arrays x_train, y_train, x_test, y_test, downloaded once and cached by scikit-learn.

    Raises:
        ImportError: scikit-learn is not installed.
        OSError: the download failed; the message says how to go on without a network.
    """
    try:
        from sklearn.datasets import fetch_openml
    except ImportError:
        raise ImportError(
            "Fetching data needs scikit-learn, which comes with an extra: "
            "pip install 'prunus[data]'. Or give a local folder with --data-dir."
        ) from None
    home = Path(os.environ.get("PRUNUS_CACHE") or Path.home() / ".cache" / "prunus") / "openml"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told of every retry
            table = fetch_openml(
                source.name,
                version=source.version,
                as_frame=False,
                parser="liac-arff",
                data_home=home,
            )
    except OSError as error:
        raise OSError(
            f"{source.name} could not be fetched from OpenML ({error}). No network: give a local "
            f"folder with --data-dir, or set PRUNUS_DATA to it."
        ) from None
    pixels = np.asarray(table.data, dtype=np.uint8).reshape(-1, *source.shape)
    labels = np.asarray(table.target).astype(np.uint8)
    if len(pixels) <= source.train:
        raise OSError(
            f"OpenML's {source.name} has {len(pixels)} rows, more than {source.train} were "
            f"expected. Remove {home} and fetch it again."
        )
    return {
        "x_train": pixels[: source.train],
        "y_train": labels[: source.train],
        "x_test": pixels[source.train :],
        "y_test": labels[source.train :],
    }
