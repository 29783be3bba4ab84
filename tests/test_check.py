"""The common argument checks, generators, files and bars."""

import math
import os

import numpy as np
import pytest
import torch

from prunus import check, files, progress, rng


def test_finite_names_array_and_index():
    values = torch.ones(2, 3)
    values[1, 2] = math.nan
    with pytest.raises(
        ValueError, match=r"^`w` must be finite, got nan at index \[1, 2\] \(1 of 6"
    ):
        check.finite("w", values)


def test_as_float64():
    assert check.as_float64("x", [1, 2]).dtype == torch.float64
    assert check.as_float64("x", [0.3, 0.1]).tolist() == [0.3, 0.1]  # not rounded to float32
    learnt = check.as_float64("x", torch.nn.Parameter(torch.ones(2)))
    assert not learnt.requires_grad
    assert torch.equal(check.as_float64("x", torch.eye(2).to_sparse()), torch.eye(2).double())
    with pytest.raises(TypeError, match="`x` must be real"):
        check.as_float64("x", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="`x` must be an array of numbers"):
        check.as_float64("x", "abc")
    with pytest.raises(ValueError, match=r"`x` must have 2 axes, got shape \(3,\)"):
        check.as_float64("x", torch.ones(3), dims=2)


@pytest.mark.parametrize("value", [True, 2.5, "3", -1, 8])
def test_whole_refuses(value):
    with pytest.raises(ValueError, match=r"`k` must be a whole number in \[0, 7\]"):
        check.whole("k", value, low=0, high=7)


def test_fraction_and_positive():
    assert check.fraction("p", 1, one=True) == 1.0
    for bad in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"`p` must lie in \(0, 1\)"):
            check.fraction("p", bad)
    with pytest.raises(ValueError, match="`r` must be a finite number > 0"):
        check.positive("r", 0.0)
    assert check.positive("r", 0.0, zero=True) == 0.0


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 0.5j, torch.ones(2)])
def test_what_is_no_number_is_refused(value):
    for said in (check.fraction, check.positive):
        with pytest.raises(ValueError, match=r"^`p` must .*, got .* Pass a number\.$"):
            said("p", value)
    assert check.fraction("p", torch.tensor(0.5)) == check.positive("p", np.float32(0.5)) == 0.5


def test_names_and_globs():
    assert check.globs("layers", None) is None
    assert check.globs("layers", "a.*") == ("a.*",)
    for given in (["a", "b"], ("a", "b"), {"a": 1, "b": 2}):
        assert check.globs("layers", given) == ("a", "b")
    assert check.globs("layers", []) == ()
    for bad, said in [(0, "0"), ([0], r"\[0\]"), (["a", None], r"\['a', None\]"), (b"a", "b'a'"),
                      (iter(["a"]), "a list_iterator")]:  # fmt: skip
        with pytest.raises(TypeError, match=f"`layers` must be a name or glob.*, got {said}"):
            check.globs("layers", bad)


def test_functions():
    check.function("loss", None, "of one thing")
    check.function("loss", len, "of one thing")
    with pytest.raises(TypeError, match="`loss` must be a function of one thing, got int"):
        check.function("loss", 3, "of one thing")


def test_unknown_suggests():
    assert "Did you mean magnitude?" in str(check.unknown("recipe", "magntude", ["magnitude"]))
    assert "Known: a, b." in str(check.unknown("recipe", "zzzz", ["b", "a"]))


def test_generators_are_named():
    a = torch.rand(4, generator=rng.generator_for(0, "a"))
    assert torch.equal(a, torch.rand(4, generator=rng.generator_for(0, "a")))
    assert not torch.equal(a, torch.rand(4, generator=rng.generator_for(0, "b")))
    assert not torch.equal(a, torch.rand(4, generator=rng.generator_for(1, "a")))


def test_write_is_whole_or_absent(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "new" / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match=r"disk full: '.*a\.txt'"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_track_yields_all(capsys):
    assert list(progress.track(range(3), "counting", progress=False)) == [0, 1, 2]
    assert list(progress.track(iter(range(3)), "counting", progress=True)) == [0, 1, 2]
    assert capsys.readouterr().out == ""
