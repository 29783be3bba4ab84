"""What an export answers: files, how they were checked, and what they gain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunus.cost import Latency, Speedup

__all__ = ["Check", "Export", "Timing"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The written network against the one that was to be written, on one input.

    Attributes:
        engine: what ran the file.
        inputs: the shapes of what was given.
        error: largest difference of an output, over its largest size.
        limit: the largest error that is accepted.
    """

    engine: str
    inputs: Mapping[str, tuple[int, ...]]
    error: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Two networks timed in turn by one engine.

    Attributes:
        engine: "torch", "onnxruntime", or one of these with what was changed.
        before: the dense network.
        after: the one that was written.
        gain: how much faster that is, with an interval and a verdict.
        device: where it ran.
        inputs: the shapes of what was given.
    """

    engine: str
    before: Latency
    after: Latency
    gain: Speedup
    device: str
    inputs: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        threads = f"{self.after.threads} thread" + "s" * (self.after.threads != 1)
        return (
            f"{self.engine} on {self.device}, {threads}, input {_shown(self.inputs)}: "
            f"{self.gain.verdict}, {self.gain.ratio:.2f}× the dense network's speed "
            f"({self.gain.low:.2f} to {self.gain.high:.2f})"
        )


@dataclass(frozen=True, kw_only=True)
class Export:
    """A network on disk.

    Attributes:
        format: "onnx", "pt2", "hf" or "safetensors".
        files: what was written.
        bytes: the size of all files together.
        compact: True for the physically smaller network, False for the one with zeros.
        checked: how the files were run again and compared, before they got their names.
        latency: dense against written network, one entry for each engine.
        verdict: what is gained, in a sentence for each engine.
        notes: what the reader should know.
    """

    format: str
    files: tuple[Path, ...]
    bytes: int
    compact: bool
    checked: tuple[Check, ...]
    latency: tuple[Timing, ...] = ()
    verdict: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    def summary(self) -> str:
        """The answer as text."""
        lines = [f"{self.format}: {', '.join(map(str, self.files))} ({self.bytes:,} bytes)"]
        lines += [
            f"checked in {check.engine} on input {_shown(check.inputs)}: "
            f"error {check.error:.1e} of the largest output, at most {check.limit:.0e}"
            for check in self.checked
        ]
        return "\n".join([*lines, *([self.verdict] if self.verdict else []), *self.notes])


def _shown(inputs: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in inputs.values())
