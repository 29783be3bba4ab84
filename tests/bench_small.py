"""The named tasks on the first samples of their data, trained for one epoch."""

from dataclasses import replace
from functools import partial

from prunus.bench import TASKS, Training, fit

ONCE = Training(epochs=1, learning_rate=1e-3, batch=50)


def first(load, *, data_dir=None):
    """300 samples to train on and 200 to test on."""
    data = load(data_dir=data_dir)
    return replace(
        data,
        x_train=data.x_train[:300],
        y_train=data.y_train[:300],
        x_test=data.x_test[:200],
        y_test=data.y_test[:200],
        fingerprint=f"first of {data.fingerprint}",
    )


def once(model, data, *, generator, hold=None, progress=None):
    return fit(model, data, ONCE, generator=generator, hold=hold, progress=progress)


for _name, _task in TASKS.items():
    globals()[_name.replace("-", "_")] = replace(
        _task,
        name=f"bench_small:{_name.replace('-', '_')}",
        data=partial(first, _task.data),
        train=once,
        retrain=once,
        definition=f"small {_name}",
    )
