"""One matrix as numbers of 16 bits: its code book, then an rANS stream of its mask and codes."""

from dataclasses import dataclass, field

import numpy as np

from prunus.coding.masks import CODERS, best
from prunus.coding.numbers import read_table, write_table
from prunus.coding.rans import LANES, Decoder, Encoder, Table, lanes_for, scaled

__all__ = ["WHOLE", "Stream", "read_stream", "write_stream"]

WHOLE = "whole"  # nothing of the mask is coded: all entries are kept, or none
BOOK = 4096  # values of a code book, at most


@dataclass(frozen=True, eq=False)
class Stream:
    """A coded matrix.

    Attributes:
        coder: of the mask, in `CODERS`, or "whole".
        lanes: of the rANS stream; 0 where nothing is coded.
        words: states (two words each, the low one first) and words, 16 bits each.
        parts: bytes of the mask, of the codes with their table, and of the lanes' states.
    """

    coder: str
    lanes: int
    words: np.ndarray
    parts: dict[str, float] = field(default_factory=dict)


def write_stream(
    mask: np.ndarray, codes: np.ndarray | None, size: int, *, coder: str | None = None
) -> Stream:
    """Code a (lines, width) mask and the codes of its kept entries in row-major order.

    Args:
        mask: True where an entry is kept.
        codes: whole numbers in [0, size), or None where values are stored otherwise.
        size: of the code book.
        coder: of the mask; the one that takes least where None.
    """
    kept = int(np.count_nonzero(mask))
    stream = Encoder()
    name = WHOLE
    if 0 < kept < mask.size:
        name = coder or best(mask)[0]
        stream.part = "mask"
        CODERS[name].write(stream, mask)
    if codes is not None and kept:
        stream.part = "codes"
        table = Table(scaled(np.bincount(codes, minlength=size)))
        write_table(stream, table)
        stream.symbols(codes, table)
    if not stream.spent:
        return Stream(name, 0, np.zeros(0, dtype=np.uint16))
    lanes = lanes_for(stream.size)
    states, words = stream.finish(lanes)
    whole = np.concatenate([states.astype("<u4").view("<u2"), words.astype("<u2")])
    parts = {part: bits / 8 for part, bits in stream.spent.items()}
    parts["lanes"] = 2 * len(whole) - sum(parts.values())
    return Stream(name, lanes, whole, parts)


def read_stream(
    words: np.ndarray, coder: str, lanes: int, shape: tuple[int, int], kept: int, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The mask, and the codes of the kept entries where `size` > 0.

    Raises:
        ValueError: anything that `write_stream` cannot have written; what is wrong is said.
    """
    total = shape[0] * shape[1]
    if not 0 <= kept <= total:
        raise ValueError(f"it keeps {kept} of {total} entries")
    partly = 0 < kept < total
    if coder != WHOLE and coder not in CODERS:
        raise ValueError(f"its coder {coder!r} is none of {', '.join([WHOLE, *CODERS])}")
    if partly != (coder != WHOLE):
        raise ValueError(f"its coder {coder!r} does not fit {kept} of {total} entries")
    mask = np.full(shape, kept > 0, dtype=bool)
    if not partly and not (size and kept):
        if lanes or len(words):
            raise ValueError(f"{len(words)} words of the stream are left over")
        return mask, np.zeros(0, dtype=np.uint16) if size else None
    if not 1 <= lanes <= LANES or 2 * lanes > len(words):
        raise ValueError(f"its stream of {len(words)} words has {lanes} lanes")
    if partly and not CODERS[coder].fits(shape):
        raise ValueError(f"its coder {coder!r} is not for a matrix of shape {shape}")
    states = np.ascontiguousarray(words[: 2 * lanes]).astype("<u2").view("<u4")
    stream = Decoder(states, words[2 * lanes :])
    if partly:
        mask = CODERS[coder].read(stream, shape, kept)
    codes = None
    if size:
        table = read_table(stream, size)
        codes = stream.symbols(kept, table)
    stream.finish()
    return mask, codes
