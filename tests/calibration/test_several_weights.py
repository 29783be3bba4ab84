"""Modules with several weights: every matrix with the inputs that it multiplies, and no others."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import prunus
from prunus.calibration import calibrate
from prunus.weights import weights_of

B, T, D, H = 3, 5, 4, 6


def moments(rows):
    rows = torch.cat([r.reshape(-1, r.shape[-1]) for r in rows]).double()
    return rows.T @ rows / len(rows), rows.mean(0), len(rows)


def same(layer, rows):
    gram, mean, count = moments(rows)
    assert layer.samples == count
    torch.testing.assert_close(layer.gram, gram)
    torch.testing.assert_close(layer.mean, mean)


class Step:
    """One step of each kind of layer from the definitions in torch's documentation."""

    def __init__(self, module, layer, way):
        end = f"_l{layer}" + ("_reverse" if way else "")
        get = lambda name: getattr(module, name + end, None)
        self.module = module
        self.wi, self.wh, self.wr = get("weight_ih"), get("weight_hh"), get("weight_hr")
        self.bi, self.bh = (get(name) if module.bias else 0 for name in ("bias_ih", "bias_hh"))

    def __call__(self, x, h, c):
        """The next hidden state, the next cell state, and what the projection reads."""
        a, b = self.wi @ x + self.bi, self.wh @ h + self.bh
        mode, raw = self.module.mode, None
        if mode == "LSTM":
            i, f, g, o = (a + b).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            raw = o.sigmoid() * c.tanh()
            h = raw if self.wr is None else self.wr @ raw
        elif mode == "GRU":
            (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
            z = (az + bz).sigmoid()
            h = (1 - z) * (an + (ar + br).sigmoid() * bn).tanh() + z * h
        else:
            h = (a + b).tanh() if mode == "RNN_TANH" else (a + b).relu()
        return h, c, raw


def by_hand(module, sequences, hidden, cell):
    """{parameter: what it multiplied}, sequence by sequence and step by step."""
    seen = {}
    ways = 2 if module.bidirectional else 1
    for b, x in enumerate(sequences):
        below = list(x)
        for layer in range(module.num_layers):
            outputs = [[None] * len(below) for _ in range(ways)]
            for way in range(ways):
                end = f"_l{layer}" + ("_reverse" if way else "")
                step = Step(module, layer, way)
                h, c = hidden[layer * ways + way, b], cell[layer * ways + way, b]
                for t in range(len(below))[:: -1 if way else 1]:
                    seen.setdefault("weight_ih" + end, []).append(below[t])
                    seen.setdefault("weight_hh" + end, []).append(h)
                    h, c, raw = step(below[t], h, c)
                    if step.wr is not None:
                        seen.setdefault("weight_hr" + end, []).append(raw)
                    outputs[way][t] = h
            below = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return seen


class Around(nn.Module):
    """A recurrent layer called with padded or packed sequences and a first state."""

    def __init__(self, net, packed):
        super().__init__()
        self.net, self.packed = net, packed

    def forward(self, x, lengths=None, h=None, c=None):
        state = None if h is None else ((h.transpose(0, 1), c.transpose(0, 1)))
        if state is not None:
            state = tuple(s.contiguous() for s in state)
            state = state if self.net.mode == "LSTM" else state[0]
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        elif not self.net.batch_first:
            x = x.transpose(0, 1)
        out = self.net(x, state)[0]
        return out.data if self.packed else out


KINDS = {
    "lstm": lambda: nn.LSTM(D, H, batch_first=True),
    "lstm time first": lambda: nn.LSTM(D, H),
    "lstm stack": lambda: nn.LSTM(D, H, 3, batch_first=True, dropout=0.5),
    "lstm both ways": lambda: nn.LSTM(D, H, 2, batch_first=True, bidirectional=True),
    "lstm projected": lambda: nn.LSTM(D, H, 2, batch_first=True, bidirectional=True, proj_size=2),
    "lstm no bias": lambda: nn.LSTM(D, H, 2, batch_first=True, bias=False),
    "gru": lambda: nn.GRU(D, H, 2, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(D, H, 2, batch_first=True),
    "rnn relu": lambda: nn.RNN(D, H, batch_first=True, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_matrices_see_their_own_inputs(kind, state, packed):
    torch.manual_seed(0)
    net = KINDS[kind]().double()
    model = Around(net, packed)
    x, lengths = torch.randn(B, T, D).double(), torch.tensor([3, 5, 1])
    count = net.num_layers * (2 if net.bidirectional else 1)
    h = torch.randn(B, count, net.proj_size or H).double() * state
    c = torch.randn(B, count, H).double() * state
    batch = {"x": x, **({"lengths": lengths} if packed else {})}
    if state:
        batch |= {"h": h, "c": c}
    ends = lengths if packed else [T] * B
    with torch.no_grad():
        seen = by_hand(
            net, [x[b, :n] for b, n in enumerate(ends)], h.transpose(0, 1), c.transpose(0, 1)
        )
    found = calibrate(model, batch, layers="*")
    assert list(found) == [f"net.{n}" for n, _ in net.named_parameters() if "weight" in n]
    for name, layer in found.items():
        same(layer, seen[name.removeprefix("net.")])
        assert (layer.bias is None) == (not net.bias or "weight_hr" in name)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(make):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = make(D, H)

        def forward(self, x):
            state, seen = None, []
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
                seen.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(seen, 1)

    torch.manual_seed(0)
    model, x = Unrolled().double(), torch.randn(B, T, D).double()
    found = calibrate(model, x, layers="*")
    same(found["cell.weight_ih"], [x])
    with torch.no_grad():
        states = model(x)
    same(found["cell.weight_hh"], [torch.zeros(B, H), *states[:, :-1].unbind(1)])


class Attends(nn.Module):
    """One attention, of a sequence to itself or to another."""

    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x, y=None, attention_mask=None):
        other = x if y is None else y
        if not self.attn.batch_first:
            x, other = x.transpose(0, 1), other.transpose(0, 1) if y is not None else None
            other = x if other is None else other
        hidden = None if attention_mask is None else attention_mask == 0
        return self.attn(x, other, other, key_padding_mask=hidden)[0]


def heads(module, query, key, value):
    """What the output projection reads, from the definition."""
    wide = module.embed_dim // module.num_heads
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (
        (x @ w.T + b).unflatten(-1, (-1, wide)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    return ((q @ k.transpose(2, 3) / math.sqrt(wide)).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_to_itself(batch_first):
    torch.manual_seed(0)
    model, x = Attends(batch_first=batch_first).double().eval(), torch.randn(B, T, 8).double()
    found = calibrate(model, x, layers="*")
    assert list(found) == ["attn.in_proj_weight", "attn.out_proj"]
    layer = found["attn.in_proj_weight"]
    assert layer.groups == 3
    gram, _, count = moments([x])
    assert layer.samples == count
    torch.testing.assert_close(layer.gram, gram.expand(3, -1, -1))
    with torch.no_grad():
        same(found["attn.out_proj"], [heads(model.attn, x, x, x)])
    assert found["attn.out_proj"].bias is not None


def test_attention_with_padding():
    torch.manual_seed(0)
    model = Attends(batch_first=True).double().eval()
    x, mask = torch.randn(B, T, 8).double(), torch.arange(T) < torch.tensor([5, 2, 3])[:, None]
    found = calibrate(model, {"x": x, "attention_mask": mask}, layers="*")
    gram, _, count = moments([x[mask]])
    assert found["attn.in_proj_weight"].samples == count == 10
    torch.testing.assert_close(found["attn.in_proj_weight"].gram[1], gram)
    far = {"x": torch.where(mask[..., None], x, 99.0), "attention_mask": mask}
    again = calibrate(model, far, layers="*")  # what stands at padding leaves no trace
    torch.testing.assert_close(again["attn.out_proj"].gram, found["attn.out_proj"].gram)


def test_attention_to_another_sequence():
    torch.manual_seed(0)
    x, y = torch.randn(B, T, 8).double(), torch.randn(B, 7, 8).double()
    one = Attends(batch_first=True).double().eval()
    found = calibrate(one, {"x": x, "y": y}, layers="*")
    assert list(found) == ["attn.out_proj"]  # one parameter for two sequences
    assert "from one sequence to another" in found.refused["attn.in_proj_weight"]
    assert found.unseen == {"attn.in_proj_weight": found.refused["attn.in_proj_weight"]}
    with torch.no_grad():
        same(found["attn.out_proj"], [heads(one.attn, x, y, y)])
    wide = torch.randn(B, 7, 6).double()
    apart = Attends(batch_first=True, kdim=6, vdim=6).double().eval()
    found = calibrate(apart, {"x": x, "y": wide}, layers="*")
    same(found["attn.q_proj_weight"], [x])
    same(found["attn.k_proj_weight"], [wide])
    same(found["attn.v_proj_weight"], [wide])
    assert torch.equal(found["attn.k_proj_weight"].bias, apart.attn.in_proj_bias[8:16])
    with torch.no_grad():
        same(found["attn.out_proj"], [heads(apart.attn, x, wide, wide)])


def test_another_sequence_that_is_as_long_is_another_sequence():
    torch.manual_seed(0)
    model = Attends(batch_first=True).double().eval()
    batch = {key: torch.randn(B, T, 8).double() for key in ("x", "y")}
    found = calibrate(model, batch, layers="*")
    assert list(found) == ["attn.out_proj"]
    assert "from one sequence to another" in found.refused["attn.in_proj_weight"]


def test_a_layer_that_some_calls_do_not_show_has_no_statistics():
    """The two sequences are equally long in one batch; that is not enough."""
    torch.manual_seed(0)
    model = Attends(batch_first=True).double().eval()
    x = torch.randn(B, T, 8).double()
    found = calibrate(model, [x, {"x": x, "y": torch.randn(B, 7, 8).double()}], layers="*")
    assert "attn.in_proj_weight" in found.refused


def test_gradients_need_no_inputs():
    torch.manual_seed(0)
    model = Attends(batch_first=True).double().eval()
    batch = {"x": torch.randn(B, T, 8).double(), "y": torch.randn(B, 7, 8).double()}
    loss = lambda output, batch: output.square().mean()
    found = calibrate(model, batch, ("grad", "gram"), loss=loss, layers="*")
    loss(model(**batch), batch).backward()
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(found[name].grad, weight.parameter.grad.double())
    assert found["attn.in_proj_weight"].gram is None
    assert list(found.unseen) == ["attn.in_proj_weight"]
    said = prunus.calibrate(model, batch, ("sensitivity", "gram"), layers="*").unseen[
        "attn.out_proj"
    ]
    assert said == (
        "its module does not show the outputs of this weight alone, which the statistic "
        "'sensitivity' reads"
    )


def test_users_views_of_stacked_matrices():
    from prunus.layer import LinearView, register_view
    from prunus.views import Matrix

    class Experts(nn.Module):
        """Three matrices (in, out) in one parameter, each for a third of the rows."""

        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 6))

        def forward(self, x):
            return torch.cat([x[i::3] @ w for i, w in enumerate(self.gate_up_proj)])

    class ExpertsView:
        def matrices(self, module):
            return [
                Matrix(
                    parameter="gate_up_proj",
                    view=LinearView(transposed=True),
                    index=i,
                    bias=None,
                    inputs=lambda m, args, kwargs, i=i: args[0][i::3],
                    alone=False,
                )
                for i in range(3)
            ]

    undo = register_view(Experts, ExpertsView())
    try:
        torch.manual_seed(0)
        net, x = nn.Sequential(Experts()).double(), torch.randn(30, 4).double()
        found = calibrate(net, x, layers="*")
        assert list(found) == [f"0.gate_up_proj[{i}]" for i in range(3)]
        for i, layer in enumerate(found.values()):
            assert torch.equal(layer.weight, net[0].gate_up_proj[i].T)
            same(layer, [x[i::3]])
    finally:
        undo()
