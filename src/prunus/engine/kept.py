"""Runs of a comparison in a file: on disk when they are done, read back instead of run again."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

import prunus
from prunus.budget import Density
from prunus.files import LineFile, Row, numbers, row_text, whole_lines
from prunus.reading import json_object
from prunus.recipe import Recipe
from prunus.result import weights_digest

__all__ = ["Kept", "identity", "run_of"]

WORDS = ("run", "recipe", "recipe_digest", "density")  # of a record, which hold no numbers by name


def identity(
    model: nn.Module,
    data: str,
    options: Mapping[str, object],
    functions: Sequence[Callable[..., object]],
) -> str:
    """A hash of all that the runs of a comparison share and that can be told.

    Args:
        model: its weights count.
        data: fingerprint of the calibration data.
        options: by their repr.
        functions: by module and name; what they do cannot be told.
    """
    named = [
        f"{getattr(f, '__module__', '')}.{getattr(f, '__qualname__', type(f).__qualname__)}"
        for f in functions
    ]
    shown = {name: repr(value) for name, value in options.items()}
    return _hash([prunus.__version__, weights_digest(model), data, shown, named])


class Kept:
    """The file of a comparison's records, of this one's and perhaps of others'."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or make the file and read it.

        Raises:
            OSError: it cannot be written.
            ValueError: a line that is no record; it names file and line.
        """
        self.path = Path(path)
        self._file = LineFile(path)
        self._rows = {row["run"]: row for row in _rows(self.path) if "run" in row}

    def find(
        self, run: str, dense: Mapping[str, float], metric: str, *, latency: bool
    ) -> tuple[Row, Row | None] | None:
        """A run that is done: its record, and its latency where that is asked for.

        Raises:
            ValueError: `evaluate` says another thing of the dense model now.
        """
        row = self._rows.get(run)
        if row is None or (latency and row.get("compact_latency") is None):
            return None
        before = row.get(f"{metric}_before")
        if not isinstance(before, int | float) or not _alike(before, dense[metric]):
            raise ValueError(
                f"{self.path} holds runs in which {metric} of the dense model was {before}; now it "
                f"is {dense[metric]}. Name another file for another `evaluate`."
            )
        record = dict(row)
        return record, record.pop("compact_latency", None)

    def add(self, record: Row, latency: Row | None) -> None:
        """Put a run down; it is on disk afterwards.

        Raises:
            OSError: the disk is full or the file was taken away. Earlier runs are whole.
        """
        more = {} if latency is None else {"compact_latency": latency}
        self._file.append(row_text({**record, **more}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def run_of(shared: str, label: str, recipe: Recipe, density: Density, seed: int) -> str:
    """The name of one run of a comparison that `identity` told."""
    return _hash([shared, label, recipe.digest, repr(density), seed])


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _alike(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4) or (math.isnan(a) and math.isnan(b))


def _rows(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(whole_lines(path)[0], start=1):
        try:
            row = json_object(line, "it")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is no record ({error}). Remove the line, or name another "
                f"file."
            ) from None
        rows.append({k: v if k in WORDS else numbers(v) for k, v in row.items()})
    return rows
