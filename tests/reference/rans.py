"""Interleaved rANS and the model "rows" as their definitions read: one entry at a time."""

import math

ONE = 1 << 14


def encode(entries: list[tuple[int, int, int]], lanes: int) -> tuple[list[int], list[int]]:
    """States and words of (frequency, sum before it, lane), in the order of decoding."""
    states = [1 << 16] * lanes
    words: list[int] = []
    # Within a step the decoder reads words in the order of lanes, so that steps are reversed whole.
    steps: list[list[tuple[int, int, int]]] = []
    for entry in entries:
        if not steps or entry[2] == 0:
            steps.append([])
        steps[-1].append(entry)
    for step in reversed(steps):
        emitted = []
        for f, c, lane in step:
            x = states[lane]
            if x >= f << 18:
                emitted.append(x & 0xFFFF)
                x >>= 16
            states[lane] = (x // f) * ONE + x % f + c
        words = emitted + words
    return states, words


def rows_frequencies(mask: list[list[bool]], alpha: int = 4) -> list[list[int]]:
    """The frequency of True of every entry, by the formulas of the model "rows"."""
    lines, width = len(mask), len(mask[0])
    total = sum(map(sum, mask))

    def clip(x: int) -> int:
        return min(max(x, 1), ONE - 1)

    p0 = clip(total * ONE // (lines * width))
    columns = [0] * width
    found = []
    for i, row in enumerate(mask):
        base = [clip((columns[j] * ONE + alpha * p0) // (i + alpha)) for j in range(width)]
        found.append([clip(b * (sum(row) * ONE) // sum(base)) for b in base])
        columns = [c + kept for c, kept in zip(columns, row, strict=True)]
    return found


def context_bits(mask, *, slow, alpha=8, start=8):
    """Bits of a mask by the model of `Lines`, in floating point, entry by entry."""
    lines, width = len(mask), len(mask[0])
    kept = sum(map(sum, mask))
    density, least = kept / (lines * width), 1 / ONE
    columns, before = [0] * width, [[0] * width] * 3
    seen, foretold = {}, {}  # of each context
    expected, bits = kept / lines, 0.0
    for i, line in enumerate(mask):
        base = [(column + alpha * density) / (i + alpha) for column in columns]
        chances = [min(max(b * expected / sum(base), least), 1 - least) for b in base]
        contexts = []
        for j, (there, p) in enumerate(zip(line, chances, strict=True)):
            first, second, third = (older[j] for older in before)
            contexts.append((int(p * ONE).bit_length() // 2, first, second + third))
            own = seen.get(contexts[-1], start) / foretold.get(contexts[-1], start)
            chance = min(max(p * own, least), 1 - least)
            bits -= math.log2(chance if there else 1 - chance)
        for there, p, context in zip(line, chances, contexts, strict=True):
            seen[context] = seen.get(context, start) + there
            foretold[context] = foretold.get(context, start) + p
        columns = [column + there for column, there in zip(columns, line, strict=True)]
        newest = 1 / 16 if slow else 3 / 4
        expected = max((1 - newest) * expected + newest * sum(line), kept / lines / 64)
        before = [list(line), *before[:2]]
    return bits
