"""Folders on the command line: pruned with the perplexity before and after, and scored."""

import re

import pytest
import torch
from typer.testing import CliRunner

from prunus.bench.data.language import documents, save_folder
from prunus.cli.app import app


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tokenizer, and two texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("cli")
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=512, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_folder(LlamaForCausalLM(config), place / "src")
    (place / "train.txt").write_text(documents("train")[1][:6000])
    (place / "test.txt").write_text(documents("test")[1][:3000])
    return place


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_prune_and_score(place):
    out = place / "out"
    found = run(
        "prune", place / "src", "--recipe", "sparsegpt", "--density", "0.5", "--text",
        place / "train.txt", "--evaluate", place / "test.txt", "--length", "32", "--samples", "8",
        "--batch", "4", "--out", out,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    scores = dict(re.findall(r"(dense|pruned): perplexity ([\d.]+)", found.output))
    assert set(scores) == {"dense", "pruned"}
    assert scores["dense"] != scores["pruned"]
    assert "256 tokens calibrated" in found.output
    page = (out / "report.html").read_text()
    assert "model.layers.1.mlp.down_proj" in page
    assert "windows in-sample" in page
    again = run("perplexity", out, "--text", place / "test.txt", "--window", "32")
    assert again.exit_code == 0, again.output
    assert f"perplexity {scores['pruned']}" in again.output
    seen = run("perplexity", out, "--text", place / "train.txt", "--window", "64")
    assert re.search(r"[1-9]\d* of \d+ windows in-sample", seen.output)


def test_blocks_go_to_an_executor(place):
    options = ("--recipe", "wanda", "--density", "0.5", "--text", place / "train.txt", "--length",
               "16", "--samples", "4", "--inputs", "dense")  # fmt: skip
    for out, more in (("one", ()), ("two", ("--executor", "local", "--workers", "1"))):
        found = run("prune", place / "src", *options, *more, "--out", place / out)
        assert found.exit_code == 0, found.output
    for name in ("model-block-00000.safetensors", "model-block-00001.safetensors"):
        assert (place / "one" / name).read_bytes() == (place / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "train.txt", "--workers", "2"], "--workers needs --executor"),
        (["--text", "train.txt", "--executor", "spark"], "Unknown executor 'spark'"),
        (["--text", "train.txt", "--executor", "local"], "each block waits for the one before"),
        (["--text", "train.txt", "--evaluate", "train.txt"], "is the text that calibrates"),
        (["--text", "train.txt", "--evaluate", "none.txt"], "There is no text file"),
        (["--text", "none.txt"], "There is no text file"),
        (["--text", "train.txt", "--budget", "macs=3"], "--budget does not serve"),
        ([], "This recipe calibrates"),
    ],
)
def test_mistakes(place, options, message):
    named = [str(place / o) if o.endswith(".txt") else o for o in options]
    density = [] if "--budget" in options else ["--density", "0.5"]
    found = run("prune", place / "src", "--recipe", "wanda", *density, *named, "--out", place / "x")
    assert found.exit_code != 0
    assert message in str(found.exception)
    assert not (place / "x").exists()


def test_perplexity_needs_one_source(place):
    assert "Give --text FILE or --ids" in str(run("perplexity", place / "src").exception)
