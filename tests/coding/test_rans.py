"""Interleaved rANS: published numbers, a scalar reference, round trips, sizes, damage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.coding.numbers import lengths, read_counts, read_table, write_counts, write_table
from prunus.coding.rans import ONE, Decoder, Encoder, Table, lanes_for, scaled
from reference.rans import encode


def test_the_numbers_of_the_specification():
    stream = Encoder()
    stream.symbols(np.array([0, 1, 0, 2, 1, 0, 0, 2, 0, 1]), Table(np.array([8192, 4915, 3277])))
    states, words = stream.finish(2)
    assert states.tolist() == [3507825, 37023230]
    assert words.tolist() == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(0, 300), st.integers(1, 40))
def test_streams_are_those_of_a_scalar_coder(seed, lanes, count, symbols):
    rng = np.random.default_rng(seed)
    table = Table(scaled(rng.integers(0, 50, symbols) ** 3 + 1))
    values = rng.integers(0, symbols, count)
    bits = rng.random(count) < 0.1
    chance = rng.integers(1, ONE, count)
    stream = Encoder()
    stream.symbols(values, table)
    stream.bits(bits, chance)
    states, words = stream.finish(lanes)
    entries = [(int(table.freqs[v]), int(table.starts[v]), t % lanes) for t, v in enumerate(values)]
    for t, (kept, p) in enumerate(zip(bits.tolist(), chance.tolist(), strict=True)):
        entries.append((p, 0, t % lanes) if kept else (ONE - p, p, t % lanes))
    assert (states.tolist(), words.tolist()) == encode(entries, lanes)
    decoder = Decoder(states, words)
    np.testing.assert_array_equal(decoder.symbols(count, table), values)
    np.testing.assert_array_equal(decoder.bits(chance), bits)
    decoder.finish()


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60).filter(any))
def test_scaled_tables_are_whole_and_keep_every_symbol(counts):
    freqs = scaled(np.array(counts))
    assert freqs.sum() == ONE
    assert ((freqs > 0) == (np.array(counts) > 0)).all()
    exact = np.array(counts) * ONE / sum(counts)
    wide = len(counts)  # rounding up rare symbols takes from the others at most that many
    assert (np.abs(freqs - exact) <= np.maximum(1, wide)).all()


def test_a_table_of_as_many_symbols_as_slots_is_uniform():
    assert scaled(np.arange(1, ONE + 1)).tolist() == [1] * ONE
    with pytest.raises(ValueError, match=f"1 to {ONE} symbols that occur, got {ONE + 1}"):
        scaled(np.ones(ONE + 1))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4096))
def test_sizes_are_within_three_percent_of_the_entropy(seed, symbols):
    rng = np.random.default_rng(seed)
    shares = rng.random(symbols) ** 4 + 1e-3
    values = rng.choice(symbols, 20_000, p=shares / shares.sum())
    counts = np.bincount(values)
    counts = counts[counts > 0]
    entropy = float((counts * np.log2(counts.sum() / counts)).sum()) / 8
    table = Table(scaled(np.bincount(values, minlength=symbols)))
    stream = Encoder()
    stream.symbols(values, table)
    lanes = lanes_for(stream.size)
    _, words = stream.finish(lanes)
    assert 4 * lanes + 2 * len(words) <= 1.03 * entropy + 8


@given(st.lists(st.integers(0, 70_000), max_size=50), st.integers(1, 5))
def test_counts_and_tables_come_back(values, lanes):
    stream = Encoder()
    table = Table(scaled(np.array([*values, 1])))
    write_table(stream, table)
    if values:
        write_counts(stream, np.array(values), 70_000)
    decoder = Decoder(*stream.finish(lanes))
    assert read_table(decoder, len(values) + 1).freqs.tolist() == table.freqs.tolist()
    if values:
        assert read_counts(decoder, len(values), 70_000).tolist() == values
    decoder.finish()
    assert lengths(np.array(values, dtype=np.int64)).tolist() == [v.bit_length() for v in values]


def read_all(decoder, count, table):
    decoder.symbols(count, table)
    decoder.finish()


def test_damage_shows_at_the_end():
    rng = np.random.default_rng(0)
    table = Table(scaled(np.array([9, 5, 3, 2, 1])))
    values = rng.choice(5, 2000, p=np.array([9, 5, 3, 2, 1]) / 20)
    stream = Encoder()
    stream.symbols(values, table)
    states, words = stream.finish(3)
    for place in range(0, len(words), 7):
        broken = words.copy()
        broken[place] ^= 1 << (place % 16)
        with pytest.raises(ValueError, match=r"words of the stream|state of the stream"):
            read_all(Decoder(states, broken), len(values), table)
    with pytest.raises(ValueError, match="used up too early"):
        Decoder(states, words[:-1]).symbols(len(values), table)
    decoder = Decoder(states, np.append(words, words[:2]))
    decoder.symbols(len(values), table)
    with pytest.raises(ValueError, match="2 words of the stream are left over"):
        decoder.finish()
    with pytest.raises(ValueError, match="below 2¹⁶"):
        Decoder(np.array([5], dtype=np.uint32), words)


def test_lanes_cost_at_most_one_percent():
    assert [lanes_for(size) for size in (0, 399, 400, 4000, 10**9)] == [1, 1, 1, 10, 4096]
    assert math.isclose(4 * lanes_for(80_000) / 80_000, 0.01)
