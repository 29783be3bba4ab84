"""A model that tells whoever runs it, and everything that a call of ours might leave behind."""

import sys
import threading
import warnings
from dataclasses import replace

import scipy.sparse  # noqa: F401 the imports of these two add filters of warnings
import sympy.utilities.exceptions  # noqa: F401
import torch
from torch import nn

import prunus
from prunus.cost import measure_latency
from prunus.coupling import couple, used_elsewhere
from prunus.schedules import OneShot


class Home(nn.Module):
    """Trains, drops out, keeps statistics, counts calls, holds attention; its copies may run."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.5)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.second = nn.Linear(12, 10)
        self.last = nn.Linear(10, 4)
        self.calls = 0
        self.home = 0

    def settle(self):
        """From now on this very object must not run; copies of it may."""
        self.home = id(self)
        return self

    def forward(self, x):
        assert id(self) != self.home, "the user's own model ran"
        self.calls += 1
        x = self.drop(torch.relu(self.norm(self.first(x))))
        x = self.encoder(x[:, None])[:, 0]
        return self.last(torch.relu(self.second(x)))


def home(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Home()
        model.drop.eval()  # a mode of its own
        model.last.weight.requires_grad_(False)
        model.first.weight.grad = torch.ones(12, 8)
        x, y = torch.randn(48, 8), torch.randint(0, 4, (48,))
    return model.settle(), x, y


def state_of(model):
    """Everything of a model that can be told apart."""
    return {
        name: (
            module.training,
            sorted(vars(module)),
            {key: value for key, value in vars(module).items() if isinstance(value, int | bool)},
            [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")],
            {
                key: (id(t), t.requires_grad, t.detach().clone(), None if t.grad is None else 1)
                for key, t in (*module._parameters.items(), *module._buffers.items())
                if t is not None
            },
        )
        for name, module in model.named_modules()
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def surroundings():
    """What a thread and the process keep for everybody."""
    found = {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "device": str(torch.get_default_device()),
        "dtype": str(torch.get_default_dtype()),
        "functions": torch._C._len_torch_function_stack(),
        "dispatches": torch._C._len_torch_dispatch_stack(),
        "saved": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "mutation": torch.autograd.graph._allow_mutation_on_saved_tensors_enabled,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "warnings": list(warnings.filters),
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "stance": "default",
    }
    if "torch._dynamo" in sys.modules:
        found["stance"] = sys.modules["torch._dynamo"].eval_frame._stance.stance
    return found


def loss(output, batch):
    return nn.functional.cross_entropy(output, batch[1])


def prunes(recipe, **options):
    def run(model, x, y):
        found = prunus.prune(
            model, recipe, 0.5, data=(x, y), loss=loss, exclude="encoder*", **options
        )
        return dict(found.model.state_dict())

    return run


CALLS = {
    "wanda+ls": prunes("wanda+ls"),
    "obd": prunes(replace(prunus.recipes["obd"], schedule=OneShot())),
    "grasp": prunes("grasp"),
    "snip": prunes("snip"),
    "synflow": lambda m, x, y: dict(
        prunus.prune(m, "synflow", 0.5, data=x, layers=["first", "last"]).model.state_dict()
    ),
    "sparsegpt": prunes("sparsegpt"),
    "dpp-node+ls": prunes("dpp-node+ls"),
    "taylor": prunes("taylor"),
    "blocks": prunes("wanda", blocks="second"),
    "calibrate": lambda m, x, y: {n: s.gram for n, s in prunus.calibrate(m, x).items()},
    "couple": lambda m, x, y: {g.name: g.size for g in couple(m, x).groups},
    "used": lambda m, x, y: used_elsewhere(m, x),
    "certify": lambda m, x, y: {
        "gaps": prunus.certify(m, {"last": torch.zeros(4, 10)}, data=x).gaps
    },
    "plan": lambda m, x, y: prunus.plan(m, 0.3, data=x).kept,
    "compact": lambda m, x, y: dict(prunus.compact(m, x).state_dict()),
    "latency": lambda m, x, y: {
        "runs": len(measure_latency([m], lambda n: n(x), batch=48, seconds=0.001))
    },
}


def in_threads(work, count):
    """Run each of `count` jobs in a thread of its own, all at once; what each gave or raised."""
    found = [None] * count
    start = threading.Barrier(count)

    def one(i):
        start.wait()
        try:
            found[i] = work(i)
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
