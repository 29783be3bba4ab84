"""Experts and turned streams on the command line: pruned, saved with a report, loaded again."""

import importlib
import sys

import pytest
import torch

import prunus
from prunus.cli.app import main

MINE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, vocab_size=40, max_position_embeddings=32, pad_token_id=0)

def mixture():
    torch.manual_seed(0)
    config = MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **SIZES)
    return MixtralForCausalLM(config).eval()

def decoder():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_attention_heads": 1})).eval()

def ids():
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(3, 40, (4, 9))} for _ in range(2)]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / "mine_units.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_units", raising=False)
    return importlib.import_module("mine_units")


def run(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["prunus", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert not end.value.code, err
    return " ".join(out.split())


@pytest.mark.slow
def test_half_of_the_experts_go(own, monkeypatch, capsys):
    given = ("--recipe", "reap", "--density", "50%", "--data", "mine_units:ids", "--out", "half")
    assert "experts" in run(monkeypatch, capsys, "prune", "mine_units:mixture", *given)
    pruned = prunus.load("half", own.mixture())
    assert set(pruned.plan.kept.values()) == {2}
    small = pruned.compact(own.ids()[0])
    assert small.config.num_local_experts == 2
    for batch in own.ids():
        with torch.no_grad():
            torch.testing.assert_close(small(**batch).logits, pruned.model(**batch).logits)


@pytest.mark.slow
def test_a_stream_is_turned(own, monkeypatch, capsys):
    recipe = "Recipe(granularity=Node(), score=Magnitude(reduction='l2'), basis=Rotate())"
    given = ("--recipe", recipe, "--density", "75%", "--data", "mine_units:ids", "--out", "turned")
    run(monkeypatch, capsys, "prune", "mine_units:decoder", *given)
    pruned = prunus.load("turned", own.decoder())
    (stream,) = [count for name, count in pruned.plan.kept.items() if name.endswith("o_proj")]
    small = pruned.compact(own.ids()[0])
    assert small.config.hidden_size == stream < 16
    for batch in own.ids():
        with torch.no_grad():
            torch.testing.assert_close(small(**batch).logits, pruned.model(**batch).logits)
