"""Networks and widths that other software has no form for: one line each, and no file."""

import pytest
import torch
from torch import nn

import prunus
from prunus import Recipe
from prunus.ambient import quiet
from prunus.export import ExportError
from prunus.granularity import Node
from real_checks import compared
from real_networks import build


class Bessel(nn.Module):
    """An operation that ONNX has none for."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.special.bessel_j0(self.a(x)))


@pytest.mark.slow
def test_an_example_that_does_not_run_is_named_before_anything_is_written(tmp_path, capfd):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    pruned = prunus.prune(net, "importance-node", 0.5, data=torch.randn(9, 4))
    with pytest.raises(ValueError, match=r"The model could not run on the data: mat1 and mat2"):
        pruned.export(tmp_path / "net.pt2", "pt2", example=torch.randn(9, 5), measure=False)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_an_operation_without_a_form_in_onnx_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    x = torch.randn(5, 6)
    pruned = prunus.prune(Bessel().eval(), "magnitude", 0.5, data=x)
    with pytest.raises(
        ExportError, match=r"has no form in ONNX: No ONNX function found for .*bessel_j0"
    ):
        pruned.export(tmp_path / "net.onnx", example=x, measure=False)
    assert list(tmp_path.iterdir()) == []
    assert pruned.export(tmp_path / "net.pt2", "pt2", example=x, measure=False).checked


def test_a_width_that_the_library_refuses_is_written_otherwise(tmp_path):
    """transformers takes no hidden size that is no multiple of the heads: 30 with 4 of them."""
    pytest.importorskip("transformers")
    model, examples = build("Llama (sdpa)")
    stream = "model.layers.0.self_attn.o_proj"
    recipe = Recipe(granularity=Node())
    with quiet():
        pruned = prunus.prune(
            model, recipe, {stream: 30 / 32, "*": 1.0}, data=examples[0], layers="*"
        )
        assert pruned.plan.kept[stream] == 30
        found = pruned.save_hf(tmp_path / "net", example=examples[0])
        small = prunus.load(tmp_path / "net", build("Llama (sdpa)")[0]).compact()
    assert "does not load: its configuration cannot say the widths of" in found.notes[0]
    assert max(check.error for check in found.checked) <= 1e-6
    assert compared(pruned.model, small, examples[1]) <= 1e-5
