"""Hidden units of recurrent layers are nodes: found, masked, cut out, priced, saved and loaded."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import models
import prunus
from coupling_checks import few_of, moved
from prunus.coupling import couple
from prunus.surgery import compact

KINDS = {
    "lstm": (nn.LSTM, 4, {}),
    "gru": (nn.GRU, 3, {}),
    "rnn-tanh": (nn.RNN, 1, {}),
    "rnn-relu": (nn.RNN, 1, {"nonlinearity": "relu"}),
}
FORMS = list(itertools.product(KINDS, (1, 2), (False, True)))


class Net(nn.Module):
    """Steps made by a linear layer, read one by one, and as the last states."""

    def __init__(self, kind: str, layers: int = 1, both: bool = False, **options: object) -> None:
        super().__init__()
        make, _, own = KINDS[kind]
        options = {"batch_first": True, **options, **own}
        self.embed = nn.Linear(3, 5)
        self.cells = make(5, 6, layers, bidirectional=both, **options)
        ways = 2 if both else 1
        self.steps = nn.Linear(6 * ways, 4)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.cells(self.embed(x))
        total = self.steps(y).sum(1)
        for each in state if isinstance(state, tuple) else (state,):
            total = total + self.last(each.tanh()).sum(0)
        return total


def net_of(kind: str, layers: int = 1, both: bool = False, **options: object) -> tuple:
    torch.manual_seed(0)
    model = Net(kind, layers, both, **options).double()
    return model, torch.randn(8, 7, 3, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "layers", "both"), FORMS)
def test_a_unit_is_all_its_gates_and_everything_that_reads_it(kind, layers, both):
    """Zero what reads a unit and redraw what makes it: nothing moves, and nothing more is in it.

    The number of members is counted from the definition: g rows of four tensors of each layer and
    direction, and columns of every `weight_hh`, every upper `weight_ih` and both readers.
    """
    model, x = net_of(kind, layers, both)
    coupling = couple(model, x)
    groups = {group.name: group for group in coupling.groups}
    units = groups["cells.weight_ih_l0"]
    ways = 2 if both else 1
    gates = KINDS[kind][1]
    assert units.size == 6
    assert units.exact
    assert not units.written
    roles = [member.role for member in units.classes[3]]
    assert roles.count("out") == 4 * gates * ways * layers
    assert roles.count("in") == ways * layers + ways * ways * (layers - 1) + ways + 1
    assert set(coupling.refused) == {"steps", "last"}
    for members in few_of(units):
        assert moved(model, members, x) <= 1e-10
    for member in units.classes[2]:  # negative control: without any of its columns it is seen
        if member.role == "in":
            left = [m for m in units.classes[2] if m != member]
            assert moved(model, left, x) > 1e-8
    assert groups["embed"].consumers == tuple(
        f"cells.weight_ih_l0{way}" for way in ("", "_reverse")[:ways]
    )


@pytest.mark.parametrize(("kind", "layers", "both"), FORMS)
def test_compact_equals_masked_and_costs_what_was_said(kind, layers, both, tmp_path):
    model, x = net_of(kind, layers, both)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    small = pruned.compact()
    kept = pruned.plan.kept
    assert kept["cells.weight_ih_l0"] < 6
    assert kept["embed"] < 5
    assert small.cells.hidden_size == kept["cells.weight_ih_l0"]
    assert small.cells.input_size == kept["embed"]
    assert_close(small(x), pruned.model(x), rtol=1e-12, atol=1e-12)
    longer = torch.randn(3, 19, 3, dtype=torch.float64)
    assert_close(small(longer), pruned.model(longer), rtol=1e-12, atol=1e-12)
    cost = pruned.cost_after
    assert cost.parameters == sum(p.numel() for p in small.parameters())
    assert cost.macs == macs_of(small, 7)
    assert pruned.cost_before.macs == macs_of(model, 7)
    pruned.save(tmp_path / "masked")
    again = prunus.load(tmp_path / "masked", model)
    assert_close(again.model(x), pruned.model(x), rtol=0, atol=0)
    assert_close(again.compact(x)(x), small(x), rtol=1e-12, atol=1e-12)
    assert again.cost_after == cost


def macs_of(model: Net, steps: int) -> int:
    """Entries of each matrix times the rows it multiplies: the last states count one each."""
    cells = sum(p.numel() for n, p in model.cells.named_parameters() if "weight" in n)
    ways = model.cells.num_layers * (2 if model.cells.bidirectional else 1)
    last = ways * (2 if isinstance(model.cells, nn.LSTM) else 1)
    once = model.embed.weight.numel() + cells + model.steps.weight.numel()
    return once * steps + last * model.last.weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_unit_emits_exactly_nothing(kind):
    model, x = net_of(kind, 2, True)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    gone = ~pruned.masks["steps.weight"].any(0)
    y, state = pruned.model.cells(pruned.model.embed(x))
    assert int(gone.sum()) == 2 * (6 - pruned.plan.kept["cells.weight_ih_l0"]) > 0
    assert bool((y[..., gone] == 0).all())
    assert bool((y[..., ~gone] != 0).any())
    for each in state if isinstance(state, tuple) else (state,):
        assert bool((each[..., gone[:6]] == 0).all())


@pytest.mark.parametrize("recipe", ["random-node", "importance-node+ls", "obs-node+ls", "dpp-node"])
@pytest.mark.parametrize("kind", KINDS)
def test_node_recipes_prune_hidden_units(kind, recipe):
    model, x = net_of(kind)
    pruned = prunus.prune(model, recipe, 0.5, data=x, layers="*")
    assert set(pruned.layers) == {
        "embed", "cells.weight_ih_l0", "cells.weight_hh_l0", "steps", "last",
    }  # fmt: skip
    small = pruned.compact()
    assert small.cells.hidden_size == pruned.plan.kept["cells.weight_ih_l0"] < 6
    assert_close(small(x), pruned.model(x), rtol=1e-10, atol=1e-10)


def test_least_squares_lessens_the_error():
    """On correlated states, of which half must go, the readers' new values make up for some."""
    model, x = net_of("gru")
    with torch.no_grad():  # units in pairs, the second nearly the first
        for tensor in model.cells.parameters():
            rows = tensor.view(3, 6, -1)
            rows[:, 3:] = rows[:, :3] + 0.01 * rows[:, 3:]
    errors = {}
    for recipe in ("importance-node", "importance-node+ls"):
        pruned = prunus.prune(model, recipe, 0.5, data=x, layers="cells", exclude="embed")
        errors[recipe] = float((pruned.model(x) - model(x)).detach().square().mean())
    assert errors["importance-node+ls"] < errors["importance-node"] / 4


def test_without_a_request_units_stay():
    model, x = net_of("lstm")
    read = "is read by cells.weight_ih_l0, pruned only where `layers` names it"
    with pytest.raises(ValueError, match=f"embed: {read}"):
        prunus.prune(model, "importance-node", 0.5, data=x)
    zoo, inputs = models.build("lstm")
    pruned = prunus.prune(zoo, "importance-node", 0.5, data=inputs)
    assert list(pruned.plan.kept) == ["fc1"]
    assert pruned.not_pruned["embed"] == read.replace("cells", "lstm")
    assert torch.equal(pruned.model.lstm.weight_ih_l0, zoo.lstm.weight_ih_l0)
    both = ["cells.weight_*h_l0"]
    alone = prunus.prune(model, "importance-node", 0.5, data=x, layers=both).compact()
    assert alone.cells.input_size == 5
    assert alone.cells.hidden_size < 6
    part = "shares its channels with cells.weight_hh_l0, not selected"
    with pytest.raises(ValueError, match=part):
        prunus.prune(model, "importance-node", 0.5, data=x, layers="cells.weight_ih_l0")


class Translator(nn.Module):
    """The states of one network start another, whose cell then steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 6, batch_first=True)
        self.decoder = nn.LSTM(3, 6, batch_first=True)
        self.cell = nn.LSTMCell(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        y, (hidden, cell) = self.decoder(x.flip(1), state)
        one = (hidden[0], cell[0])
        for step in y.unbind(1):
            one = self.cell(step, one)
        return self.head(one[0])


def test_states_that_are_handed_on_join_their_units():
    torch.manual_seed(0)
    model, x = Translator().double(), torch.randn(5, 4, 3, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert group.size == 6
    assert group.producers == (
        "encoder.weight_ih_l0", "encoder.weight_hh_l0", "decoder.weight_ih_l0",
        "decoder.weight_hh_l0", "cell.weight_ih", "cell.weight_hh",
    )  # fmt: skip
    for members in few_of(group):
        assert moved(model, members, x) <= 1e-10
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    small = pruned.compact()
    (kept,) = pruned.plan.kept.values()
    assert small.cell.hidden_size == small.cell.input_size == small.decoder.hidden_size == kept < 6
    assert_close(small(x), pruned.model(x), rtol=1e-12, atol=1e-12)


class Started(nn.Module):
    """First states of several origins."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self.start = nn.Linear(2, 6) if origin == "layer" else nn.Parameter(torch.randn(1, 1, 6))
        self.cells = nn.GRU(3, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        size = len(x)
        if self.origin == "layer":
            first = self.start(x[:, 0, :2])[None]
        elif self.origin == "learned":
            first = self.start.expand(1, size, 6).contiguous()
        elif self.origin == "input":
            first = torch.cat([x[:, 0], x[:, 1]], 1)[None].contiguous()
        else:
            first = torch.full((1, size, 6), 0.5, dtype=x.dtype)
        return self.head(self.cells(x, first)[0][:, -1])


@pytest.mark.parametrize("origin", ["layer", "learned", "input", "code"])
def test_first_states_are_members_or_refuse(origin):
    torch.manual_seed(0)
    model, x = Started(origin).double(), torch.randn(5, 4, 3, dtype=torch.float64)
    coupling = couple(model, x)
    if origin == "input":
        why = "its first states are given from outside, as wide as the layer"
        assert not coupling.groups
        assert why in coupling.refused["cells.weight_hh_l0"]
        return
    (group,) = coupling.groups
    assert group.written == (origin == "code")  # then its width is written down, and it is left
    makers = {slot.parameter for slot in group.slots if slot.role == "out"}
    assert {"layer": "start.weight", "learned": "start"}.get(origin, "cells.bias_hh_l0") in makers
    for members in few_of(group):
        assert moved(model, members, x) <= 1e-10
    if origin == "layer":
        pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
        assert_close(pruned.compact()(x), pruned.model(x), rtol=1e-12, atol=1e-12)


class Packed(nn.Module):
    """Sequences of different lengths, read as last states."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 3 + 2
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.cells(packed)[1][0])


def test_packed_sequences():
    torch.manual_seed(0)
    model, x = Packed().double(), torch.randn(5, 4, 3, dtype=torch.float64)
    (group,) = couple(model, x).groups
    for members in few_of(group):
        assert moved(model, members, x) <= 1e-10
    pruned = prunus.prune(model, "importance-node", 0.5, data=x, layers="*")
    assert_close(pruned.compact()(x), pruned.model(x), rtol=1e-12, atol=1e-12)


class Scaled(nn.LSTM):
    """A forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0] * 2


def wrapped(layer: nn.Module) -> nn.Module:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cells, self.head = nn.Linear(3, 4), layer, nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.cells(self.embed(x))
            return self.head(y[0] if isinstance(y, tuple) else y)

    return Wrapped().double()


def test_what_is_not_known_is_refused_by_name():
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    reasons = {}
    for name, layer in {
        "own": Scaled(4, 6),
        "computed": parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0"),
    }.items():
        coupling = couple(wrapped(layer), x)
        assert not coupling.groups, name
        reasons[name] = coupling.refused["embed"]
        own = [key for key in coupling.refused if key.startswith("cells")]
        assert all(coupling.refused[key] == reasons[name] for key in own)
    assert reasons == {
        "own": "a recurrent layer (Scaled) has no rule",
        "computed": "its weights are computed in the forward pass",
    }


def test_what_a_hook_does_to_the_output_is_followed():
    torch.manual_seed(0)
    model, x = wrapped(nn.GRU(4, 6)), torch.randn(4, 5, 3, dtype=torch.float64)
    model.cells.register_forward_hook(lambda module, args, output: (output[0].flip(-1),))
    group = couple(model, x).groups[-1]
    places = {m.parameter: m.index for m in group.classes[1] if m.role == "in"}
    assert places == {"cells.weight_hh_l0": 1, "head.weight": 4}


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (4, 1)])
def test_widths_of_one(sizes):
    torch.manual_seed(0)
    wide, hidden = sizes
    model = nn.Sequential(nn.Linear(3, wide), nn.LSTM(wide, hidden, bias=False)).double()

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = model, nn.Linear(hidden, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0])

    net, x = Read(), torch.randn(4, 5, 3, dtype=torch.float64)
    found = {group.name: group for group in couple(net, x).groups}
    assert found["body.1.weight_ih_l0"].size == hidden
    assert found["body.0"].size == wide
    for group in found.values():
        for members in few_of(group):
            assert moved(net, members, x) <= 1e-10
    pruned = prunus.prune(net, "importance-node", 0.5, data=x, layers="*")
    small = pruned.compact()
    assert small.body[1].hidden_size == max(1, hidden // 2)
    assert_close(small(x), pruned.model(x), rtol=1e-12, atol=1e-12)


def test_weights_in_one_piece_as_on_gpus(tmp_path):
    """cuDNN keeps all weights of a module in one storage; a compact network is saved and loaded."""
    model, x = net_of("lstm", 2, True)
    weights = list(model.cells.parameters())
    whole = torch.cat([weight.detach().flatten() for weight in weights])
    first = 0
    for weight in weights:
        weight.data = whole[first : first + weight.numel()].view(weight.shape)
        first += weight.numel()
    pruned = prunus.prune(model, "importance-node", 0.4, data=x, layers="*")
    pruned.save(tmp_path, example=x)
    small = prunus.load(tmp_path, net_of("lstm", 2, True)[0]).compact()
    assert small.cells.hidden_size == pruned.plan.kept["cells.weight_ih_l0"] < 6
    assert_close(small(x), pruned.model(x), rtol=1e-12, atol=1e-12)
    small(x).square().sum().backward()
    assert all(weight.grad is not None for weight in small.cells.parameters())


def test_constants_do_not_fold_into_recurrent_layers():
    """A unit that emits its bias, whatever the input, stays while a recurrent layer reads it.

    So does a hidden unit without incoming weights: its biases move it from step to step. Unread
    units go, in an upper layer too.
    """
    model, x = net_of("gru")
    with torch.no_grad():
        model.embed.weight[:2] = 0
        model.cells.weight_ih_l0[:, 1] = 0
        for weight in (model.cells.weight_ih_l0, model.cells.weight_hh_l0):
            weight.view(3, 6, -1)[:, 4] = 0
        for weight in (model.cells.weight_hh_l0, model.steps.weight, model.last.weight):
            weight[:, 5] = 0
    small = compact(model, x)
    assert (small.cells.input_size, small.cells.hidden_size) == (4, 5)
    longer = torch.randn(2, 15, 3, dtype=torch.float64)
    assert_close(small(longer), model(longer), rtol=1e-12, atol=1e-12)


def test_units_stay_away_while_the_network_trains():
    model, x = net_of("lstm", 2)
    pruned = prunus.prune(model, "importance-node", 0.4, data=x, layers="*")
    before = pruned.model(x).detach()
    optimizer = torch.optim.Adam(pruned.model.parameters(), lr=0.1, weight_decay=0.1)
    with pruned.hold(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            pruned.model(x).square().mean().backward()
            optimizer.step()
    assert not torch.allclose(pruned.model(x), before)
    small = pruned.compact()
    assert small.cells.hidden_size == pruned.plan.kept["cells.weight_ih_l0"]
    assert_close(small(x), pruned.model(x), rtol=1e-12, atol=1e-12)
