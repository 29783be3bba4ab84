"""What the suite promises of itself: annotations are checked, and a failure is one failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import prunus.check
import typechecking

PACKAGE = r"""
import inspect
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def centred(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    assert x.size > 0, "no samples at all"
    return x - x.mean()


def added(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if x.ndim != 1:
        raise ValueError(f"`x` must have one axis, got {x.ndim}.")
    return x + y


def doubled(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.concatenate([x, x])


@dataclass
class Pair:
    left: Float[np.ndarray, " n"]
    right: Float[np.ndarray, " n"]

    def __post_init__(self) -> None:
        self.left = np.asarray(self.left)


def without_lines(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    raise RuntimeError("raised between the lines")


# One entry without a location (code 15) for each unit of code.
raw = inspect.unwrap(without_lines)
raw.__code__ = raw.__code__.replace(co_linetable=b"\xf8" * (len(raw.__code__.co_code) // 2))
"""

CONFTEST = """
import pytest
import tracebacks, typechecking
typechecking.install("sample")

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call):
    if REPAIR and call.excinfo is not None:
        tracebacks.give_lines(call.excinfo.value)
"""

TESTS = """
import numpy as np
import pytest
from sample import Pair, added, centred, doubled, without_lines

def test_assertion(): centred(np.zeros(0))
def test_other_axes(): added(np.zeros(1), np.zeros(2))
def test_result(): doubled(np.zeros(2))
def test_fields(): Pair([1.0, 2.0], np.zeros(3))
def test_lines(): without_lines(np.zeros(1))

def test_own_message_comes_first():
    with pytest.raises(ValueError, match="must have one axis, got 2"):
        added(np.zeros((2, 2)), np.zeros(2))

def test_converted_fields_pass(): Pair([1.0, 2.0], np.zeros(2))
"""


def run_pytest(folder: Path, repair: bool) -> str:
    (folder / "sample.py").write_text(PACKAGE)
    (folder / "conftest.py").write_text(f"REPAIR = {repair}\n{CONFTEST}")
    (folder / "test_sample.py").write_text(TESTS)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            "-q",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_failure_in_checked_code_is_one_failed_test(tmp_path):
    found = run_pytest(tmp_path, repair=True)
    assert "5 failed, 2 passed" in found, found
    assert "FAILED test_sample.py::test_assertion - AssertionError: no samples at all" in found
    assert "FAILED test_sample.py::test_lines - RuntimeError: raised between the lines" in found
    assert "INTERNALERROR" not in found


def test_without_the_repair_a_missing_line_ends_the_run(tmp_path):
    """The negative control: pytest itself raises, as it did on a busy machine."""
    assert "INTERNALERROR" in run_pytest(tmp_path, repair=False)


def test_the_package_is_checked():
    with pytest.raises(Exception, match="name=1 violates type hint <class 'str'>"):
        prunus.check.positive(1, 2.0)


def test_shapes_that_have_passed_are_looked_at_again():
    """What `quick_shapes` remembers of an annotation is no more than types and dtypes."""
    pair, row = Float[Tensor, "n 2"], Float[Tensor, " n"]
    square = Float[Tensor, "k k"]
    of = torch.zeros
    for n in (3, 4):  # each call has a memory of its own
        with typechecking.SHAPES:
            assert isinstance(of(n, 2), pair)
            wrong = (of(n + 1, 2), of(n, 3), of(n), of(n, 2, 1), of(n, 2, dtype=torch.int64))
            for _ in range(2):
                assert not any(isinstance(x, pair) for x in (*wrong, of(n, 2).numpy()))
                assert isinstance(of(n, 2), pair)
            assert isinstance(of(n), row)
            assert not isinstance(of(n + 1), row)
            for _ in range(2):
                assert not isinstance(of(2, 5), square)  # and it leaves no k = 2 behind
                assert isinstance(of(5, 5), square)
                assert not isinstance(of(6, 6), square)
    assert isinstance(of(6, 6), square)
