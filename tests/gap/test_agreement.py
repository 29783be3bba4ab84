"""What is certified is what the two networks compute: in place, by attribute, by hook, in half."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.guarantee.agree import agree
from prunus.guarantee.arithmetic import unit_of
from prunus.guarantee.extract import Unsupported, extract
from prunus.theory.gap import LinearPair, Statement, UnsoundError, VacuousWarning
from prunus.theory.gap import certify as certify_stages
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def drawn(samples=200, width=6, seed=0):
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))


def thinned(model, share=0.5):
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            weight = module.weight.data
            weight[weight.abs() <= weight.abs().flatten().quantile(share)] = 0
    return other


def gaps(model, other, x):
    with torch.no_grad():
        return (model(x).double() - other(x).double()).flatten(1).norm(dim=1)


class Block(nn.Module):
    """A pre-activation block: whether the sum sees the activation depends on `inplace`."""

    def __init__(self, inplace):
        super().__init__()
        self.inp, self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = self.inp(x)
        return self.out(x + self.a(self.act(x)))


class Twisted(nn.Module):
    """In-place operations of every kind, of which later branches read the results."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.inp, self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act, self.drop = nn.LeakyReLU(0.2, inplace=True), nn.Dropout(0.5, inplace=True)
        self.same = nn.Identity()

    def forward(self, x):
        x = self.inp(x)
        if self.kind == "relu_":
            y = x.relu_()
        elif self.kind == "functional":
            y = F.relu(x, inplace=True)
        elif self.kind == "positional":
            y = F.elu(x, 1.0, True)
        elif self.kind == "torch":
            y = torch.tanh_(x)
        elif self.kind == "dropout":  # hands its input back in evaluation
            y = self.act(self.drop(x))
        elif self.kind == "identity":
            y = self.act(self.same(x))
        elif self.kind == "iadd":
            y = self.a(x)
            x += y
        else:
            y = self.a(x)
            y = x.add_(y)
        return self.out(x + self.a(y))


KINDS = ["relu_", "functional", "positional", "torch", "dropout", "identity", "iadd", "add_"]


def equal_to_networks(model, other, x):
    found = extract(model, other, x)
    for pruned, network in ((False, model), (True, other)):
        with torch.no_grad():
            want = copy.deepcopy(network).double()(x.double())
        torch.testing.assert_close(run(found.stages, x.double(), pruned=pruned), want)
    return found


@pytest.mark.parametrize("model", [Block(True), Block(False), *map(Twisted, KINDS)],
                         ids=["block in place", "block", *KINDS])  # fmt: skip
def test_writing_into_the_input_is_followed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    other, x = thinned(model.eval()), drawn()
    found = equal_to_networks(model, other, x)
    before = x.clone()
    certificate = prunus.certify(model, other, data=x)
    assert torch.equal(x, before)
    assert math.isfinite(certificate.value)
    generator = torch.Generator().manual_seed(1)
    centre = x.double().mean(dim=0, keepdim=True)
    reached = largest_gap(found.stages, certificate.radius, centre, steps=60, generator=generator)
    assert reached <= certificate.value
    measured = gaps(model, other, x.clone())
    assert certificate.gaps == pytest.approx(measured.tolist())
    assert float(measured.max()) <= certificate.of("sup")[0].measured


def test_an_operation_that_writes_into_the_data_leaves_them():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)).eval()
    other, x = thinned(model), drawn()
    before = x.clone()
    certificate = prunus.certify(model, other, data=x)
    assert torch.equal(x, before)
    assert certificate.gaps == pytest.approx(gaps(model, other, x.clone()).tolist())


def test_writing_into_another_shape_is_refused_by_name():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv1d(1, 2, 1), nn.Linear(12, 3)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.conv(x)
            flat = x.flatten(1)
            self.act(x)
            return self.fc(flat)

    model = View().eval()
    x = drawn()[:, None]
    with pytest.raises(Unsupported, match="'act' writes into its input"):
        extract(model, model, x)
    certificate = prunus.certify(model, thinned(model), data=x)
    assert certificate.value == math.inf
    assert "'act' writes into its input" in " ".join(certificate.summary().split())


class Attributed(nn.Module):
    """A function held as an attribute, and a number that the forward reads."""

    def __init__(self, function=torch.relu, slope=0.1):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.function, self.slope = function, slope

    def forward(self, x):
        return self.two(F.leaky_relu(self.function(self.one(x)), self.slope))


def settings():
    leaky = [nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(s), nn.Linear(8, 3)) for s in (0.1, 0.9)]
    yield pytest.param(
        *leaky, r"'1' \(LeakyReLU\) in 'negative_slope': 0.1 before, 0.9", id="slope"
    )
    yield pytest.param(
        Attributed(torch.relu), Attributed(torch.tanh), "at 'relu'", id="function attribute"
    )
    yield pytest.param(
        Attributed(slope=0.1), Attributed(slope=0.7), "at 'leaky_relu'.* 0.1.* 0.7", id="number"
    )
    part = functools.partial
    yield pytest.param(
        Attributed(part(F.leaky_relu, negative_slope=0.1)),
        Attributed(part(F.leaky_relu, negative_slope=0.9)),
        "negative_slope",
        id="partial",
    )
    hidden = Attributed(), Attributed()
    for model, slope in zip(hidden, (0.1, 0.8), strict=True):
        model._slope = slope
        model.function = lambda x, model=model: F.leaky_relu(x, model._slope)
    yield pytest.param(*hidden, "differ", id="closure")
    convs = [
        nn.Sequential(nn.Conv1d(1, 2, 3, padding=1, padding_mode=mode), nn.Flatten(),
                      nn.Linear(12, 3)) for mode in ("zeros", "circular")
    ]  # fmt: skip
    yield pytest.param(*convs, "'padding_mode': zeros before, circular", id="padding")
    norms = [nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=e)) for e in (1e-5, 1.0)]
    yield pytest.param(*norms, "'eps'", id="eps")
    places = [Block(False), Block(True)]
    yield pytest.param(*places, "'inplace'", id="inplace")


@pytest.mark.parametrize(("model", "other", "message"), list(settings()))
def test_networks_that_differ_in_settings_get_held_out_statements_alone(model, other, message):
    other.load_state_dict(model.state_dict())
    model.eval()
    other.eval()
    x = drawn() if not isinstance(model, nn.Sequential) or isinstance(model[0], nn.Linear) else (
        drawn()[:, None])  # fmt: skip
    with pytest.warns(VacuousWarning):
        certificate = prunus.certify(model, other, data=x)
    assert certificate.value == math.inf
    assert certificate.gaps == pytest.approx(gaps(model, other, x).tolist())
    with pytest.raises(Unsupported, match=message):
        extract(model, other, x)
    if isinstance(model, nn.Sequential) and not isinstance(model[0], nn.Linear):
        return
    for refusal in (TypeError, ValueError):
        with pytest.raises(refusal, match="Held-out statements"):
            prunus.certify(model, other, radius=1.0)


def test_what_a_module_counts_is_no_setting():
    """Numbers that no operation reads may differ: a counter, a cache, a name."""

    class Counting(Attributed):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counting().eval()
    other = thinned(model)
    other.calls, other.note = 17, "pruned"
    assert prunus.certify(model, other, data=drawn()).value < math.inf


def test_inputs_by_name_are_inputs():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    other, x = thinned(model), drawn()
    plain, named = (prunus.certify(model, other, data=d) for d in (x, {"input": x}))
    assert named.value == plain.value < math.inf
    assert named.gaps == plain.gaps


def test_a_bound_on_the_mean_needs_a_ball_that_is_given_and_covers_the_data():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    other, x = thinned(model), drawn()
    assert not prunus.certify(model, other, data=x).of("mean")
    assert not prunus.certify(model, other, data=x, radius=0.5).of("mean")
    certificate = prunus.certify(model, other, data=x, radius=10.0)
    (mean,) = certificate.of("mean")
    assert mean.measured == pytest.approx(float(gaps(model, other, x).mean()))
    assert certificate.radius == 10.0


def test_a_calibration_is_no_data():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = prunus.calibrate(model, drawn())
    for call in (lambda: prunus.certify(model, model, data=found),
                 lambda: prunus.plan(model, 0.1, data=found)):  # fmt: skip
        with pytest.raises(ValueError, match="must be the inputs themselves, got a Calibration"):
            call()


def test_two_inputs_leave_held_out_statements():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x, y):
            return self.fc(x + y)

    model = Two().eval()
    certificate = prunus.certify(model, thinned(model), data={"x": drawn(), "y": drawn(seed=1)})
    assert certificate.value == math.inf
    assert "no single tensor of floats" in " ".join(certificate.summary().split())
    assert certificate.of("quantile")


def test_a_layer_called_twice_has_one_line_of_its_own():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)).eval()
    other = thinned(model)
    certificate = prunus.certify(model, other, data=drawn(width=4))
    assert set(certificate.per_layer) == {"0", "4"}
    last = copy.deepcopy(model)
    last[4].load_state_dict(other[4].state_dict())
    only = copy.deepcopy(other)
    only[4].load_state_dict(model[4].state_dict())
    for name, alone in (("0", only), ("4", last)):
        found = prunus.certify(model, alone, data=drawn(width=4))
        assert found.per_layer[name]["contribution"] == pytest.approx(
            certificate.per_layer[name]["contribution"]
        )
        assert found.value <= certificate.per_layer[name]["contribution"] * (1 + 1e-3)


def hooked(model):
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def replaced(model):
    model[1].forward = lambda x: torch.relu(x) + 0.01
    return model


def half_way(model):
    model.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, r"'1' \(ReLU\) of the (dense|pruned) network does not compute what its rule says"),
        (half_way, r"between the input and '0' \(Linear\)"),
    ],
)
@pytest.mark.parametrize("data", [True, False], ids=["data", "radius alone"])
def test_hooks_that_change_a_network_are_found_by_running_it(change, message, data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for networks in ((model, change(copy.deepcopy(model))), (change(copy.deepcopy(model)), model)):
        if data:
            certificate = prunus.certify(*networks, data=drawn())
            assert certificate.value == math.inf
            assert certificate.gaps == pytest.approx(gaps(*networks, drawn()).tolist())
            assert "does not compute what its rule says" in " ".join(certificate.summary().split())
            found = extract(*networks, drawn())
            with pytest.raises(Unsupported, match=message):
                agree(found, *networks, drawn().double())
        else:
            with pytest.raises(Unsupported, match=message):
                prunus.certify(*networks, radius=1.0)


def test_a_forward_put_on_an_instance_has_no_rule():
    model = replaced(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    with pytest.raises(Unsupported, match=r"'1' \(ReLU\) has no rule"):
        extract(model, model, drawn())


def test_a_network_that_computes_otherwise_in_its_own_dtype_is_refused():
    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    torch.manual_seed(0)
    model = Coarse().eval()

    def coarsely(module, args, output):
        return output if output.dtype is torch.float64 else output.round(decimals=2)

    model.one.register_forward_hook(coarsely)
    certificate = prunus.certify(model, thinned(model), data=drawn())
    assert certificate.value == math.inf
    assert "does not compute what its float64 copy does" in " ".join(certificate.summary().split())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantiles_of_half_precision_networks_are_of_the_networks(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).to(dtype).eval()
    other = copy.deepcopy(model)
    other[0].weight.data[0, 0] += 2**-6
    x = drawn(1000).to(dtype)
    certificate = prunus.certify(model, other, data=x)
    assert certificate.gaps == pytest.approx(gaps(model, other, x).tolist(), rel=1e-12)
    fresh = gaps(model, other, drawn(4000, seed=1).to(dtype))
    quantiles = certificate.of("quantile")
    assert len(quantiles) == 3
    for statement in quantiles:
        # 4000 fresh gaps: four standard deviations of a share are at most 0.02
        share = float((fresh <= statement.value).double().mean())
        assert share >= statement.argument - 0.02
    assert certificate.value >= float(fresh.max())


def test_networks_of_two_dtypes_are_compared_as_they_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    other = copy.deepcopy(model).half()
    x = drawn(500)
    certificate = prunus.certify(model, other, data=x)
    with torch.no_grad():
        real = (model(x).double() - other(x.half()).double()).norm(dim=1)
    assert certificate.gaps == pytest.approx(real.tolist(), rel=1e-12)
    assert float(real.max()) <= certificate.value < math.inf
    assert certificate.of("mean_square")[0].measured == pytest.approx(
        float(real.square().mean().sqrt())
    )


def test_equal_networks_have_no_gap_at_all():
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    certificate = prunus.certify(model, copy.deepcopy(model), data=drawn())
    assert certificate.value == 0
    assert certificate.of("mean_square")[0].value == 0


def test_the_roundoff_is_that_of_the_coarsest_arithmetic(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert unit_of(model) == 2.0**-24
    model[1].half()
    assert unit_of(model) == 2.0**-11
    assert unit_of(model[0], copy.deepcopy(model[0]).bfloat16()) == 2.0**-8
    assert unit_of(copy.deepcopy(model).double()) == 2.0**-53
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert unit_of(model[0]) == 2.0**-8
    for precision, unit in (("high", 2.0**-11), ("medium", 2.0**-8), ("highest", 2.0**-24)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda p=precision: p)
        assert unit_of(model[0]) == unit
    with pytest.raises(Unsupported, match="no floating-point parameters"):
        unit_of(nn.ReLU())


class TestUnsound:
    """A rigorous value below its own measured one is never handed out."""

    def test_a_statement_refuses_and_names_its_route(self):
        with pytest.raises(
            UnsoundError, match=r"sup bound 1 \(L3, product of norms\) is below the 2"
        ):
            Statement(kind="sup", status="RIG", level="L3", value=1.0, route="product of norms",
                      measured=2.0)  # fmt: skip
        with pytest.raises(UnsoundError):
            Statement(kind="quantile", status="RIG", level="held-out", value=1.0, delta=0.05,
                      route="order statistic", measured=1.5)  # fmt: skip
        with pytest.raises(UnsoundError):
            Statement(kind="sup", status="RIG", level="L3", value=math.nan, route="x", measured=0.0)

    def test_predictions_and_statements_that_may_fail_are_not_refused(self):
        Statement(kind="predicted", status="PRED", level="L3", value=1.0, route="x", measured=2.0)
        Statement(
            kind="sup", status="RIG", level="L1", value=1.0, route="x", measured=2.0, delta=0.1
        )
        Statement(kind="sup", status="RIG", level="L3", value=2.0, route="x", measured=2.0)

    def test_certify_refuses_networks_that_exceed_its_stages(self):
        """The stages say that nothing was pruned; the networks say otherwise."""
        weight = torch.eye(3, dtype=torch.float64)
        stages = [LinearPair(name="one", weight=weight, pruned_weight=0.9 * weight)]

        def networks(x):
            return x, x, 0.5 * x

        with pytest.raises(UnsoundError, match=r"product of norms|averaged|trivial"):
            certify_stages(stages, radius=1.0, networks=networks)
        with pytest.raises(UnsoundError):
            certify_stages(stages, radius=1.0, samples=torch.eye(3), networks=networks)

    @pytest.mark.parametrize("kind", ["sup", "mean_square"])
    def test_plan_refuses(self, kind, monkeypatch):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        x = drawn()

        def too_small(self, kind, stages):
            return 1e-9 * sum(1 for s in stages), "a planted route"

        monkeypatch.setattr("prunus.guarantee.bounds.Bounds._bound", too_small)
        with pytest.raises(UnsoundError, match="a planted route"):
            prunus.plan(model, 0.3, kind=kind, data=x)

    def test_a_report_of_such_a_certificate_is_refused(self, tmp_path):
        from prunus.theory.gap import Certificate

        good = Statement(kind="sup", status="RIG", level="L3", value=2.0, route="r", measured=1.0)
        text = (
            Certificate(statements=(good,)).to_json().replace('"measured": 1.0', '"measured": 9.0')
        )
        with pytest.raises(UnsoundError, match="is below the 9"):
            Certificate.from_json(text)


@pytest.mark.parametrize("kind", ["sup", "mean_square"])
@pytest.mark.parametrize("change", [hooked, half_way])
def test_plans_of_bounds_refuse_networks_that_their_rules_do_not_describe(kind, change):
    torch.manual_seed(0)
    model = change(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    for method in ("magnitude", "random_rescaled"):
        with pytest.raises(Unsupported, match="does not compute what its rule says"):
            prunus.plan(model, 0.3, kind=kind, data=drawn(), method=method)


def test_layers_drawn_twice_have_no_plan_for_random_masks():
    shared = nn.Linear(6, 6)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    for model, message in ((twice, "called more than once"), (tied, "share one weight")):
        with pytest.raises(Unsupported, match=message):
            prunus.plan(model.eval(), 0.3, kind="sup", data=drawn(), method="random")


def test_a_module_called_at_two_sizes_keeps_a_norm_for_each():
    """Norms were kept by name: a second call at another image size got those of the first."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            x = F.max_pool1d(self.conv(x), 2)
            return self.fc(self.conv(x).flatten(1))

    torch.manual_seed(0)
    model = Twice().eval()
    x = drawn()[:, None]
    plan = prunus.plan(model, 0.5, kind="sup", data=x)
    pruned = prunus.prune(model, "magnitude", plan)
    with pytest.warns(prunus.theory.gap.InSampleWarning):
        certificate = prunus.certify(model, pruned, data=x)
    with torch.no_grad():
        scale = float(model(x).square().sum(dim=1).mean().sqrt())
    assert certificate.value == pytest.approx(plan.value * scale, rel=1e-6)
