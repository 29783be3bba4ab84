"""ONNX and .pt2: equal on other numbers of samples, refused where they are not, timed."""

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus import Recipe
from prunus.export import ExportError, to_onnx, to_pt2
from prunus.export.int8 import quantized
from prunus.export.traced import traced
from prunus.granularity import Node

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="needs the extra `onnx`")


class Tagger(nn.Module):
    """A label for each token, from token numbers and a mask."""

    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, ids, mask=None, scale=1.0):
        x = self.b(torch.relu(self.a(self.words(ids)))) * scale
        return {"tags": x if mask is None else x * mask[:, :, None]}


class Stubborn(nn.Module):
    """Takes two samples, no other number."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.view(2, 4))))


class Branching(nn.Module):
    """Looks at numbers to choose its way."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) if float(x.sum()) > 0 else self.b(self.a(x))


def pruned_of(kind, data, recipe="importance-node", density=0.6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prunus.prune(kind().eval(), recipe, density, data=data)


TOKENS = {"ids": torch.arange(30).view(3, 10) % 20, "mask": torch.ones(3, 10), "scale": 0.5}


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_written_graph_is_the_network(format, tmp_path):
    pruned = pruned_of(Tagger, TOKENS)
    found = pruned.export(tmp_path / f"net.{format}", format, example=TOKENS)
    assert found.compact
    assert found.bytes == (tmp_path / f"net.{format}").stat().st_size
    assert [c.inputs["ids"] for c in found.checked] == [(1, 10), (3, 10), (7, 10), (3, 5)]
    assert max(c.error for c in found.checked) < 1e-5
    assert [t.engine for t in found.latency] == ["torch", *["onnxruntime"] * (format == "onnx")]
    assert all(t.gain.verdict in ("faster", "slower", "no benefit") for t in found.latency)
    assert len(found.verdict.splitlines()) == len(found.latency)
    small = pruned.compact(TOKENS)
    given = {"ids": torch.arange(8).view(2, 4) + 3, "mask": torch.ones(2, 4)}
    expected = small(**given, scale=0.5)["tags"].detach()
    if format == "onnx":  # by itself, as other software reads it
        own = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        got = own.run(None, {k: v.numpy() for k, v in given.items()})[0]
    else:
        got = torch.export.load(tmp_path / "net.pt2").module()(*given.values())[0].detach()
    np.testing.assert_allclose(np.asarray(got), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_fixed_number_of_samples_is_said(tmp_path):
    x = torch.randn(2, 4)
    found = pruned_of(Stubborn, x).export(tmp_path / "net.pt2", "pt2", example=x, measure=False)
    assert [c.inputs["input"] for c in found.checked] == [(2, 4)]
    assert "It takes 2 samples at a time, no other number." in found.notes


def test_a_graph_that_is_another_network_is_not_written(tmp_path, monkeypatch):
    x = torch.randn(5, 6)

    def net():
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    pruned = pruned_of(net, x)
    for module, name, format in ((to_onnx, "run", "onnx"), (to_pt2, "compared", "pt2")):
        real = getattr(module, name)

        def spoiled(*args, real=real, name=name, **options):
            if name == "run":
                return [value + 1e-3 for value in real(*args, **options)]
            return real(args[0], [value + 1e-3 for value in args[1]], *args[2:], **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, spoiled)
            with pytest.raises(ExportError, match=r"is not equal to the network in .* 1×6"):
                pruned.export(tmp_path / f"net.{format}", format, example=x)
    assert list(tmp_path.iterdir()) == []


def test_code_that_looks_at_numbers_is_refused(tmp_path):
    x = torch.rand(5, 4)
    pruned = pruned_of(Branching, x)
    with pytest.raises(ExportError, match=r"torch\.export cannot follow Branching: "):
        pruned.export(tmp_path / "net.onnx", example=x)


def test_bad_arguments(tmp_path):
    x = torch.rand(5, 4)
    pruned = pruned_of(Branching, x)
    with pytest.raises(ValueError, match="Only the format 'onnx' has eight bits, got 'pt2'"):
        pruned.export(tmp_path / "net.pt2", "pt2", example=x, int8=True)
    bare = prunus.prune(Branching().eval(), "magnitude", 0.5)
    with pytest.raises(ValueError, match="The format 'onnx' needs an example"):
        bare.export(tmp_path / "net.onnx")


@pytest.mark.slow  # three files, each exported and quantised
def test_eight_bits_keep_zeros(tmp_path):
    x = torch.randn(8, 32)

    def net():
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    pruned = pruned_of(net, x, "magnitude", 0.5)
    found = pruned.export(tmp_path / "net.onnx", example=x, int8=True)
    assert [path.name for path in found.files] == ["net.onnx", "net.int8.onnx"]
    assert [t.engine for t in found.latency] == [
        "torch", "onnxruntime", "onnxruntime, eight bits"]  # fmt: skip
    (said,) = [note for note in found.notes if note.startswith("Eight bits")]
    small = quantized((tmp_path / "net.onnx").read_bytes())
    assert small.zeros_before == pytest.approx(0.5)
    assert small.zeros_after >= 0.5
    assert f"zeros {small.zeros_before:.2%} before" in said
    assert len(small.data) < len((tmp_path / "net.onnx").read_bytes())
    own = onnxruntime.InferenceSession(tmp_path / "net.int8.onnx")
    with torch.no_grad():
        errors = [
            (torch.from_numpy(own.run(None, {"input": part.numpy()})[0]) - exact).abs().max()
            / exact.abs().max()
            for part in (x[:1], x)
            if (exact := pruned.model(part)) is not None
        ]
    error = float(max(errors))
    assert f"{error:.1%}" in said
    assert error < 0.05
    nearly = pruned_of(net, x, "magnitude", 0.999).export(
        tmp_path / "dense.onnx", example=x, int8=True, measure=False
    )
    assert any("zeros 0.10% before and 0." in note for note in nearly.notes)
    rounded = quantized((tmp_path / "dense.onnx").read_bytes())
    assert rounded.zeros_before < rounded.zeros_after < 0.02  # half a step of 127 on each side


def test_rounder_widths_are_proposed_where_they_are_faster(tmp_path, monkeypatch):
    """The clock is ours: a network is as fast as its first width says."""
    from prunus.export import run

    x = torch.randn(4, 8)

    def net():
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    pruned = prunus.prune(
        net().eval(), Recipe(granularity=Node()), prunus.Plan(kept={"0": 21}), data=x
    )
    slow = {32: 5.0, 21: 4.0, 24: 2.0}

    def clocked(calls, **options):
        widths = [c.__closure__ for c in calls]
        found = [
            slow[next(m for cell in cells if isinstance(m := cell.cell_contents, nn.Module))[0]
                 .out_features]
            for cells in widths
        ]  # fmt: skip
        return [[seconds] * 20 for seconds in found]

    monkeypatch.setattr(run, "interleaved", clocked)
    found = pruned.export(tmp_path / "net", "safetensors", example=x)
    (said,) = [note for note in found.notes if note.startswith("Odd widths")]
    assert "2.00× as fast" in said
    assert "Node(multiple_of=8)" in said
    slow[24] = 4.0
    again = pruned.export(tmp_path / "again", "safetensors", example=x)
    assert not [note for note in again.notes if note.startswith("Odd widths")]


def test_inputs_of_a_graph_are_named_as_the_forward_names_them():
    trace = traced(Tagger().eval(), TOKENS)
    assert trace.plain.places == ("ids", "mask")
    assert trace.free == {"ids": (0, 1), "mask": (0, 1)}
    assert trace.notes == ()
