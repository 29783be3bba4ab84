"""Which entries of a matrix are kept, in an rANS stream: a family of coders by name.

All take and give a (lines, width) mask whose number of kept entries is known beforehand, and none
of them uses anything but whole numbers, so that every machine decodes the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from prunus.coding.numbers import lengths, read_counts, read_table, write_counts, write_table
from prunus.coding.rans import ONE, SPENT, Decoder, Encoder, Table, scaled
from prunus.coding.relative import fillers_of, places, relative

__all__ = ["CODERS", "Flat", "Gaps", "Lines", "MaskCoder", "Rows", "best"]

SAMPLE = 1 << 20  # entries on which the coders are compared
STEEP = 16  # a matrix with so many times more lines than columns, and
MANY = 4096  # more lines than this, is only coded by columns: each line has its overhead
CONTEXTS = 6
START = 8  # kept entries that a context is expected to have seen before it is trusted


@runtime_checkable
class MaskCoder(Protocol):
    """The calls of every coder of masks."""

    def write(self, stream: Encoder, mask: np.ndarray) -> None:
        """Code a (lines, width) mask."""

    def read(self, stream: Decoder, shape: tuple[int, int], kept: int) -> np.ndarray:
        """The mask of this shape with so many kept entries; ValueError where it has not."""

    def cost(self, mask: np.ndarray) -> float:
        """Bits that the model spends on a mask."""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is fast enough for such a mask."""


class _Columns:
    """Chances of the columns by the lines seen so far.

    base_j = clip((col_j·2¹⁴ + α p0) // (i + α), 1, 2¹⁴ − 1) for the i lines seen, of which col_j
    kept column j, and the density p0 of the whole mask.
    """

    def __init__(self, shape: tuple[int, int], kept: int, alpha: int) -> None:
        lines, width = shape
        self._prior = alpha * min(max(kept * ONE // (lines * width), 1), ONE - 1)
        self._alpha = alpha
        self._columns = np.zeros(width, dtype=np.int64)
        self._seen = 0

    def chances(self, expected: int) -> np.ndarray:
        """Of the next line, of which `expected` / 2¹⁴ entries are kept."""
        base = (self._columns * ONE + self._prior) // (self._seen + self._alpha)
        np.clip(base, 1, ONE - 1, out=base)
        total = int(base.sum())
        base *= expected
        base //= total
        return np.clip(base, 1, ONE - 1, out=base)

    def saw(self, line: np.ndarray) -> None:
        self._columns += line
        self._seen += 1


@dataclass(frozen=True)
class Flat:
    """One chance for all entries: what any mask with these counts takes at most."""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Always."""
        del shape
        return True

    def write(self, stream: Encoder, mask: np.ndarray) -> None:
        """All entries in row-major order."""
        flat = mask.reshape(-1)
        stream.bits(flat, np.full(flat.shape, self._chance(flat.size, int(flat.sum()))))

    def read(self, stream: Decoder, shape: tuple[int, int], kept: int) -> np.ndarray:
        """Checks the number of kept entries."""
        size = shape[0] * shape[1]
        mask = stream.bits(np.full(size, self._chance(size, kept)))
        found = int(np.count_nonzero(mask))
        if found != kept:
            raise ValueError(f"it keeps {found} entries, not {kept}")
        return mask.reshape(shape)

    def cost(self, mask: np.ndarray) -> float:
        """Bits."""
        kept = int(np.count_nonzero(mask))
        chance = self._chance(mask.size, kept)
        return float(kept * SPENT[chance] + (mask.size - kept) * SPENT[ONE - chance])

    def _chance(self, size: int, kept: int) -> int:
        return min(max(kept * ONE // size, 1), ONE - 1)


@dataclass(frozen=True)
class Rows:
    """Adaptive column chances × row counts, which are sent ahead."""

    alpha: int = 4

    def fits(self, shape: tuple[int, int]) -> bool:
        """False for many short lines."""
        return not _steep(shape)

    def write(self, stream: Encoder, mask: np.ndarray) -> None:
        """Counts of all lines, then line by line."""
        counts = mask.sum(1)
        write_counts(stream, counts, mask.shape[1])
        model = _Columns(_shape(mask), int(counts.sum()), self.alpha)
        for line, count in zip(mask, counts.tolist(), strict=True):
            stream.bits(line, model.chances(count * ONE))
            model.saw(line)

    def read(self, stream: Decoder, shape: tuple[int, int], kept: int) -> np.ndarray:
        """Checks that the counts of the lines add up, and that the lines have them."""
        counts = read_counts(stream, shape[0], shape[1])
        if int(counts.sum()) != kept:
            raise ValueError(f"the counts of its lines add up to {int(counts.sum())}, not {kept}")
        model = _Columns(shape, kept, self.alpha)
        mask = np.empty(shape, dtype=bool)
        for line, count in zip(mask, counts.tolist(), strict=True):
            line[:] = stream.bits(model.chances(count * ONE))
            if int(np.count_nonzero(line)) != count:
                raise ValueError(f"a line keeps {int(np.count_nonzero(line))} entries, not {count}")
            model.saw(line)
        return mask

    def cost(self, mask: np.ndarray) -> float:
        """Bits, with about those of the counts."""
        counts = mask.sum(1)
        model = _Columns(_shape(mask), int(counts.sum()), self.alpha)
        spent = float(_entropy(lengths(counts)) + np.maximum(lengths(counts) - 1, 0).sum())
        for line, count in zip(mask, counts.tolist(), strict=True):
            spent += _spent(line, model.chances(count * ONE))
            model.saw(line)
        return spent


@dataclass(frozen=True)
class Lines:
    """Adaptive chances of columns and lines, corrected by what the three lines before kept.

    The count of a line is predicted by a fading mean of those before it. The chance p so predicted
    becomes p · (kept so far + 8) / (predicted so far + 8) among the entries of its context: the
    order of magnitude of p, whether the line before kept the column, and how many of the two
    before that. Neighbours along the inputs (pixels) are neighbours here with `columns`, and
    nothing needs to be known of the entries of the same line, which are coded side by side.

    Attributes:
        columns: lines are the columns of the matrix.
        slow: the newest line's share in the mean of counts is 1/16, not 3/4.
        alpha: lines of the whole mask's density that every column starts with.
    """

    columns: bool = False
    slow: bool = False
    alpha: int = 8

    def fits(self, shape: tuple[int, int]) -> bool:
        """False for many short lines."""
        return not _steep(shape[::-1] if self.columns else shape)

    def write(self, stream: Encoder, mask: np.ndarray) -> None:
        """Line by line."""
        for line, chance in self._walk(mask):
            stream.bits(line, chance)

    def read(self, stream: Decoder, shape: tuple[int, int], kept: int) -> np.ndarray:
        """Checks the number of kept entries."""
        own = shape[::-1] if self.columns else shape
        model = _Context(own, kept, self.alpha, self.slow)
        mask = np.empty(own, dtype=bool)
        for line in mask:
            line[:] = stream.bits(model.chances())
            model.saw(line)
        found = int(np.count_nonzero(mask))
        if found != kept:
            raise ValueError(f"it keeps {found} entries, not {kept}")
        return mask.T if self.columns else mask

    def cost(self, mask: np.ndarray) -> float:
        """Bits."""
        return sum(_spent(line, chance) for line, chance in self._walk(mask))

    def _walk(self, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        own = np.ascontiguousarray(mask.T) if self.columns else mask
        model = _Context(_shape(own), int(np.count_nonzero(own)), self.alpha, self.slow)
        for line in own:
            yield line, model.chances()
            model.saw(line)


class _Context:
    """The model of `Lines`."""

    def __init__(self, shape: tuple[int, int], kept: int, alpha: int, slow: bool) -> None:
        lines, width = shape
        self._columns = _Columns(shape, kept, alpha)
        self._slow = slow
        self._expected = max(kept * ONE // lines, 1)
        self._least = max(self._expected // 64, 1)
        nothing = np.zeros(width, dtype=np.uint8)
        self._before = [nothing, nothing, nothing]
        self._kept = np.full(MAGNITUDES * CONTEXTS, START * ONE, dtype=np.int64)
        self._foretold = self._kept.copy()
        self._chances = self._places = np.zeros(0, dtype=np.int64)

    def chances(self) -> np.ndarray:
        """Of the next line's entries."""
        first, second, third = self._before
        self._chances = self._columns.chances(self._expected)
        self._places = _MAGNITUDE[self._chances] + (first * np.uint8(3) + second + third)
        ratio = (self._kept << FINE) // self._foretold
        chance = (self._chances * ratio[self._places]) >> FINE
        return np.clip(chance, 1, ONE - 1, out=chance)

    def saw(self, line: np.ndarray) -> None:
        """Learn from the line that the chances were for."""
        size = len(self._kept)
        self._kept += np.bincount(self._places[line], minlength=size) * ONE
        told = np.bincount(self._places, weights=self._chances, minlength=size)  # exact: < 2⁵³
        self._foretold += told.astype(np.int64)
        count = int(np.count_nonzero(line)) * ONE
        mean = 15 * self._expected + count if self._slow else self._expected + 3 * count
        self._expected = max(mean // (16 if self._slow else 4), self._least)
        self._columns.saw(line)
        self._before = [line.astype(np.uint8), *self._before[:2]]


@dataclass(frozen=True)
class Gaps:
    """Distances between kept entries in row-major order, with a table; see `relative`."""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Always."""
        del shape
        return True

    def write(self, stream: Encoder, mask: np.ndarray) -> None:
        """The width with the least bits, the number of fillers, the table, the symbols."""
        bits, _ = self._least(mask)
        symbols = relative(mask.reshape(-1), bits)
        table = Table(scaled(np.bincount(symbols, minlength=(1 << bits) + 1)))
        stream.symbols(np.array([bits]), Table.uniform(4))
        write_counts(stream, np.array([fillers_of(symbols, bits)]), mask.size)
        write_table(stream, table)
        stream.symbols(symbols, table)

    def read(self, stream: Decoder, shape: tuple[int, int], kept: int) -> np.ndarray:
        """Checks that the entries lie inside, and that there are as many as should be."""
        bits = int(stream.symbols(1, Table.uniform(4))[0])
        if not WIDTHS[0] <= bits <= WIDTHS[-1]:
            raise ValueError(f"its gaps have {bits} bits, which is none of {WIDTHS}")
        size = shape[0] * shape[1]
        fillers = int(read_counts(stream, 1, size)[0])
        table = read_table(stream, (1 << bits) + 1)
        if kept + fillers > size:
            raise ValueError(f"{kept} gaps and {fillers} fillers do not fit in {size} entries")
        symbols = stream.symbols(kept + fillers, table)
        mask = np.zeros(size, dtype=bool)
        mask[places(symbols, bits, size, kept)] = True
        return mask.reshape(shape)

    def cost(self, mask: np.ndarray) -> float:
        """Bits, with about those of the table."""
        return self._least(mask)[1]

    def _least(self, mask: np.ndarray) -> tuple[int, float]:
        kept = np.flatnonzero(mask)
        gaps = np.diff(kept, prepend=-1) - 1
        found = {}
        for bits in WIDTHS:
            counts = np.bincount(gaps & ((1 << bits) - 1), minlength=(1 << bits) + 1)
            counts[-1] = int((gaps >> bits).sum())
            used = counts[counts > 0]
            table = 4 * len(counts) + lengths(used * ONE // used.sum() + 1).sum()
            found[bits] = float(table + (used * np.log2(used.sum() / used)).sum())
        bits = min(found, key=found.__getitem__)
        return bits, found[bits]


WIDTHS = range(3, 13)
FINE = 14  # bits of the ratio by which a context corrects
MAGNITUDES = 8
# Where a chance's context begins: chances a factor of four apart are told apart.
_MAGNITUDE = (CONTEXTS * (lengths(np.arange(ONE + 1)) // 2)).astype(np.uint8)
CODERS: dict[str, MaskCoder] = {
    "rows": Rows(),
    "context": Lines(),
    "context-slow": Lines(slow=True),
    "columns": Lines(columns=True),
    "columns-slow": Lines(columns=True, slow=True),
    "gaps": Gaps(),
    "flat": Flat(),
}


def best(mask: np.ndarray) -> tuple[str, float]:
    """The coder that takes least for a mask, and about how many bits it takes.

    Compared on the first 2²⁰ entries, whole lines of them; the first of the table wins ties.
    """
    lines, width = mask.shape
    part = mask[: max(1, SAMPLE // width)]
    if not part.any():
        part = mask
    costs = {n: c.cost(part) for n, c in CODERS.items() if c.fits((lines, width))}
    name = min(costs, key=costs.__getitem__)
    return name, costs[name] * mask.size / part.size


def _shape(mask: np.ndarray) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def _steep(shape: tuple[int, int]) -> bool:
    return shape[0] > MANY and shape[0] > STEEP * shape[1]


def _spent(line: np.ndarray, chance: np.ndarray) -> float:
    return float(SPENT[np.where(line, chance, ONE - chance)].sum())


def _entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())
