"""The trainer, the tasks and the cache of trained networks."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from forks import FORK, both
from prunus.bench import (
    TASKS,
    Dataset,
    Task,
    Training,
    accuracy,
    evaluate,
    fit,
    fresh_model,
    load_data,
    task,
    trained,
)
from prunus.bench.data.cache import trainings
from prunus.bench.data.models import mlp
from prunus.bench.data.train import flip_and_crop
from prunus.rng import generator_for

QUICK = Training(epochs=2, learning_rate=1e-2, batch=16)


def blobs(count: int = 96) -> Dataset:
    """Three well separated clusters in the plane."""
    generator = generator_for(0, "blobs")
    y = torch.arange(count) % 3
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
    x = centres[y] + 0.3 * torch.randn(count, 2, generator=generator)
    return Dataset(
        name="blobs", x_train=x, y_train=y, x_test=x, y_test=y, fingerprint=f"blobs-{count}"
    )


def blob_net() -> nn.Module:
    return mlp((2, 8, 3))


def blob_train(model, data, *, generator, hold=None, progress=None):
    fit(model, data, QUICK, generator=generator, hold=hold, progress=progress)


BLOBS = Task(
    name="blobs",
    title="three blobs",
    data=lambda *, data_dir: blobs(),
    model=blob_net,
    train=blob_train,
    retrain=blob_train,
    definition=repr(QUICK),
)


def test_same_seed_same_weights_and_global_generator_untouched():
    before = torch.get_rng_state()
    data = blobs()
    nets = []
    for seed in (0, 0, 1):
        net = fresh_model(BLOBS, seed)
        nets.append(fit(net, data, QUICK, generator=generator_for(seed)).state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    assert not torch.equal(nets[0]["fc1.weight"], nets[2]["fc1.weight"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_training_learns(optimizer, decay):
    data = blobs()
    net = fresh_model(BLOBS, 0)
    how = Training(epochs=8, learning_rate=0.05, batch=16, optimizer=optimizer, decay=decay)
    fit(net, data, how, generator=generator_for(0))
    assert evaluate(net, data)["accuracy"] == 1.0


def test_hold_and_after_step_are_called():
    seen = {"hold": 0, "step": 0}

    def hold(optimizer):
        assert isinstance(optimizer, torch.optim.Optimizer)
        seen["hold"] += 1

    def after(model):
        seen["step"] += 1

    fit(blob_net(), blobs(), QUICK, generator=generator_for(0), hold=hold, after_step=after)
    assert seen == {"hold": 1, "step": 2 * (96 // 16)}


def test_mode_is_restored_also_after_an_error():
    net = blob_net().eval()
    fit(net, blobs(), QUICK, generator=generator_for(0))
    assert not net.training
    with torch.no_grad():
        net.fc1.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="The training loss is nan in epoch 1"):
        fit(net, blobs(), QUICK, generator=generator_for(0))
    assert not net.training
    net.train()
    net.fc2.eval()
    accuracy(net, blobs().x_test, blobs().y_test)
    assert net.training
    assert not net.fc2.training


def test_scores_by_hand():
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    y = torch.tensor([0, 1, 1])
    data = Dataset(name="h", x_train=x, y_train=y, x_test=x, y_test=y, fingerprint="h")
    loss = np.log1p(np.exp(-3)) + np.log1p(np.exp(-1)) + np.log1p(np.exp(2))
    scores = evaluate(net, data)
    assert scores["accuracy"] == 2 / 3
    assert scores["test_error"] == 1 / 3
    assert scores["cross_entropy"] == pytest.approx(loss / 3, rel=1e-6)


def test_flip_and_crop_against_slices():
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    draws = generator_for(4)
    flips = torch.rand(2, generator=draws) < 0.5
    down, right = torch.randint(0, 5, (2, 2), generator=draws)
    got = flip_and_crop(images, generator=generator_for(4), border=2)
    for i in range(2):
        image = images[i].flip(2) if flips[i] else images[i]
        framed = torch.zeros(3, 10, 10)
        framed[:, 2:8, 2:8] = image
        expected = framed[:, down[i] : down[i] + 6, right[i] : right[i] + 6]
        assert torch.equal(got[i], expected)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_a_network_that_fits_its_data(name):
    shapes = {"cifar10": (3, 32, 32), "digits": (1, 8, 8)}
    shape = shapes.get(name.split("-")[0], (1, 28, 28))
    net = fresh_model(task(name), 0).eval()
    assert task(name).definition
    if name == "tiny-llama":
        with torch.no_grad():
            logits = net(torch.zeros(2, 16, dtype=torch.int64)).logits
        assert logits.shape == (2, 16, net.config.vocab_size)
        return
    with torch.no_grad():
        assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_unknown_and_foreign_tasks():
    with pytest.raises(ValueError, match=r"Unknown task 'digits-mpl'\. Did you mean digits-mlp"):
        task("digits-mpl")
    with pytest.raises(ValueError, match="could not be imported"):
        task("no_such_package:thing")
    with pytest.raises(ValueError, match=r"'math:pi' is a float, a prunus\.bench\.Task"):
        task("math:pi")


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_digits_nets_reach_96_percent(name, tmp_path):
    chosen = task(name)
    dense = trained(chosen, load_data("digits"), seed=0, cache=tmp_path)
    print(f"{name}: {100 * dense.metrics['accuracy']:.2f} % after {dense.seconds:.1f} s")
    assert dense.metrics["accuracy"] >= 0.96


def test_cache_returns_the_same_network(tmp_path):
    first = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    again = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    assert (first.cached, again.cached) == (False, True)
    assert again.metrics == first.metrics
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert not again.model.training


def test_cache_key_sees_all_that_decides_the_weights(tmp_path):
    wider = replace(BLOBS, model=lambda: mlp((2, 9, 3)))
    longer = replace(BLOBS, definition="another schedule")
    keys = {
        trained(chosen, data, seed=seed, cache=tmp_path).key
        for chosen, data, seed in [
            (BLOBS, blobs(), 0),
            (BLOBS, blobs(), 1),
            (BLOBS, blobs(90), 0),
            (wider, blobs(), 0),
            (longer, blobs(), 0),
        ]
    }
    assert len(keys) == 5


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_damaged_checkpoint_is_made_again(tmp_path, capsys, damage):
    first = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    whole = first.path.read_bytes()
    broken = {
        "truncated": whole[:-7],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "foreign": b"not a checkpoint",
    }[damage]
    first.path.write_bytes(broken)
    again = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    assert not again.cached
    assert "is damaged" in capsys.readouterr().err
    assert first.path.read_bytes()[8:] != broken[8:]
    assert trained(BLOBS, blobs(), seed=0, cache=tmp_path).cached


def test_two_writers_at_once(tmp_path):
    together = FORK.Barrier(2)  # neither ends before the other has begun
    answers = FORK.SimpleQueue()

    def train(model, data, *, generator, hold=None, progress=None):
        together.wait(100)
        blob_train(model, data, generator=generator)

    def write(rank):
        found = trained(replace(BLOBS, train=train), blobs(), seed=0, cache=tmp_path)
        together.wait(100)
        answers.put((rank, found.cached, found.key, float(found.model.fc1.weight.detach().sum())))

    both(write)
    said = {answers.get() for _ in range(2)}
    assert {rank for rank, *_ in said} == {0, 1}
    assert len({answer[1:] for answer in said}) == 1
    assert not any(cached for _, cached, *_ in said)
    assert len(list((tmp_path / "trained").iterdir())) == 1
    again = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    assert (again.cached, again.key) == (True, said.pop()[2])


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        trained(BLOBS, blobs(), seed=0, cache=tmp_path / "file")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": -1}, "`epochs` must be a whole number >= 0"),
        ({"epochs": 1, "learning_rate": 0.0}, "`learning_rate` must be a finite number > 0"),
        ({"epochs": 1, "batch": 1}, "`batch` must be a whole number >= 2"),
    ],
)
def test_training_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        Training(**{"learning_rate": 1e-3, **wrong})


def test_a_full_disk_does_not_cost_the_training(tmp_path, monkeypatch, capsys):
    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):  # as the folder is made
            trained(BLOBS, blobs(), seed=0, cache=tmp_path / "new")
        (tmp_path / "trained").mkdir()
        first = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    assert "could not be written (No space left on device)" in capsys.readouterr().err
    assert list((tmp_path / "trained").iterdir()) == []
    again = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    assert (first.cached, again.cached) == (False, False)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_tasks_of_any_name_have_a_file_each(tmp_path):
    names = ["x" * 300, "x" * 299 + "y", "of/a folder:ä" + "ö" * 200]
    tasks = [replace(BLOBS, name=name) for name in names]
    found = {trained(chosen, blobs(), seed=0, cache=tmp_path).path for chosen in tasks}
    assert len(list((tmp_path / "trained").iterdir())) == len(found) == 3
    for chosen in tasks:
        assert trained(chosen, blobs(), seed=0, cache=tmp_path).cached
        assert len(trainings(chosen, tmp_path)[0]) == 1


def test_a_checkpoint_of_other_shapes_is_made_again(tmp_path, capsys):
    """Its bytes are right, its header says another shape with as many entries."""
    first = trained(BLOBS, blobs(), seed=0, cache=tmp_path)
    data = first.path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(n for n, entry in header.items() if len(entry.get("shape", ())) == 2)
    header[name]["shape"].reverse()
    text = json.dumps(header).encode()
    first.path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert not trained(BLOBS, blobs(), seed=0, cache=tmp_path).cached
    assert f"{name!r} has not the shape" in capsys.readouterr().err
