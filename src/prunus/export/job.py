"""What a format is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from prunus.ambient import quiet
from prunus.export.answer import Check, Export, Timing
from prunus.hints import Batch
from prunus.modes import copied
from prunus.surgery.configs import UnsaidWidths
from prunus.surgery.verify import CompactionError

__all__ = [
    "Engine",
    "Format",
    "Job",
    "Shipped",
    "Written",
    "answer",
    "entries",
    "needs_example",
    "shipped",
]

IDLE = "Its zeros lie in dense tensors and save no time."


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A network to be written.

    Attributes:
        pruned: the result that it comes from.
        path: of the file, or of the folder.
        example: one batch, on the model's device; None where nothing was given.
        int8: write whole numbers of eight bits beside it, where the format has them.
    """

    pruned: Any
    path: Path
    example: Batch
    int8: bool = False


@dataclass(frozen=True, eq=False)
class Shipped:
    """The network that goes into a file.

    Attributes:
        model: it, a copy in evaluation mode.
        compact: True for the physically smaller network, False for the one with zeros.
        notes: what is to be said of it.
    """

    model: nn.Module
    compact: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """What runs written networks, for timing.

    Attributes:
        name: "torch", "onnxruntime", …
        before: runs the dense network once, on the example.
        after: runs the written one.
        threads: that it uses.
        device: where it runs.
        models: torch modules among them, put in evaluation mode while they are timed.
    """

    name: str
    before: Callable[[], Any]
    after: Callable[[], Any]
    threads: int
    device: str
    models: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Written:
    """What a format has written.

    Attributes:
        network: what is in the files.
        files: all of them, whole.
        checked: how they were run again and compared.
        engines: make engines for timing, beside torch, from the dense network.
        notes: what the reader should know.
    """

    network: Shipped
    files: tuple[Path, ...]
    checked: tuple[Check, ...]
    engines: tuple[Callable[[nn.Module], Engine], ...] = ()
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """Writes a network, runs what it wrote, and compares; the files get their names last."""

    def __call__(self, job: Job) -> Written: ...


def shipped(pruned: Any, example: Batch) -> Shipped:
    """The compact network where it is smaller, else the one with zeros."""
    if example is None and getattr(pruned, "stored_compact", None) is None:
        return Shipped(copied(pruned.model).eval(), False, (IDLE,))
    try:
        with quiet(UnsaidWidths):  # no matter here
            small = pruned.compact(example)
    except CompactionError as error:
        return Shipped(copied(pruned.model).eval(), False, (f"{IDLE} {error}",))
    if entries(small) < entries(pruned.model):
        return Shipped(small.eval(), True)
    return Shipped(copied(pruned.model).eval(), False, (IDLE,))


def needs_example(job: Job, format: str) -> Any:
    """The job's example, or a ValueError where there is none."""
    if job.example is None:
        raise ValueError(
            f"The format {format!r} needs an example to run the network on, and this result has "
            f"none. Pass example=, one batch."
        )
    return job.example


def entries(model: nn.Module) -> int:
    """The number of all parameters, zeros too."""
    return sum(p.numel() for p in model.parameters())


def answer(format: str, written: Written, timings: tuple[Timing, ...], *notes: str) -> Export:
    """What is said of an export."""
    return Export(
        format=format,
        files=written.files,
        bytes=sum(file.stat().st_size for file in written.files),
        compact=written.network.compact,
        checked=written.checked,
        latency=timings,
        verdict="\n".join(str(timing) for timing in timings),
        notes=(*written.network.notes, *written.notes, *notes),
    )
