"""What of a batch counts samples, and what goes into the model."""

import re
from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.calibration.batches import Batches, call, first_of, parts, size_of
from prunus.calibration.forward import loss_of, tensor_of
from prunus.inputs import arguments, samples_of

N, T, D = 6, 5, 3
X, IDS = torch.randn(N, T, D), torch.randint(0, 9, (N, T))
Pair = namedtuple("Pair", "x y")


@dataclass
class Fields:
    x: torch.Tensor
    scale: float
    y: torch.Tensor


CUT = {
    "tensor": (X, {(): 2}),
    "array": (np.zeros((N, 4)), {(): 2}),
    "labels": ((X, torch.zeros(N)), {(0,): 2, (1,): 2}),
    "list of two": ([X, torch.zeros(N).long()], {(0,): 2, (1,): 2}),
    "named tuple": (Pair(X, torch.zeros(N)), {(0,): 2, (1,): 2}),
    "data class": (Fields(X, 2.0, torch.zeros(N)), {("x",): 2, ("y",): 2}),
    "nested": ({"a": {"b": X}, "c": (IDS, IDS)}, {("a", "b"): 2, ("c", 0): 2, ("c", 1): 2}),
    "position mask": ({"src": X, "src_mask": torch.zeros(T, T)}, {("src",): 2, ("src_mask",): T}),
    "mask first": ({"m": torch.zeros(T, T), "src": X}, {("src",): 2, ("m",): T}),
    "numbers": ({"x": X, "t": torch.tensor(3.0)}, {("x",): 2}),
    "one row": ({"x": X, "place": torch.zeros(1, T)}, {("x",): 2, ("place",): 1}),
    "two streams": ({"a": IDS, "b": torch.zeros(N, 9)}, {("a",): 2, ("b",): 2}),
    "batch encoding": (UserDict(a=IDS, b=IDS), {("a",): 2, ("b",): 2}),
}
WHOLE = {
    "graph": ({"x": torch.randn(N, D), "adj": torch.randn(N, N)}, "may be square"),
    "edge features": ({"x": torch.randn(N, D), "e": torch.randn(N, N, 2)}, "may be square"),
    "edges": ({"x": torch.randn(N, D), "edge_index": torch.zeros(2, 9).long()}, "6 samples"),
    "sparse": ({"x": X, "adj": torch.eye(N).to_sparse()}, "sparse or nested"),
    "as long as samples": ({"src": torch.randn(T, T, D), "m": torch.zeros(T, T)}, "may be square"),
    "per head": ({"src": X, "m": torch.zeros(4 * N, T, T)}, "does not have"),
    "images": (([torch.randn(3, 4, 5), torch.randn(3, 5, 4)], ["a", "b"]), "stands in a list"),
    "levels": (([torch.randn(N, 4), torch.randn(N, 8)], torch.zeros(N)), "stands in a list"),
    "packed labels": ((X, torch.zeros(N * T)), "does not have"),
}


def leaf(value, path):
    for key in path:
        value = getattr(value, key) if isinstance(value, Fields) else value[key]
    return value


@pytest.mark.parametrize("name", CUT)
def test_what_carries_samples_is_cut_and_nothing_else(name):
    batch, lengths = CUT[name]
    found = samples_of(batch)
    assert found.mixed is None
    assert found.size == N
    few = first_of(batch, 2)
    for path, length in lengths.items():
        whole, part = leaf(batch, path), leaf(few, path)
        assert torch.equal(part, torch.as_tensor(whole)[:length])
    assert [size_of(part) for part in parts(batch, 4)] == [4, 2]
    again = found.take([0, 0, 5])
    first = next(iter(lengths))
    assert torch.equal(leaf(again, first), torch.as_tensor(leaf(batch, first))[[0, 0, 5]])


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_clear_runs_whole(name):
    batch, why = WHOLE[name]
    assert why in samples_of(batch).mixed
    assert len(list(parts(batch, 2))) == 1
    few = first_of(batch, 1)
    shapes = [t.shape for t in (few.values() if isinstance(few, dict) else few[0])]
    assert shapes == [t.shape for t in (batch.values() if isinstance(batch, dict) else batch[0])]


def test_lists_beside_the_input_are_cut_with_it():
    boxes = [{"boxes": torch.zeros(i + 1, 4)} for i in range(N)]
    x, names, targets = first_of((X, list("abcdef"), boxes), 2)
    assert len(x) == 2
    assert names == ["a", "b"]
    assert [t["boxes"].shape[0] for t in targets] == [1, 2]
    texts = first_of({"x": X, "texts": list("abcdef"), "flag": True}, 3)
    assert texts["texts"] == ["a", "b", "c"]
    assert texts["flag"] is True


def test_batches_without_samples():
    assert size_of({"a": "text"}) is None
    assert size_of(torch.tensor(3.0)) == 1
    assert size_of(torch.empty(0, 4)) == 0
    empty = [torch.empty(0, 4), torch.randn(2, 4)]
    assert [len(batch) for batch in Batches(empty)] == [2]
    with pytest.raises(ValueError, match=r"^`data` must hold at least one sample, got none\.$"):
        list(Batches([torch.empty(0, 4), (), {}]))


@given(rows=st.integers(1, 9), size=st.integers(1, 20))
def test_parts_put_together_are_the_batch(rows, size):
    batch = {"x": torch.randn(size, 3, 2), "y": torch.arange(size), "k": torch.eye(3)}
    pieces = list(parts(batch, rows))
    for key in ("x", "y"):
        assert torch.equal(torch.cat([piece[key] for piece in pieces]), batch[key])
    assert all(torch.equal(piece["k"], batch["k"]) for piece in pieces)


def test_arguments_of_a_batch():
    assert arguments(X) == ((X,), {})
    assert arguments((X, 1)) == ((X,), {})
    assert arguments(((X, IDS), 1)) == (((X, IDS),), {})  # a pair is one argument
    assert arguments({"a": X}) == ((), {"a": X})
    assert arguments(({"a": X}, 1)) == ((), {"a": X})
    assert arguments(UserDict(a=X)) == ((), {"a": X})


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, left, right, scale=1.0):
        return self.fc(left + right) * scale


def test_the_refusal_of_two_inputs_in_a_tuple_says_how():
    left, right = torch.randn(3, 4), torch.randn(3, 4)
    message = (
        "The model could not run on the data: Two.forward() missing 1 required positional "
        "argument: 'right'. The input was shape (3, 4), dtype torch.float32, device cpu. The model "
        "takes 2 inputs, and of a tuple only the first element is the input: pass each batch as a "
        "mapping, {'left': ..., 'right': ...}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(Two(), (left, right))
    model = Two()
    out = call(model, {"left": left, "right": right})
    torch.testing.assert_close(out, model(left, right))


@pytest.mark.parametrize("error", [AttributeError, KeyError, AssertionError, ZeroDivisionError])
def test_whatever_the_code_says_of_its_input_is_one_refusal(error):
    class Choosy(nn.Module):
        def forward(self, x):
            raise error("left")

    with pytest.raises(ValueError, match=r"could not run on the data: .*left.*shape \(3, 4\)"):
        call(Choosy(), torch.randn(3, 4))


def test_arrays_and_nested_inputs_are_examples_too(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, pair):
            return self.head(F.relu(self.fc(pair["left"].sub_(pair["right"]))))

    torch.manual_seed(0)
    net, left, right = Sum().eval(), *np.random.default_rng(0).normal(size=(2, 9, 4))
    batch = {"pair": {"left": left.astype("float32"), "right": right.astype("float32")}}
    before = batch["pair"]["left"].copy()
    pruned = prunus.prune(net, "importance-node", 0.5, data=batch)
    small = pruned.compact(batch)
    assert small.fc.out_features < 8
    assert prunus.compact(pruned.model, batch).fc.out_features == small.fc.out_features
    pruned.save(tmp_path, example=batch)
    assert (batch["pair"]["left"] == before).all()  # the model changes its input in place


class Graph(nn.Module):
    """Two graph convolutions; the adjacency is not a batch of rows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, adj):
        return self.second(adj @ F.relu(self.first(adj @ x)))


def test_statistics_of_a_graph_are_those_of_its_nodes():
    torch.manual_seed(0)
    n = 1100  # more than one part
    batch = {"x": torch.randn(n, 4), "adj": torch.softmax(torch.randn(n, n), 1)}
    model = Graph()
    seen = (batch["adj"] @ batch["x"]).double()
    layer = prunus.calibrate(model, batch)["first"]
    torch.testing.assert_close(layer.gram, seen.T @ seen / n, rtol=1e-5, atol=1e-9)
    assert layer.samples == n
    assert prunus.prune(model, "magnitude", 0.5, data=batch).cost_after.density == 0.5


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_a_sparse_adjacency_is_an_input_like_a_dense_one(layout):
    torch.manual_seed(0)
    model = Graph().eval()
    x, adj = torch.randn(12, 4), (torch.rand(12, 12) < 0.3).float()
    dense = prunus.prune(model, "wanda+ls", 0.5, data={"x": x, "adj": adj})
    given = {"x": x, "adj": adj.to_sparse(layout=layout)}
    sparse = prunus.prune(model, "wanda+ls", 0.5, data=given)
    for name, result in dense.layers.items():
        assert torch.equal(sparse.layers[name].mask, result.mask)
        torch.testing.assert_close(sparse.layers[name].weight, result.weight)
    other = prunus.calibrate(model, {"x": x, "adj": (2 * adj).to_sparse(layout=layout)})
    same = prunus.calibrate(model, given)
    assert same.fingerprint == sparse.data_fingerprint != other.fingerprint
    small = prunus.prune(model, "importance-node", 0.5, data=given).compact()
    assert small.first.out_features < 8


def test_a_mask_over_positions_is_not_cut():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    mask = torch.triu(torch.full((T, T), -torch.inf), 1)
    whole = {"src": torch.randn(20, T, 8), "src_mask": mask}
    by_two = [{"src": x, "src_mask": mask} for x in whole["src"].split(2)]
    one, other = (prunus.calibrate(layer, data)["linear1"] for data in (whole, by_two))
    torch.testing.assert_close(one.gram, other.gram, rtol=1e-5, atol=1e-7)
    assert one.samples == other.samples == 20 * T
    assert prunus.prune(layer, "wanda+ls", 0.5, data=whole).cost_after.density == 0.5


@dataclass
class Answer:
    """An output of a user's own."""

    note: str
    scores: torch.Tensor
    loss: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("output", "first"),
    [
        (X, X),
        ((X, IDS), X),
        ({"hidden": IDS, "logits": X}, X),
        ({"hidden": X, "other": IDS}, X),
        (Answer("a", X), X),
    ],
)
def test_outputs_as_tensors(output, first):
    assert tensor_of(output) is first


def test_outputs_without_a_tensor():
    with pytest.raises(TypeError, match=r"^the model returns str, and no tensor or `\.logits`\.$"):
        tensor_of("text")
    loss = torch.tensor(3.0)
    assert loss_of({"loss": loss}, X, None) is loss
    assert loss_of(Answer("a", X, loss), X, None) is loss
