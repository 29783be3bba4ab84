"""Coders of masks: round trips on any shape, the model "rows" by its definition, sizes, damage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.coding.layer import read_stream, write_stream
from prunus.coding.masks import CODERS, best
from prunus.coding.rans import ONE, Decoder, Encoder
from reference.rans import context_bits, encode, rows_frequencies

names = pytest.mark.parametrize("name", list(CODERS))


def coded(name, mask, lanes=3):
    stream = Encoder()
    CODERS[name].write(stream, mask)
    return stream, *stream.finish(lanes)


@names
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.floats(0, 1),
    st.integers(1, 50),
)
def test_masks_come_back(name, seed, shape, density, lanes):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density * rng.random(shape[1])
    mask[-1, -1] = True
    _, states, words = coded(name, mask, lanes)
    decoder = Decoder(states, words)
    np.testing.assert_array_equal(CODERS[name].read(decoder, shape, int(mask.sum())), mask)
    decoder.finish()


@names
@pytest.mark.parametrize("shape", [(1, 1), (3, 70_000), (1, 5000), (500, 2)])
def test_odd_shapes_come_back(name, shape):
    if not CODERS[name].fits(shape):
        with pytest.raises(ValueError, match="not for a matrix of shape"):
            read_stream(np.zeros(9, dtype=np.uint16), name, 3, shape, 5, 0)
        return
    mask = np.random.default_rng(1).random(shape) < 0.3
    mask[0, 0] = True
    stream, states, words = coded(name, mask, 64)
    decoder = Decoder(states, words)
    np.testing.assert_array_equal(CODERS[name].read(decoder, shape, int(mask.sum())), mask)
    decoder.finish()
    if mask.size > 1000:
        assert CODERS[name].cost(mask) / 8 == pytest.approx(stream.size, rel=0.03)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (4, 6)])
@pytest.mark.parametrize("kept", [False, True])
def test_all_or_nothing_takes_no_words(shape, kept):
    mask = np.full(shape, kept)
    stream = write_stream(mask, None, 0)
    assert (stream.coder, len(stream.words)) == ("whole", 0)
    found, codes = read_stream(stream.words, "whole", 0, shape, int(mask.sum()), 0)
    np.testing.assert_array_equal(found, mask)
    assert codes is None


def test_the_numbers_of_the_specification():
    mask = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    chances = rows_frequencies(mask.tolist())
    frequencies = np.where(mask, chances, ONE - np.array(chances)).tolist()
    assert frequencies == [
        [8192, 8192, 8192, 8192], [10082, 10083, 6301, 6302], [5632, 13825, 12288, 12288],
    ]  # fmt: skip
    states, words = rows_alone(mask, 2)
    assert (states.tolist(), words.tolist()) == ([4407349, 1881254], [])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40))
def test_rows_are_coded_by_their_definition(seed, lines, width, lanes):
    mask = np.random.default_rng(seed).random((lines, width)) < 0.3
    mask[0, 0] = True
    entries = []
    for line, chances in zip(mask.tolist(), rows_frequencies(mask.tolist()), strict=True):
        for t, (kept, p) in enumerate(zip(line, chances, strict=True)):
            entries.append((p, 0, t % lanes) if kept else (ONE - p, p, t % lanes))
    states, words = rows_alone(mask, lanes)
    assert (states.tolist(), words.tolist()) == encode(entries, lanes)


def rows_alone(mask, lanes):
    """The stream of "rows" without the counts that it sends ahead."""
    whole = Encoder()
    CODERS["rows"].write(whole, mask)
    only = Encoder()
    only._runs = whole._runs[-len(mask) :]
    return only.finish(lanes)


@names
def test_sizes_are_within_three_percent_of_what_the_model_spends(name):
    rng = np.random.default_rng(2)
    mask = rng.random((120, 400)) < 0.2 * rng.random(400)
    found = write_stream(mask, None, 0, coder=name)
    spent = sum(size for part, size in found.parts.items() if part != "lanes")
    assert spent <= 2 * len(found.words) <= 1.03 * spent


def test_neighbours_pay_where_masks_have_them():
    """Runs along a column's lines cost the independent model more than the one that sees them."""
    rng = np.random.default_rng(3)
    mask = np.repeat(rng.random((40, 100)) < 0.1, 8, axis=0)
    density = mask.mean()
    alone = -mask.size * (density * np.log2(density) + (1 - density) * np.log2(1 - density))
    name, cost = best(mask)
    assert name in ("context", "context-slow")
    assert cost < 0.6 * alone
    same = "columns" + name.removeprefix("context")
    assert CODERS[same].cost(mask.T) == CODERS[name].cost(mask)
    assert CODERS["rows"].cost(mask) > 0.9 * alone


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("kind", ["every other line", "bursts", "by column"])
def test_lines_are_coded_by_their_definition(kind, slow):
    """Bits as spent; whole numbers of 14 bits, and contexts at an edge, move them a little."""
    rng = np.random.default_rng(4)
    density = {
        "every other line": 0.2,
        "bursts": np.where(np.arange(48) % 12 < 6, 0.3, 0.02)[:, None],
        "by column": 0.5 * rng.random(96) ** 2,
    }[kind]
    mask = rng.random((48, 96)) < density
    if kind == "every other line":
        mask[2:] = np.resize(mask[:2], (46, 96))
    found = CODERS["context-slow" if slow else "context"].cost(mask)
    assert found == pytest.approx(context_bits(mask.astype(int).tolist(), slow=slow), rel=0.005)


def test_many_short_lines_are_coded_along_the_long_side():
    mask = np.random.default_rng(4).random((70_000, 3)) < 0.2
    assert not CODERS["rows"].fits((70_000, 3))
    assert best(mask)[0] in ("columns", "columns-slow", "flat", "gaps")  # none of short rows


@names
def test_wrong_facts_are_refused(name):
    mask = np.random.default_rng(5).random((20, 30)) < 0.3
    kept = int(mask.sum())
    found = write_stream(mask, None, 0, coder=name)

    def read(words=found.words, coder=name, lanes=found.lanes, shape=(20, 30), kept=kept, size=0):
        return read_stream(words, coder, lanes, shape, kept, size)

    np.testing.assert_array_equal(read()[0], mask)
    for wrong in (
        {"kept": kept + 1}, {"kept": kept - 1}, {"kept": 601}, {"kept": 0}, {"kept": 600},
        {"shape": (30, 20)}, {"shape": (20, 31)}, {"lanes": found.lanes + 1}, {"lanes": 0},
        {"size": 4}, {"coder": "whole"}, {"coder": "new"}, {"words": found.words[:-1]},
        {"words": np.append(found.words, 7)}, {"words": found.words[:1]},
    ):  # fmt: skip
        if name in ("flat", "gaps") and wrong.get("shape") == (30, 20):
            continue  # they know no lines; the hash of the decoded state tells
        if name == "gaps" and "shape" in wrong:
            continue
        with pytest.raises(ValueError, match=r"it|stream|count|table|line"):
            read(**wrong)
