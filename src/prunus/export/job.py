"""What a format is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from prunus.export.answer import Check

__all__ = ["Engine", "Format", "Job", "Written"]

# Runs one network once on an input that it has been given before.
Run = Callable[[], Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A network to be written.

    Attributes:
        pruned: the result that it comes from.
        model: the network, in evaluation mode: the compact one where there is one.
        compact: whether it is.
        path: of the file, or of the folder.
        example: one batch, on the model's device; None where nothing was given.
    """

    pruned: Any
    model: nn.Module
    compact: bool
    path: Path
    example: Any


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """What runs written networks, for timing.

    Attributes:
        name: "torch", "onnxruntime", …
        before: runs the dense network once.
        after: runs the written one.
        threads: that it uses.
        device: where it runs.
        models: torch modules among them, put in evaluation mode while they are timed.
    """

    name: str
    before: Run
    after: Run
    threads: int
    device: str
    models: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Written:
    """What a format has written.

    Attributes:
        files: all of them, whole.
        checked: how they were run again and compared.
        engine: makes an engine of its own for timing, or None where only torch runs it.
        notes: what the reader should know.
    """

    files: tuple[Path, ...]
    checked: tuple[Check, ...]
    engine: Callable[[nn.Module], Engine] | None = None
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """Writes a network, runs what it wrote, and compares; the files get their names last."""

    def __call__(self, job: Job) -> Written: ...
