"""The callbacks in the frameworks' own trainers; skipped where those are not installed."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
import prunus
from prunus.budget import count_of
from prunus.training.checkpoint import read_state, write_state

TOTAL = 6 * 12 + 12 * 8 + 8 * 3
STEPS = 24


def often(name):
    recipe = prunus.recipes[name]
    return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, every=3))


def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(96, 6, generator=generator), torch.randint(3, (96,), generator=generator)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.MLP((6, 12, 8, 3))


class Losing(nn.Module):
    """A network as Hugging Face's Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(folder, callback, **options):
    transformers = pytest.importorskip("transformers", reason="Hugging Face is an extra")
    pytest.importorskip("accelerate", reason="the Trainer does not start without accelerate")
    x, y = samples()
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_steps=12, logging_strategy="no", disable_tqdm=True, seed=0,
        learning_rate=0.01, weight_decay=0.1, **{"max_grad_norm": 0.5, **options},
    )  # fmt: skip
    return transformers.Trainer(
        model=Losing(),
        args=args,
        train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        callbacks=[callback],
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["gradual", "rigl", "movement"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_hugging_face_trains_sparsely(name, accumulation, tmp_path):
    pytest.importorskip("transformers", reason="Hugging Face is an extra")
    from prunus.integrations import TrainerCallback

    seen = []
    callback = TrainerCallback(often(name), 0.25)

    class Watching(type(callback)):
        def on_step_end(self, args, state, control, **_):
            sparse = self.sparsifier
            seen.append(sparse.step_count)
            own = dict(sparse.model.named_parameters())
            assert not any(own[n][~m].any() for n, m in sparse.masks.items())

    callback = Watching(often(name), 0.25)
    trainer(tmp_path, callback, gradient_accumulation_steps=accumulation).train()
    assert seen == list(range(1, STEPS + 1))
    kept = sum(int(r.mask.sum()) for r in callback.pruned.layers.values())
    assert abs(kept - count_of(0.25, TOTAL)) <= 1
    assert callback.sparsifier is None
    assert callback.pruned.name.startswith("recipe-")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_hugging_face_resumes_to_the_bit(tmp_path):
    pytest.importorskip("transformers", reason="Hugging Face is an extra")
    from prunus.integrations import TrainerCallback

    first, again = TrainerCallback(often("rigl"), 0.25), TrainerCallback(often("rigl"), 0.25)
    whole = trainer(tmp_path, first)
    whole.train()
    half = trainer(tmp_path, again)
    half.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    for (name, one), other in zip(
        whole.model.named_parameters(), half.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert all(torch.equal(m, again.pruned.masks[n]) for n, m in first.pruned.masks.items())
    assert again.pruned.cost_before == first.pruned.cost_before
    (tmp_path / "checkpoint-12" / "sparsifier.safetensors").unlink()
    lost = trainer(tmp_path, again)
    with pytest.raises(FileNotFoundError, match=r"sparsifier\.safetensors, the masks of the train"):
        lost.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert again.sparsifier is None  # nothing is left tied
    prunus.sparsify(lost.model, "gradual", 0.5, optimizer=None, steps=1000).remove()


def lightning_parts():
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    x, y = samples()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    return lightning, Module, loader


def lightning_trainer(lightning, folder, *callbacks, epochs=2, **options):
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), callbacks=list(callbacks),
        **{"gradient_clip_val": 0.5, "enable_checkpointing": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["gradual", "rigl", "movement"])
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
def test_lightning_trains_sparsely(name, tmp_path):
    lightning, module, loader = lightning_parts()
    from prunus.integrations import LightningCallback

    seen = []

    class Watching(LightningCallback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append(self.sparsifier.step_count)
            own = dict(pl_module.named_parameters())
            assert not any(own[n][~m].any() for n, m in self.sparsifier.masks.items())

    callback = Watching(often(name), 0.25)
    model = module()
    lightning_trainer(lightning, tmp_path, callback).fit(model, loader)
    assert seen == list(range(1, 25))
    kept = sum(int(r.mask.sum()) for r in callback.pruned.layers.values())
    assert abs(kept - count_of(0.25, TOTAL)) <= 1
    # The same by hand: Lightning's closure changes nothing.
    twin = module()
    own = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    sparse = prunus.sparsify(twin, often(name), 0.25, optimizer=own, steps=24)
    for _ in range(2):
        for x, y in loader:
            own.zero_grad()
            F.cross_entropy(twin.net(x), y).backward()
            if name == "rigl":  # Lightning clips what is masked already, in due steps too
                sparse.by_hand().before_step()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            own.step()
    if name != "movement":  # which gathers gradients before they are clipped, there
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
        )
    sparse.remove()


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_to_the_bit(tmp_path):
    lightning, module, loader = lightning_parts()
    from prunus.integrations import LightningCallback

    def run(path=None):
        callback = LightningCallback(often("gradual"), 0.25)
        keeper = lightning.callbacks.ModelCheckpoint(
            dirpath=tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1
        )
        model = module()
        fit = lightning_trainer(lightning, tmp_path, callback, keeper, enable_checkpointing=True)
        fit.fit(model, loader, ckpt_path=path)
        return model, callback

    whole, first = run()
    again, second = run(str(tmp_path / "epoch=0.ckpt"))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    assert all(torch.equal(m, second.pruned.masks[n]) for n, m in first.pruned.masks.items())


@pytest.mark.filterwarnings("ignore")
def test_lightning_refuses_what_has_no_course(tmp_path):
    lightning, module, loader = lightning_parts()
    from prunus.integrations import LightningCallback

    class Two(module):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    with pytest.raises(ValueError, match=r"^Sparsity follows the steps of one optimizer, got 2"):
        lightning_trainer(lightning, tmp_path, LightningCallback("gradual", 0.5),
                          gradient_clip_val=None).fit(Two(), loader)  # fmt: skip
    with pytest.raises(ValueError, match=r"^A course needs the length of the training"):
        lightning_trainer(lightning, tmp_path, LightningCallback("gradual", 0.5), epochs=-1).fit(
            module(), loader
        )


def test_states_go_through_files(tmp_path):
    model = network()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = prunus.sparsify(model, often("movement"), 0.25, optimizer=own, steps=STEPS)
    for _ in range(7):
        model(samples()[0]).square().mean().backward()
        own.step()
    state = sparse.state_dict()
    found = read_state(write_state(state, tmp_path / "a.safetensors"))
    assert found.keys() == state.keys()
    for key, value in state.items():
        if not isinstance(value, dict):
            assert found[key] == value
    assert all(torch.equal(v, found["shadow"][n]) for n, v in state["shadow"].items())
    assert found["classes"] == {}
    sparse.load_state_dict(found)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"the state is no safetensors file"):
        read_state(tmp_path / "a.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"is no state of a Sparsifier"):
        read_state(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match=r"^There is no .*c\.safetensors"):
        read_state(tmp_path / "c.safetensors")
    sparse.remove()


def test_other_names_are_no_attributes():
    import prunus.integrations

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = prunus.integrations.Nothing
