"""The README's first example runs and prints what it says; its table of methods is the code's."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from doc_pages import alike
from prunus.parts import BLOCKS, EXPERTS
from prunus.presets import PRESETS, recipes

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)


def test_first_example_prints_what_it_says():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    code, promised = blocks("python")[0], blocks("text")[0]
    assert len(code.strip().splitlines()) <= 15
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), {})
    alike(printed.getvalue().strip(), promised.strip())


def test_the_loop_with_sparsity_runs_as_it_stands():
    code = next(block for block in blocks("python") if "prunus.sparsify" in block)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    batches = [(torch.randn(8, 20), torch.arange(8) % 4) for _ in range(50)]
    names = {"model": model, "loader": batches, "epochs": 10}
    exec(compile(code, "README.md", "exec"), names)
    kept = sum(int((layer.weight != 0).sum()) for layer in (model[0], model[2]))
    assert kept == 72 == sum(int(r.mask.sum()) for r in names["pruned"].layers.values())


def test_the_first_screen_is_the_users_own_network():
    first = "\n".join(README.read_text().splitlines()[:40])
    assert "make demo" in first
    assert "make test" in first
    assert "prunus.bench" not in blocks("python")[0]


def test_tables_of_methods_are_whole():
    rows = re.findall(r"(?m)^\| `([\w-]+)` \|", README.read_text())
    assert sorted(rows) == sorted(PRESETS), set(rows) ^ set(PRESETS)


def test_what_is_said_of_least_squares_is_so():
    """Which names have a twin with `+ls`, and which have none."""
    known = [name for name in recipes if "+" not in name]
    bare = {name for name in known if f"{name}+ls" not in recipes}
    named = {name for name in bare if recipes[name].units in (BLOCKS, EXPERTS)}
    named |= {name for name in known if recipes[name].schedule.inside}
    assert bare == named | {"edge-popup", "lottery"}
    assert "for whole blocks and experts, `edge-popup`, `lottery`" in README.read_text()
