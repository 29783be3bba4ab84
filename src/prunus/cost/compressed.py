"""At most how many bytes a compressed file takes, from names and counts alone.

The bound is that of the plainest coder of masks, of kept values as they are and of a header as it
is written: what the masks look like can only make the file smaller (`prunus.coding`).
"""

import math
from collections.abc import Iterable

from prunus.cost.files import TYPES, Entry

__all__ = ["compressed_bytes"]

ONE = 1 << 14  # the coder's frequencies add up to this
HEAD = 1100  # words of the header: account, hash, checksum, recipe
LINE = 270  # of the header for each coded weight, beside its name
SMALL = 4096  # bytes of a tensor that has no line of its own, at most
OWN = 90  # of the header for one that has, beside its name
SLACK = 1.02  # the lanes' states, and choosing a coder on a part of a large mask


def compressed_bytes(coded: Iterable[tuple[Entry, int]], others: Iterable[Entry]) -> int:
    """Bytes of the lossless compressed file, at most.

    Args:
        coded: the weights with masks, each with its number of kept entries.
        others: all other tensors, stored as they are.
    """
    total = float(HEAD)
    for (name, kind, shape), kept in coded:
        size = math.prod(shape)
        total += LINE + 3 * len(name.encode()) + kept * TYPES[kind][1]
        if 0 < kept < size:
            chance = min(max(kept * ONE // size, 1), ONE - 1)
            bits = kept * math.log2(ONE / chance) + (size - kept) * math.log2(ONE / (ONE - chance))
            total += SLACK * bits / 8 + 8
    for name, kind, shape in others:
        size = TYPES[kind][1] * math.prod(shape)
        text = len(name.encode())
        total += size + (OWN + text if size > SMALL else 40 + 3 * text)
    return math.ceil(total)
