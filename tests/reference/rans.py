"""Interleaved rANS and the model "rows" as their definitions read: one entry at a time."""

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
