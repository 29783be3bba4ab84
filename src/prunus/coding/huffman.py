"""Canonical Huffman codes: a table is the lengths of its codes, and nothing else.

References:
    Huffman (1952), A method for the construction of minimum-redundancy codes; canonical as in
    Schwartz and Kallick (1964), Generating a canonical prefix encoding.
"""

import heapq

import numpy as np

__all__ = ["code_lengths", "codes_of", "decode", "encode"]

LONGEST = 56  # bits of a code that a window of 64 bits can find


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """The length of the code of each symbol; 0 where it does not occur, 1 for a single one.

    Example:
        >>> code_lengths(np.array([10, 6, 2, 1, 1])).tolist()
        [1, 2, 3, 4, 4]
    """
    lengths = np.zeros(len(counts), dtype=np.int64)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    heap = [(int(counts[s]), int(s), [int(s)]) for s in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        both = first[2] + second[2]
        lengths[both] += 1
        heapq.heappush(heap, (first[0] + second[0], min(first[1], second[1]), both))
    return lengths


def codes_of(lengths: np.ndarray) -> np.ndarray:
    """The canonical codes: in order of length, then of symbol.

    Raises:
        ValueError: lengths of no complete code.
    """
    used = np.flatnonzero(lengths)
    if len(used) and int(lengths.max()) > LONGEST:
        raise ValueError(f"a code has {int(lengths.max())} bits, more than {LONGEST}")
    filled = sum(1 << (LONGEST - int(n)) for n in lengths[used])
    if filled != 1 << LONGEST and not (len(used) == 1 and lengths[used[0]] == 1) and len(used):
        raise ValueError("the lengths of its codes are those of no complete code")
    codes = np.zeros(len(lengths), dtype=np.uint64)
    code = last = 0
    for symbol in used[np.argsort(lengths[used], kind="stable")].tolist():
        code <<= int(lengths[symbol]) - last
        last = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def encode(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The bits of the symbols one after another, as 0 and 1."""
    size = lengths[symbols]
    total = int(size.sum())
    within = np.arange(total) - np.repeat(np.cumsum(size) - size, size)
    shift = np.repeat(size, size) - 1 - within
    code = np.repeat(codes_of(lengths)[symbols], size)
    bits: np.ndarray = (code >> shift.astype(np.uint64)) & np.uint64(1)
    return bits.astype(np.uint8)


def decode(bits: np.ndarray, lengths: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """So many symbols from the front of `bits`, and the number of bits that they took.

    Raises:
        ValueError: no complete code, or the bits are used up too early.
    """
    used = np.flatnonzero(lengths)
    codes = codes_of(lengths)
    if count == 0:
        return np.zeros(0, dtype=np.int64), 0
    if len(used) == 0:
        raise ValueError("its table of codes is empty")
    longest = int(lengths.max())
    padded = np.concatenate([bits, np.zeros(longest, dtype=np.uint8)])
    window = np.zeros(len(bits), dtype=np.uint64)
    for k in range(longest):  # what every place begins with
        window = (window << np.uint64(1)) | padded[k : k + len(bits)]
    order = used[np.argsort(lengths[used], kind="stable")]
    lows = codes[order] << (longest - lengths[order]).astype(np.uint64)
    found = order[np.searchsorted(lows, window, side="right") - 1]
    steps = lengths[found].tolist()
    places, place = [], 0
    for _ in range(count):
        if place >= len(steps):
            raise ValueError("its bits are used up too early")
        places.append(place)
        place += steps[place]
    if place > len(bits):
        raise ValueError("its bits are used up too early")
    symbols = found[places]
    if len(used) == 1 and bits[:place].any():
        raise ValueError("its bits are no code")
    return symbols, place
