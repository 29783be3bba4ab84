"""Whole numbers in an rANS stream: small ones short, without a table or with one of bit lengths."""

import numpy as np

from prunus.coding.rans import BITS, ONE, Decoder, Encoder, Table, scaled

__all__ = ["lengths", "read_counts", "read_table", "write_counts", "write_table"]

CLASSES = 4  # bits: a frequency of a table has a length of 0 to 15 bits


def lengths(values: np.ndarray) -> np.ndarray:
    """The number of bits of each whole number; 0 of 0."""
    return np.frexp(np.asarray(values, dtype=np.float64))[1].astype(np.int64)  # exact below 2⁵³


def write_table(stream: Encoder, table: Table) -> None:
    """The frequencies of a table: the length of each in 4 bits, then its bits."""
    _write(stream, table.freqs.astype(np.int64), Table.uniform(CLASSES))


def read_table(stream: Decoder, size: int) -> Table:
    """A table of so many symbols.

    Raises:
        ValueError: its frequencies do not add up to 2¹⁴.
    """
    freqs = _read(stream, size, Table.uniform(CLASSES))
    if int(freqs.sum()) != ONE:
        raise ValueError(f"the frequencies of a table add up to {int(freqs.sum())}, not {ONE}")
    return Table(freqs)


def write_counts(stream: Encoder, values: np.ndarray, high: int) -> None:
    """Numbers in [0, high]: the table of their lengths, then lengths, then bits."""
    classes = int(high).bit_length() + 1
    table = Table(scaled(np.bincount(lengths(values), minlength=classes)))
    write_table(stream, table)
    _write(stream, values, table)


def read_counts(stream: Decoder, count: int, high: int) -> np.ndarray:
    """So many numbers of [0, high].

    Raises:
        ValueError: one of them is larger.
    """
    values = _read(stream, count, read_table(stream, int(high).bit_length() + 1))
    if count and int(values.max()) > high:
        raise ValueError(f"a count of {int(values.max())} lies beyond {high}")
    return values


def _write(stream: Encoder, values: np.ndarray, table: Table) -> None:
    values = np.asarray(values, dtype=np.int64)
    size = lengths(values)
    stream.symbols(size, table)
    for bits in range(2, int(size.max(initial=0)) + 1):
        rest = values[size == bits] & ((1 << (bits - 1)) - 1)  # the leading one is known
        for low in range(0, bits - 1, BITS):
            part = min(BITS, bits - 1 - low)
            stream.symbols((rest >> low) & ((1 << part) - 1), Table.uniform(part))


def _read(stream: Decoder, count: int, table: Table) -> np.ndarray:
    size = stream.symbols(count, table).astype(np.int64)
    values = np.where(size > 0, np.left_shift(1, np.maximum(size - 1, 0)), 0)
    for bits in range(2, int(size.max(initial=0)) + 1):
        own = size == bits
        for low in range(0, bits - 1, BITS):
            part = min(BITS, bits - 1 - low)
            found = stream.symbols(int(own.sum()), Table.uniform(part)).astype(np.int64)
            values[own] += found << low
    return values
