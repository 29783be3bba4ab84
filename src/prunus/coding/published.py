"""The file of Han et al. (2015b): relative indices and codes of shared values, both Huffman coded.

The bits of the indices, then those of the codes. A filler is the index 2^B − 1 with a value of its
own, zero in the paper and a code of its own here. Before them the lengths of both tables' codes, 6
bits each (the longest code has 56 bits; the paper does not say how it stores tables).

References:
    Han, Mao, Dally (2015b), Deep compression, sections 2 to 4 and figure 2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunus.coding import huffman
from prunus.coding.relative import places, relative

__all__ = ["NAME", "read", "sizes", "write"]

NAME = "huffman"
LENGTH = 6  # bits of a code's length
MOST = 16  # bits of a gap


def write(
    mask: np.ndarray, codes: np.ndarray, k: int, bits: int
) -> tuple[bytes, dict[str, int], dict[str, float]]:
    """The bytes, what the header must say to read them, and the bytes of each part."""
    gaps, values = _symbols(mask, codes, k, bits)
    tables = [
        huffman.code_lengths(np.bincount(symbols, minlength=size))
        for symbols, size in ((gaps, 1 << bits), (values, k + 1))
    ]
    lengths = np.concatenate(tables)
    table = ((lengths[:, None] >> np.arange(LENGTH - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)
    own = [huffman.encode(gaps, tables[0]), huffman.encode(values, tables[1])]
    data = np.packbits(np.concatenate([table, *own])).tobytes()
    parts = {"mask": len(own[0]) / 8, "codes": len(own[1]) / 8}
    parts["tables"] = len(data) - sum(parts.values())  # with the bits that fill the last byte
    return data, {"bits": bits, "fillers": len(gaps) - len(codes)}, parts


def read(
    data: bytes, shape: tuple[int, int], kept: int, k: int, facts: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The mask and the codes of its kept entries.

    Raises:
        ValueError: anything that `write` cannot have written.
    """
    bits, fillers = facts["bits"], facts["fillers"]
    size = shape[0] * shape[1]
    if not 1 <= bits <= MOST or k < 1:
        raise ValueError(f"its gaps have {bits} bits and its book {k} values")
    if kept + fillers > size:
        raise ValueError(f"{kept} gaps and {fillers} fillers do not fit in {size} entries")
    stream = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    edges = [1 << bits, k + 1]
    head = LENGTH * sum(edges)
    if len(stream) < head:
        raise ValueError("its bits are used up too early")
    lengths = stream[:head].reshape(-1, LENGTH) @ (1 << np.arange(LENGTH - 1, -1, -1))
    gaps, place = huffman.decode(stream[head:], lengths[: edges[0]], kept + fillers)
    values, more = huffman.decode(stream[head + place :], lengths[edges[0] :], kept + fillers)
    rest = stream[head + place + more :]
    if len(rest) > 7 or rest.any():
        raise ValueError(f"{len(rest)} bits of the stream are left over")
    filler = values == k
    if (gaps[filler] != (1 << bits) - 1).any():
        raise ValueError("a filler does not have the largest index")
    gaps[filler] = 1 << bits
    mask = np.zeros(size, dtype=bool)
    mask[places(gaps, bits, size, kept)] = True
    return mask.reshape(shape), values[~filler].astype(np.uint16)


def sizes(mask: np.ndarray, k: int, bits: int) -> dict[str, float]:
    """Bytes of indices and of codes of fixed width, ⌈log₂ k⌉ bits, without Huffman codes."""
    stored = len(relative(mask.reshape(-1), bits))
    return {"mask": stored * bits / 8, "codes": stored * max(int(k - 1).bit_length(), 1) / 8}


def _symbols(
    mask: np.ndarray, codes: np.ndarray, k: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    gaps = relative(mask.reshape(-1), bits)
    values = np.full(len(gaps), k, dtype=np.int64)
    values[gaps != 1 << bits] = codes
    return np.minimum(gaps, (1 << bits) - 1), values
