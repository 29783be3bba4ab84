"""Interleaved rANS over NumPy arrays: many states side by side, every number an integer.

Probabilities have 14 bits. Entry t of a run goes to lane t mod L, and a step of up to L entries
never straddles two runs. States are 32-bit numbers x in [2¹⁶, 2³²), words have 16 bits:

    encode, entries in reverse:  if x >= f·2¹⁸: emit x mod 2¹⁶, x = x >> 16;
                                 x = (x // f)·2¹⁴ + x mod f + c
    decode:  s from x mod 2¹⁴;  x = f·(x >> 14) + (x mod 2¹⁴) − c;  if x < 2¹⁶: x = x·2¹⁶ | word

with the frequency f of a symbol and the sum c of the frequencies before it. A whole stream ends
with all states at 2¹⁶ and all words used: most damage shows there.

References:
    Duda (2013), Asymmetric numeral systems; interleaved as in Giesen (2014), Interleaved entropy
    coders.
"""

import functools

import numpy as np

__all__ = ["BITS", "LANES", "ONE", "SPENT", "Decoder", "Encoder", "Table", "lanes_for", "scaled"]

BITS = 14
ONE = 1 << BITS  # the frequencies of all symbols add up to this
LOW = 1 << 16
LANES = 4096  # at most
NARROW = 32  # lanes up to which entries are coded one by one
SHORT = "the words of the stream are used up too early"
SPARE = 400  # bytes of a stream for each lane, which costs four
SPENT = (BITS - np.log2(np.maximum(np.arange(ONE + 1), 1))).astype(np.float32)  # bits, by frequency


def lanes_for(size: float) -> int:
    """Lanes for a stream of about so many bytes; their states cost at most 1 % of it."""
    return min(max(int(size) // SPARE, 1), LANES)


def scaled(counts: np.ndarray) -> np.ndarray:
    """Frequencies in proportion to counts: they add up to 2¹⁴, and every count > 0 keeps >= 1.

    Raises:
        ValueError: more than 2¹⁴ symbols occur, or none does.
    """
    counts = np.asarray(counts, dtype=np.int64)
    total, present = int(counts.sum()), int((counts > 0).sum())
    if not 0 < present <= ONE:
        raise ValueError(f"A table holds 1 to {ONE} symbols that occur, got {present}.")
    exact = counts * ONE  # in units of 1 / total
    freqs = np.where(counts > 0, np.maximum(exact // total, 1), 0)
    while (short := ONE - int(freqs.sum())) != 0:
        # To those that lack most; from those that have most to spare, of what leaves them 1.
        lack = exact - freqs * total
        if short > 0:
            order = np.argsort(np.where(counts > 0, -lack, np.iinfo(np.int64).max), kind="stable")
            freqs[order[: min(short, present)]] += 1
        else:
            rich = freqs > 1
            order = np.argsort(np.where(rich, lack, np.iinfo(np.int64).max), kind="stable")
            freqs[order[: min(-short, int(rich.sum()))]] -= 1
    return freqs


class Table:
    """Fixed frequencies of the symbols 0 … n − 1.

    Args:
        freqs: whole numbers >= 0 that add up to 2¹⁴.
    """

    def __init__(self, freqs: np.ndarray) -> None:
        whole = np.asarray(freqs, dtype=np.int64)
        if whole.ndim != 1 or (whole < 0).any() or int(whole.sum()) != ONE:
            raise ValueError(f"The frequencies of a table must be >= 0 and add up to {ONE}.")
        self.freqs = whole.astype(np.uint32)
        self.starts = (np.cumsum(whole) - whole).astype(np.uint32)
        self.symbols = np.repeat(np.arange(len(whole), dtype=np.uint16), whole)  # by slot

    @staticmethod
    @functools.cache
    def uniform(bits: int) -> "Table":
        """2^bits symbols, all alike."""
        return Table(np.full(1 << bits, ONE >> bits))

    def cost(self, counts: np.ndarray) -> float:
        """Bits that so many of each symbol take; infinite where one has no frequency."""
        used = counts > 0
        if (self.freqs[: len(counts)][used] == 0).any():
            return float("inf")
        return float((counts[used] * (BITS - np.log2(self.freqs[: len(counts)][used]))).sum())


class Encoder:
    """Collects runs in the order in which they are decoded; `finish` codes them in reverse.

    Attributes:
        part: what the runs that follow belong to.
        spent: bits that the model takes for each part.
    """

    def __init__(self) -> None:
        self.part = ""
        self.spent: dict[str, float] = {}
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def size(self) -> float:
        """Bytes that the model takes for everything so far."""
        return sum(self.spent.values()) / 8

    def bits(self, kept: np.ndarray, chance: np.ndarray) -> None:
        """A run of bits; `chance` are the frequencies of True, each in [1, 2¹⁴ − 1]."""
        chance = chance.astype(np.uint16)
        freqs = np.where(kept, chance, np.uint16(ONE) - chance)
        starts = np.where(kept, np.uint16(0), chance)
        self._add(freqs, starts)

    def symbols(self, values: np.ndarray, table: Table) -> None:
        """A run of symbols of one table."""
        self._add(
            table.freqs.astype(np.uint16)[values],
            table.starts.astype(np.uint16)[values],
        )

    def _add(self, freqs: np.ndarray, starts: np.ndarray) -> None:
        self._runs.append((freqs, starts))
        self.spent[self.part] = self.spent.get(self.part, 0.0) + float(SPENT[freqs].sum())

    def finish(self, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """The states (uint32) and words (uint16) of the stream."""
        if lanes <= NARROW:
            return self._finish_narrow(lanes)
        states = np.full(lanes, LOW, dtype=np.uint32)
        chunks: list[np.ndarray] = []
        for freqs, starts in reversed(self._runs):
            for begin in range((len(freqs) - 1) // lanes * lanes, -1, -lanes):
                f = freqs[begin : begin + lanes].astype(np.uint32)
                x = states[: len(f)]
                full = (x >> 18) >= f
                if full.any():
                    chunks.append((x[full] & 0xFFFF).astype(np.uint16))
                    x[full] >>= 16
                whole = x // f
                states[: len(f)] = (whole << BITS) + (x - whole * f) + starts[begin : begin + lanes]
        words = np.concatenate(chunks[::-1]) if chunks else np.zeros(0, dtype=np.uint16)
        return states, words

    def _finish_narrow(self, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """The same entry by entry, which is faster where lanes are few."""
        states = [LOW] * lanes
        words: list[int] = []
        for freqs, starts in reversed(self._runs):
            entries = zip(freqs.tolist()[::-1], starts.tolist()[::-1], strict=True)
            lane = (len(freqs) - 1) % lanes
            for f, c in entries:
                x = states[lane]
                if x >> 18 >= f:
                    words.append(x & 0xFFFF)
                    x >>= 16
                whole, rest = divmod(x, f)
                states[lane] = (whole << BITS) + rest + c
                lane = lane - 1 if lane else lanes - 1
        return np.array(states, dtype=np.uint32), np.array(words[::-1], dtype=np.uint16)


class Decoder:
    """Reads what an `Encoder` wrote, run by run in the same order.

    Every method raises a ValueError where the words are used up too early.
    """

    def __init__(self, states: np.ndarray, words: np.ndarray) -> None:
        if len(states) == 0 or (states < LOW).any():
            raise ValueError("a state of the stream lies below 2¹⁶")
        self._states = states.astype(np.uint32)
        self._words = words
        self._place = 0
        self._narrow = len(states) <= NARROW
        if self._narrow:  # entry by entry is faster where lanes are few
            self._few: list[int] = self._states.tolist()
            self._list: list[int] = words.tolist()

    def bits(self, chance: np.ndarray) -> np.ndarray:
        """The run of bits whose frequencies of True are these."""
        if self._narrow:
            return self._bits_narrow(chance)
        found = np.empty(len(chance), dtype=bool)
        lanes = len(self._states)
        chance = chance.astype(np.uint32)
        for begin in range(0, len(chance), lanes):
            p = chance[begin : begin + lanes]
            x = self._states[: len(p)]
            slot = x & (ONE - 1)
            kept = slot < p
            f = np.where(kept, p, ONE - p)
            self._put(f * (x >> BITS) + slot - np.where(kept, np.uint32(0), p))
            found[begin : begin + lanes] = kept
        return found

    def symbols(self, count: int, table: Table) -> np.ndarray:
        """The next `count` symbols of one table."""
        if self._narrow:
            return self._symbols_narrow(count, table)
        found = np.empty(count, dtype=np.uint16)
        lanes = len(self._states)
        for begin in range(0, count, lanes):
            size = min(lanes, count - begin)
            x = self._states[:size]
            slot = x & (ONE - 1)
            symbol = table.symbols[slot]
            self._put(table.freqs[symbol] * (x >> BITS) + slot - table.starts[symbol])
            found[begin : begin + size] = symbol
        return found

    def finish(self) -> None:
        """Raise a ValueError unless all states are at 2¹⁶ and all words used."""
        if self._place != len(self._words):
            raise ValueError(f"{len(self._words) - self._place} words of the stream are left over")
        states = np.array(self._few) if self._narrow else self._states
        if (states != LOW).any():
            raise ValueError("a state of the stream is not at 2¹⁶ at its end")

    def _bits_narrow(self, chance: np.ndarray) -> np.ndarray:
        found = []
        states, words, place, lane = self._few, self._list, self._place, 0
        lanes = len(states)
        for p in chance.tolist():
            x = states[lane]
            slot = x & (ONE - 1)
            kept = slot < p
            x = p * (x >> BITS) + slot if kept else (ONE - p) * (x >> BITS) + slot - p
            if x < LOW:
                if place == len(words):
                    raise ValueError(SHORT)
                x = x << 16 | words[place]
                place += 1
            states[lane] = x
            lane = lane + 1 if lane + 1 < lanes else 0
            found.append(kept)
        self._place = place
        return np.array(found, dtype=bool)

    def _symbols_narrow(self, count: int, table: Table) -> np.ndarray:
        found = []
        freqs, starts = table.freqs.tolist(), table.starts.tolist()
        symbols = table.symbols
        states, words, place, lane = self._few, self._list, self._place, 0
        lanes = len(states)
        for _ in range(count):
            x = states[lane]
            slot = x & (ONE - 1)
            symbol = int(symbols[slot])
            x = freqs[symbol] * (x >> BITS) + slot - starts[symbol]
            if x < LOW:
                if place == len(words):
                    raise ValueError(SHORT)
                x = x << 16 | words[place]
                place += 1
            states[lane] = x
            lane = lane + 1 if lane + 1 < lanes else 0
            found.append(symbol)
        self._place = place
        return np.array(found, dtype=np.uint16)

    def _put(self, x: np.ndarray) -> None:
        low = x < LOW
        need = int(np.count_nonzero(low))
        if need:
            end = self._place + need
            if end > len(self._words):
                raise ValueError(SHORT)
            x[low] = (x[low] << 16) | self._words[self._place : end]
            self._place = end
        self._states[: len(x)] = x
