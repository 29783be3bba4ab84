"""What pruning a folder needs: memory, disk and time, from the sizes of one block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["RATES", "Needs", "needs_of", "time_words"]

# Floating-point operations per second of one thread of a loaded CPU, and of one accelerator.
RATES = {"cpu": (5e10, 6.4e9), "cuda": (1e14, 1e12), "mps": (5e12, 1e11)}
BATCH_COPIES = 12  # tensors of the size of a batch's stream that a block holds at once
SWEEP_COPIES = 2  # matrices beside the Gram that a factorisation holds at once


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one pruning takes.

    memory = copies · b·P (the block, twice while a dense one stands beside it) + Σ 8n² over
    distinct inputs (Gram matrices, float64) + 2 · 8n² (the largest factorisation) + 8·out·n (its
    work copy) + activations of one batch.

    Attributes:
        memory: bytes beside Python and its libraries, by term.
        disk: bytes for the stream's files while it runs, and for the output.
        seconds: on this kind of device.
    """

    memory: Mapping[str, int]
    disk: int
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of memory, all terms."""
        return sum(self.memory.values())

    def short(self) -> str:
        """Memory and time alone."""
        return f"about {_size(self.total)}, {time_words(self.seconds)}"

    def summary(self) -> str:
        """In words."""
        terms = ", ".join(f"{name} {_size(n)}" for name, n in self.memory.items() if n)
        return (
            f"needs about {_size(self.total)} of memory ({terms}), {_size(self.disk)} of disk and "
            f"{time_words(self.seconds)}"
        )


def needs_of(
    layers: Mapping[str, tuple[int, ...]],
    *,
    inputs: Sequence[Sequence[str]],
    block_bytes: int,
    blocks: int,
    width: int,
    itemsize: int,
    tokens: int,
    batch_tokens: int,
    gram: bool,
    factor: bool,
    pairs: bool,
    streams: int,
    output_bytes: int,
    alone: bool = False,
    device: str = "cpu",
    workers: int = 0,
) -> Needs:
    """The formula, from the sizes.

    Args:
        layers: {layer: (rows, columns)} of those of one block that are pruned.
        inputs: the layers that share each input.
        block_bytes: of one block's weights.
        blocks: how many.
        width: of the stream.
        itemsize: bytes of a number of the stream.
        tokens: that calibrate.
        batch_tokens: in the largest batch.
        gram: Gram matrices are collected.
        factor: they are factorised.
        pairs: dense and pruned inputs are compared.
        streams: files of the stream that lie on disk at once.
        output_bytes: of the folder that is written.
        alone: the statistics of one input are there at a time.
        device: its kind.
        workers: whose sums, and the block that they read, lie on disk too.
    """
    widths = [layers[group[0]][1] for group in inputs]
    squares = [8 * n * n for n in widths]
    held = (max(squares, default=0) if alone else sum(squares)) if gram else 0
    largest = max((n for _, n in layers.values()), default=0)
    sweep = max((8 * out * n for out, n in layers.values()), default=0)
    memory = {
        "block": (3 if pairs else 2) * block_bytes,
        "Gram matrices": held * (3 if pairs else 1) if gram else 8 * sum(widths),
        "factorisation": SWEEP_COPIES * 8 * largest * largest if gram else 0,
        "work copies": 2 * sweep if gram or factor else sweep,
        "activations": BATCH_COPIES * batch_tokens * max(width, largest) * itemsize,
    }
    fast, slow = RATES.get(device, RATES["cpu"])
    passes = 2 + (len(widths) if alone else 0) + (2 if pairs else 0)
    forward = passes * 2 * tokens * sum(out * n for out, n in layers.values())
    grams = tokens * sum(n * n for n in widths) if gram else 0
    sweeps = sum(4 * n**3 / 3 + out * n * n for out, n in layers.values()) if factor else 0.0
    return Needs(
        memory=memory,
        disk=streams * tokens * width * itemsize
        + output_bytes
        + (workers * memory["Gram matrices"] + block_bytes if workers else 0),
        seconds=blocks * ((forward + grams) / fast + sweeps / slow),
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def time_words(seconds: float) -> str:
    """Seconds, minutes or hours, two digits."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
