"""`export`: the compact network where there is one, written by a format, checked and timed."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.ambient import plainly, quiet
from prunus.calibration.batches import call, to_device
from prunus.calibration.place import device_of
from prunus.check import unknown
from prunus.cost import compared_times, interleaved, latency_of
from prunus.export.answer import Export, Timing
from prunus.export.check import inputs_of
from prunus.export.job import Engine, Format, Job, Shipped, answer, entries
from prunus.export.to_hf import write_hf
from prunus.export.to_onnx import write_onnx
from prunus.export.to_pt2 import write_pt2
from prunus.export.to_safetensors import write_safetensors
from prunus.hints import Batch
from prunus.inputs import samples_of
from prunus.modes import evaluating, private
from prunus.surgery.alike import rounded
from prunus.surgery.configs import UnsaidWidths
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.verify import CompactionError

__all__ = ["FORMATS", "export", "timed"]

FORMATS: dict[str, Format] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "hf": write_hf,
    "safetensors": write_safetensors,
}

ROUND = 8  # entries that vector units take at a time


@plainly
def export(
    pruned: Any,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    example: Batch = None,
    measure: bool = True,
    int8: bool = False,
    seconds: float = 0.5,
) -> Export:
    """Write a pruned network for other software; see `Pruned.export`.

    Args:
        pruned: a `Pruned`.
        path: of the file, or of the folder for "hf" and "safetensors".
        format: a name in `FORMATS`.
        example: one batch; the first samples of the pruning data where None.
        measure: time the written network against the dense one, in torch and in the engine that
            reads the format, in turn. Where odd widths of the compact network cost time, the
            notes propose rounder ones, measured too.
        int8: for "onnx", also write and time weights of eight bits.
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
    if int8 and format != "onnx":
        raise ValueError(f"Only the format 'onnx' has eight bits, got {format!r}.")
    if given is not None:  # what does not run is said before exporters print their own traces
        with private(pruned.model) as own, evaluating(own), torch.no_grad():
            call(own, given)
    written = FORMATS[format](Job(pruned=pruned, path=Path(path), example=given, int8=int8))
    if not measure:
        return answer(format, written, ())
    if given is None or pruned.dense is None:
        missing = "an example batch" if given is None else "the dense network"
        said = f"Nothing was timed: that needs {missing}, which this result lacks."
        return answer(format, written, (), said)
    engines = (torch_engine(written.network.model, given), *written.engines)
    with private(pruned.dense) as dense:
        timings = tuple(timed(engine(dense), given, seconds) for engine in engines)
    return answer(format, written, timings, *_rounder(pruned, written.network, given, seconds))


def _rounder(pruned: Any, network: Shipped, example: Batch, seconds: float) -> tuple[str, ...]:
    """What widths that are multiples of eight would gain, measured on units left as zeros."""
    if not network.compact:
        return ()
    try:
        with quiet(UnsaidWidths), quiet(PinnedChannels):  # no matter here
            other: nn.Module = pruned.compact(example, spare=rounded(ROUND)).eval()
    except CompactionError:  # parts that have to be equal
        return ()
    if entries(other) == entries(network.model):
        return ()  # they are
    gain = timed(torch_engine(other, example)(network.model), example, seconds).gain
    if gain.verdict != "faster":
        return ()
    return (
        f"Odd widths cost time here: with zero units left so that widths are multiples of {ROUND}, "
        f"the network is {gain.ratio:.2f}× as fast ({gain.low:.2f} to {gain.high:.2f}). Prune with "
        f"Node(multiple_of={ROUND}).",
    )


def torch_engine(model: nn.Module, example: Batch) -> Callable[[nn.Module], Engine]:
    """torch itself, on the device where the network lies."""

    def make(dense: nn.Module) -> Engine:
        device = device_of(model)
        batch = to_device(example, device)

        def run(network: nn.Module) -> Callable[[], None]:
            def once() -> None:
                with torch.no_grad():
                    call(network, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            return once

        return Engine(
            name="torch",
            before=run(dense),
            after=run(model),
            models=(dense, model),
            threads=torch.get_num_threads(),
            device=device.type,
        )

    return make


def timed(engine: Engine, batch: Batch, seconds: float) -> Timing:
    """Both networks in turn, and what that says of their speeds."""
    with ExitStack() as stack:
        for model in engine.models:
            stack.enter_context(evaluating(model, fused=True))
        alone = engine.threads == 1 and engine.device == "cpu"
        # Of one thread, processor time is its latency without what other programs took meanwhile.
        clock = time.thread_time if alone else time.perf_counter
        before, after = interleaved([engine.before, engine.after], seconds=seconds, clock=clock)
    size = samples_of(batch).size or 1
    return Timing(
        engine=engine.name,
        before=latency_of(before, size, engine.threads),
        after=latency_of(after, size, engine.threads),
        gain=compared_times(before, after),
        device=engine.device,
        inputs=inputs_of(batch),
    )
