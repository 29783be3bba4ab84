"""`export`: the compact network where there is one, written by a format, checked and timed."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.ambient import plainly
from prunus.calibration.batches import call, to_device
from prunus.calibration.place import device_of
from prunus.check import unknown
from prunus.cost import compared_times, interleaved, latency_of
from prunus.export.answer import Export, Timing
from prunus.export.check import inputs_of
from prunus.export.job import Engine, Format, Job
from prunus.export.to_hf import write_hf
from prunus.export.to_safetensors import write_safetensors
from prunus.inputs import samples_of
from prunus.modes import copied, evaluating, private
from prunus.surgery.verify import CompactionError

__all__ = ["FORMATS", "Format", "export", "shipped"]

FORMATS: dict[str, Format] = {"hf": write_hf, "safetensors": write_safetensors}
IDLE = "Its zeros lie in dense tensors and save no time."


@plainly
def export(
    pruned: Any,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    example: Any = None,
    measure: bool = True,
    seconds: float = 0.5,
) -> Export:
    """Write a pruned network for other software; see `Pruned.export`.

    Args:
        pruned: a `Pruned`.
        path: of the file, or of the folder for "hf" and "safetensors".
        format: a name in `FORMATS`.
        example: one batch; the first samples of the pruning data where None.
        measure: time the written network against the dense one, in torch and in the engine that
            reads the format, in turn.
        seconds: about how long to time each network in each engine.

    Raises:
        ExportError: the network cannot be written so, or what was written is another one. No file
            has been put in place then.
        ValueError: an unknown format, or no example where one is needed.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    given = pruned.example if example is None else example
    if given is not None:
        given = to_device(given, device_of(pruned.model))
    model, compact, notes = shipped(pruned, given)
    job = Job(pruned=pruned, model=model, compact=compact, path=Path(path), example=given)
    written = FORMATS[format](job)
    timings: tuple[Timing, ...] = ()
    if measure and given is not None and pruned.dense is not None:
        makers = [torch_engine(job)]
        if written.engine is not None:
            makers.append(written.engine)
        with private(pruned.dense) as dense:
            timings = tuple(timed(maker(dense), given, seconds) for maker in makers)
    elif measure:
        missing = "an example batch" if given is None else "the dense network"
        notes = (*notes, f"Nothing was timed: that needs {missing}, which this result lacks.")
    return Export(
        format=format,
        files=written.files,
        bytes=sum(file.stat().st_size for file in written.files),
        compact=compact,
        checked=written.checked,
        latency=timings,
        verdict="\n".join(str(timing) for timing in timings),
        notes=(*notes, *written.notes),
    )


def shipped(pruned: Any, example: Any) -> tuple[nn.Module, bool, tuple[str, ...]]:
    """The network to write, whether it is a smaller one, and what is to be said of it."""
    if example is None and getattr(pruned, "stored_compact", None) is None:
        return copied(pruned.model).eval(), False, (IDLE,)
    try:
        small = pruned.compact(example)
    except CompactionError as error:
        return copied(pruned.model).eval(), False, (f"{IDLE} {error}",)
    if _entries(small) < _entries(pruned.model):
        return small.eval(), True, ()
    return copied(pruned.model).eval(), False, (IDLE,)


def _entries(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def torch_engine(job: Job) -> Callable[[nn.Module], Engine]:
    """torch itself, on the device where the network lies."""

    def make(dense: nn.Module) -> Engine:
        device = device_of(job.model)
        batch = to_device(job.example, device)

        def run(model: nn.Module) -> Callable[[], None]:
            def once() -> None:
                with torch.no_grad():
                    call(model, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            return once

        return Engine(
            name="torch",
            before=run(dense),
            after=run(job.model),
            models=(dense, job.model),
            threads=torch.get_num_threads(),
            device=device.type,
        )

    return make


def timed(engine: Engine, batch: Any, seconds: float) -> Timing:
    """Both networks in turn, and what that says of their speeds."""
    with ExitStack() as stack:
        for model in engine.models:
            stack.enter_context(evaluating(model, fused=True))
        before, after = interleaved([engine.before, engine.after], seconds=seconds)
    size = samples_of(batch).size or 1
    return Timing(
        engine=engine.name,
        before=latency_of(before, size, engine.threads),
        after=latency_of(after, size, engine.threads),
        gain=compared_times(before, after),
        device=engine.device,
        inputs=inputs_of(batch),
    )
