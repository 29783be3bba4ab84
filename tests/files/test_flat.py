"""Public functions called often: memory, descriptors, threads and hooks stay as they were."""

import atexit
import functools
import gc
import itertools
import os
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import models
import prunus
from prunus import files
from prunus.bench import run
from prunus.calibration import Calibration
from prunus.courses import Dynamic

MODEL, X = models.MLP((6, 8, 4)), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4


def pruned(recipe="magnitude", **options):
    return prunus.prune(MODEL, recipe, 0.5, data=X, **options)


def train(model, step):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(X).square().mean().backward()
    optimizer.step()


def sparsify(folder):
    model = models.MLP((6, 8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recipe = replace(prunus.recipes["set"], schedule=Dynamic(every=1))
    sparsifier = prunus.sparsify(model, recipe, 0.5, optimizer=optimizer, steps=3)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    sparsifier.finish()


def compare(folder):
    path = folder / "runs.jsonl"
    for _ in range(2):  # the second time from the file
        prunus.compare(
            MODEL, ["magnitude"], [0.5], data=X, evaluate=lambda m: 0.0, seeds=1, records=path
        )
    path.unlink()


def bench(folder):
    grid = {"tasks": ["bench_tiny:tiny"], "recipes": ["magnitude"], "densities": [0.5],
            "seeds": 1, "without": ["small-dense", "random"]}  # fmt: skip
    out = folder / "records"
    run(grid, out=out, cache=folder / "cache", progress=False)
    for path in out.iterdir():
        path.unlink()


def prune_folder(folder):
    prunus.prune_folder(llama(), folder / "pruned", "magnitude", 0.5, progress=False)
    shutil.rmtree(folder / "pruned")


@functools.cache
def llama():
    """A folder with a Llama of one small block."""
    transformers = pytest.importorskip("transformers")
    kept = files.Scratch()
    atexit.register(kept.close)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16, max_position_embeddings=16, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(kept.path / "llama")
    return kept.path / "llama"


WORDS = nn.Sequential(nn.Embedding(16, 4), nn.Linear(4, 16))
RESULT = pruned("importance-node+ls")
CALIBRATED = prunus.calibrate(MODEL, X)
CALLS = {
    "calibrate": lambda folder: prunus.calibrate(MODEL, (X, Y), ("gram", "mean", "grad")),
    "prune": lambda folder: pruned("wanda+ls"),
    "prune, nodes": lambda folder: pruned("importance-node+ls"),
    "prune, trained": lambda folder: pruned(train=train, evaluate=lambda m: 0.0),
    "prune, kept in files": lambda folder: pruned("wanda", blocks="layers.*", keep=folder),
    "compact": lambda folder: prunus.compact(RESULT, X),
    "compare": compare,
    "bench": bench,
    "certify": lambda folder: prunus.certify(MODEL, RESULT, data=X),
    "sensitivity": lambda folder: prunus.sensitivity(
        MODEL, "magnitude", [0.5], data=X, evaluate=lambda m: 0.0
    ),
    "plan": lambda folder: prunus.plan(MODEL, 0.9, data=X),
    "sparsify": sparsify,
    "save": lambda folder: RESULT.save(folder / "net", example=X),
    "load": lambda folder: prunus.load(folder / "net", MODEL),
    "Calibration": lambda folder: Calibration.load(CALIBRATED.save(folder / "c")),
    "export": lambda folder: RESULT.export(folder / "exported", "safetensors", measure=False),
    "prune_folder": prune_folder,
    "perplexity": lambda folder: prunus.perplexity(WORDS, torch.arange(40) % 16, window=8),
    "text": lambda folder: prunus.text(["ab" * 40], lambda piece: [*map(ord, piece)], 2, 8),
    "report": lambda folder: RESULT.report(folder / "page.html"),
    "summary": lambda folder: RESULT.summary(),
    "Plan": lambda folder: prunus.Plan.from_json(RESULT.plan.to_json()),
    "Recipe": lambda folder: prunus.recipe.parse(repr(prunus.recipes["wanda+ls"])),
}  # fmt: skip


def state():
    """What a call must leave as it was, to the last one."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "filters": len(warnings.filters),
    }


def held():
    """Resident bytes, and objects of the interpreter."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects())


@pytest.fixture
def called(tmp_path):
    """Calls one of `CALLS` so often; what it warns of, such as a vacuous bound, is left unsaid."""
    RESULT.save(tmp_path / "net", example=X)

    def call(name, times):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(times):
                CALLS[name](tmp_path)

    return call


def test_every_public_function_is_called():
    values = {
        "Budget",
        "Certificate",
        "Group",
        "Pruned",
        "Step",
        "recipes",
    }  # made by the calls below
    public = {name for name in prunus._PLACES if name not in values}
    assert public <= set(CALLS)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "prune_folder"])
def test_calls_leave_nothing_open(called, name):
    called(name, 1)
    before = state()
    called(name, 2)
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_nothing_grows_in_300_calls(called, name):
    """What leaks grows with every hundred; what the allocator or a cache takes, once."""
    called(name, 300 if name == "calibrate" else 100)  # the allocator takes longest for slopes
    before, seen = state(), [held()]
    for _ in range(2):
        called(name, 100)
        seen.append(held())
    grown = [(late[0] - early[0], late[1] - early[1]) for early, late in itertools.pairwise(seen)]
    print(f"{name}: (bytes, objects) in 100 calls: {grown}")
    assert state() == before
    assert min(size for size, _ in grown) < 2**19
    assert min(objects for _, objects in grown) < 50  # less than half an object a call
