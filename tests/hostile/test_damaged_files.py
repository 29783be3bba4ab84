"""Whatever the bytes of a file are, it is read, or refused by a ValueError that names it.

Hypothesis draws the damage. The short form reads some hundred files; the slow one more than
20 000, and watches the memory.
"""

import functools
import gzip
import io
import json
import pickle
import resource
import shutil
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from damage import damaged_folder, damaged_tensors, damaged_text, damaged_tree, told
from prunus.bench.data import cache
from prunus.bench.data.formats import read_arrays, read_cifar10, read_idx, read_npz
from prunus.bench.grid.load import load_grid
from prunus.bench.record import read_records
from prunus.bench.record.row import Record
from prunus.bench.record.sql import compact
from prunus.folder.account import read_account
from prunus.folder.checkpoint import open_checkpoint
from prunus.folder.skeleton import Skeleton
from prunus.recipe import parse
from prunus.theory.gap import Certificate
from prunus.training.checkpoint import read_state, write_state

SHORT, LONG = 30, 1400  # of every kind
GRID = """\
tasks: [digits-mlp]
recipes: [magnitude, {name: own, recipe: "Recipe(granularity=EdgePerRow())"}]
densities: [0.5, {fc1: 0.2}]
budgets: [{parameters: 1000}, {kept: {fc1: 10}}]
schedules: [none, "Iterative(rounds=2)"]
seeds: [0, 1]
without: [random]
calibration: 100
layers: ["fc*"]
"""


ONES = ", ".join(["1"] * 8)
VALUES = [
    "1000000000", "[" * 500, "&a [*a]", "*b", "{a: 1, a: 2}", "-1", "9" * 5000, "~", "[[0.5]]",
    "!!python/name:os.system", "{? [1] : 2}", "2001-99-99", "'" + "(" * 500 + "'",
    f"&b0 [{ONES}]\n" + "".join(f"b{i}: &b{i} [{f'*b{i - 1},' * 8}]\n" for i in range(1, 9)),
]  # fmt: skip


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        return model.eval(), torch.randn(32, 6)


class Kind:
    """Files of one kind: how they are made, damaged and read."""

    def __init__(self, folder):
        self.folder = folder

    def damage(self, draw):
        """Files to write, by name, over those that are right."""
        raise NotImplementedError

    def read(self, folder):
        raise NotImplementedError


class Pruned(Kind):
    recipe, compact = "wanda+ls", False

    def __init__(self, folder):
        super().__init__(folder)
        self.model, x = network()
        pruned = prunus.prune(self.model, self.recipe, 0.3, data=x)
        pruned.save(folder, example=x if self.compact else None)

    def damage(self, draw):
        return damaged_folder(self.folder, "pruned.json", draw)

    def read(self, folder):
        prunus.load(folder, self.model)


class Compact(Pruned):
    recipe, compact = "importance-node", True


class Calibrated(Kind):
    def __init__(self, folder):
        super().__init__(folder)
        model, x = network()
        y = torch.zeros(32, dtype=torch.int64)
        data, wanted = [(x, y)], ("gram", "mean", "gate", "grad", "share", "slope")
        prunus.calibrate(model, data, wanted, loss=lambda out, batch: out.square().mean()).save(
            folder
        )

    def damage(self, draw):
        return damaged_folder(self.folder, "calibration.json", draw)

    def read(self, folder):
        prunus.Calibration.load(folder)


class Text(Kind):
    """One file of text."""

    name, tree = "file.json", None

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        self.text = self.write()
        (folder / self.name).write_bytes(self.text)

    def damage(self, draw):
        if draw.random() < 0.4:
            return {self.name: damaged_text(self.text, draw)}
        tree = damaged_tree(json.loads(self.text), draw)
        return {self.name: told(tree).encode("utf-8", "surrogatepass") + b"\n"}


class Planned(Text):
    def write(self):
        model, x = network()
        return prunus.plan(model, 0.3, data=x).to_json().encode()

    def read(self, folder):
        prunus.Plan.from_json((folder / self.name).read_bytes(), folder / self.name)


class Certified(Text):
    def write(self):
        model, x = network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return prunus.certify(model, {"3": torch.ones(3, 8)}, data=x).to_json().encode()

    def read(self, folder):
        Certificate.from_json((folder / self.name).read_bytes(), folder / self.name)


class Recorded(Text):
    name = "records.jsonl"

    def write(self):
        record = Record(
            id="1", task="t", recipe="r", recipe_repr="R()", recipe_hash="h", seed=0,
            density_asked=0.5, density=0.4, after={"loss": float("nan"), "error": 0.1},
            parameters=(10, 5), layer_error={"a": 1.0}, seconds=1.0, versions={"torch": "2"},
        )  # fmt: skip
        return json.dumps(record.to_row()).encode() + b"\n"

    def read(self, folder):
        read_records(folder / self.name)


class Gridded(Kind):
    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        self.tree = None
        (folder / "grid.yaml").write_text(GRID)

    def damage(self, draw):
        lines = GRID.splitlines(keepends=True)
        kind = draw.randrange(4)
        if kind == 0:
            return {"grid.yaml": damaged_text(GRID.encode(), draw)}
        at = draw.randrange(len(lines))
        key = lines[at].partition(":")[0]
        value = draw.choice(VALUES)
        lines[at] = lines[at] * 2 if kind == 1 else f"{key}: {value}\n"
        return {"grid.yaml": "".join(lines).encode()}

    def read(self, folder):
        load_grid(folder / "grid.yaml")


class Archived(Kind):
    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        np.savez_compressed(folder / "d.npz", x=np.zeros((40, 6), np.float32), y=np.arange(40))

    def damage(self, draw):
        return {"d.npz": damaged_text((self.folder / "d.npz").read_bytes(), draw)}

    def read(self, folder):
        read_npz(folder / "d.npz")


class Pickled(Kind):
    """A user's data as torch.save writes them."""

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        torch.save({"x": torch.zeros(40, 6), "y": torch.arange(40)}, folder / "d.pt")

    def damage(self, draw):
        return {"d.pt": damaged_text((self.folder / "d.pt").read_bytes(), draw)}

    def read(self, folder):
        read_arrays(folder / "d.pt")


class Indexed(Kind):
    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        self.data = b"\0\0\x08\x03" + np.array([4, 3, 3], ">i4").tobytes() + bytes(36)

    def damage(self, draw):
        data = damaged_text(self.data, draw)
        packed = gzip.compress(data) if draw.random() < 0.5 else gzip.compress(self.data)
        return {"x.gz": packed if draw.random() < 0.5 else damaged_text(packed, draw), "x": data}

    def read(self, folder):
        for name in ("x.gz", "x"):
            read_idx(folder / name)


class Written(Kind):
    """Recipes as text, as `--select` and grids take them."""

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()

    def damage(self, draw):
        names = [name for name in prunus.recipes if "+" not in name]
        text = repr(prunus.recipes[draw.choice(names)])
        kind = draw.randrange(3)
        if kind == 0:
            return {"recipe": damaged_text(text.encode(), draw)}
        deep = draw.choice([5, 100, 5000])
        with_deep = [
            "(" * deep, "-" * deep + "1", "TopK(" * deep + ")" * deep, "9" * deep, "a" * 10**5,
            "[" * deep + "]" * deep, "1" + "j" * deep, "{**a}", "TopK(*a)", "'" + "x" * deep,
            "lambda: 1", "NM(10**9, 1)", "NM(n=None, m='4')",
        ]  # fmt: skip
        at = draw.randrange(len(text))
        return {"recipe": (text[:at] + draw.choice(with_deep) + text[at + kind :]).encode()}

    def read(self, folder):
        try:
            text = (folder / "recipe").read_bytes().decode()
        except UnicodeDecodeError:
            raise ValueError(f"{folder}: no text") from None
        try:
            parse(text)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


class Trained(Kind):
    """The dense networks that the benchmark keeps."""

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        self.model, _ = network()
        scores = {"error": 0.5}
        cache._write(folder / "net.safetensors", self.model, "key", "{}", scores, 1.0)

    def damage(self, draw):
        data = damaged_tensors((self.folder / "net.safetensors").read_bytes(), draw)
        return {"net.safetensors": data}

    def read(self, folder):
        try:
            cache._read(folder / "net.safetensors", self.model, "key")
        except cache._Damaged as error:  # which is trained again, and says so
            raise ValueError(f"{folder}: {error}") from None


class Sparsified(Kind):
    """States of a training with zeros."""

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        model, _ = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        self.sparse = prunus.sparsify(
            model.train(), "movement", 0.5, optimizer=optimizer, steps=2000
        )
        write_state(self.sparse.state_dict(), folder / "state.safetensors")

    def damage(self, draw):
        data = damaged_tensors((self.folder / "state.safetensors").read_bytes(), draw)
        return {"state.safetensors": data}

    def read(self, folder):
        state = read_state(folder / "state.safetensors")
        try:
            self.sparse.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


class Batched(Kind):
    """CIFAR-10: batches that are pickles, in a folder or an archive."""

    def __init__(self, folder):
        super().__init__(folder)
        inner = folder / "cifar-10-batches-py"
        inner.mkdir(parents=True)
        batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"batch_label": b"x"}
        self.batch = pickle.dumps(batch, protocol=2)
        self.names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for name in self.names:
            (inner / name).write_bytes(self.batch)
        (folder / "cifar-10-python.tar.gz").write_bytes(self.packed(self.batch))

    def packed(self, batch, draw=None):
        """The archive with this for its third batch, some of its members of another type."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            for name in self.names:
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                data = batch if name == "data_batch_3" else self.batch
                entry.size = len(data)
                if draw is not None and draw.random() < 0.05:
                    entry.type = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
                    entry.linkname = draw.choice([entry.name, "/etc/passwd", "../x", ""])
                archive.addfile(entry, io.BytesIO(data))
        return packed.getvalue()

    def damage(self, draw):
        bad = self.damaged_batch(draw)
        if draw.random() < 0.5:
            return {"cifar-10-batches-py/data_batch_3": bad}
        data = self.packed(bad, draw)
        if draw.random() < 0.5:
            data = damaged_text(data, draw)
        return {"cifar-10-python.tar.gz": data}

    def damaged_batch(self, draw):
        if draw.random() < 0.6:
            return damaged_text(self.batch, draw)
        wrong = draw.choice([
            None, [], {}, b"x", 10**30, float("nan"), np.zeros(0), np.zeros((2, 3072), np.float64),
            np.zeros((3, 3072), np.uint8), np.zeros((2, 1), np.uint8), ["a", "b"], [300, -1],
            [[1], [2]], np.array(["x"]), np.zeros((), np.uint8), np.zeros((0, 3072), np.uint8),
        ])  # fmt: skip
        tree = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}
        tree[draw.choice([b"data", b"labels"])] = wrong
        if draw.random() < 0.3:  # a place that is only named
            return b"\x80\x02K\x01r\xff\xff\xff\xff."
        return pickle.dumps(draw.choice([tree, wrong]), protocol=draw.choice([0, 2, 5]))

    def read(self, folder):
        inner = folder / "cifar-10-batches-py"
        read_cifar10(folder)
        shutil.move(inner, folder / "aside")
        read_cifar10(folder)


class Packed(Kind):
    """Records as Parquet."""

    def __init__(self, folder):
        super().__init__(folder)
        pytest.importorskip("duckdb")
        folder.mkdir()
        rows = Recorded(folder.with_name("rows")).folder
        shutil.copy(rows / "records.jsonl", folder / "records-1.jsonl")
        self.file = folder / "records.parquet"
        compact(folder / "records-1.jsonl", self.file)

    def damage(self, draw):
        return {self.file.name: damaged_text(self.file.read_bytes(), draw)}

    def read(self, folder):
        try:
            read_records(folder / self.file.name)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: {error}") from None


@functools.cache
def llama():
    """The files of a folder with a Llama of one small block, and of the same pruned."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16, max_position_embeddings=16, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = Path(scratch) / "llama", Path(scratch) / "out"
        transformers.LlamaForCausalLM(config).save_pretrained(whole)
        prunus.prune_folder(whole, out, "magnitude", 0.5, progress=False)
        return {path.name: path.read_bytes() for path in out.iterdir()}


class Foldered(Kind):
    """A folder in Hugging Face's layout that was pruned."""

    def __init__(self, folder):
        super().__init__(folder)
        folder.mkdir()
        for name, data in llama().items():
            (folder / name).write_bytes(data)

    def damage(self, draw):
        name = draw.choice(sorted(llama()))
        data = llama()[name]
        if name.endswith(".safetensors"):
            return {name: damaged_tensors(data, draw)}
        if draw.random() < 0.4:
            return {name: damaged_text(data, draw)}
        tree = damaged_tree(json.loads(data), draw)
        return {name: told(tree).encode("utf-8", "surrogatepass")}

    def read(self, folder):
        Skeleton(open_checkpoint(folder))
        read_account(folder)


KINDS = {
    kind.__name__.lower(): kind
    for kind in (
        Pruned, Compact, Calibrated, Planned, Certified, Recorded, Gridded, Archived, Pickled,
        Indexed, Written, Trained, Sparsified, Batched, Packed, Foldered,
    )
}  # fmt: skip


def refusal(made, place):
    """What a refusal says, None where the file is read; anything else than these is a fault."""
    try:
        made.read(place)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def damaged(kind, count, folder):
    """Read so many damaged files; how many were refused."""
    made = KINDS[kind](folder / "good")
    if not isinstance(made, Indexed | Written):
        shutil.copytree(folder / "good", folder / "bad")
        made.read(folder / "bad")  # undamaged, it is read
    refused = 0

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def read(draw):
        nonlocal refused
        place = folder / "bad"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "good", place)
        for name, data in made.damage(draw).items():
            (place / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = refusal(made, place)
        if said is not None:
            refused += 1
            assert str(place) in said
            assert len(said) < 3000 or kind == "written"
            assert "\n" not in said.strip() or kind == "gridded"

    read()
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_by_name(kind, tmp_path):
    assert damaged(kind, SHORT, tmp_path) > SHORT // 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_20000_damaged_files_in_200_megabytes(kind, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "all").mkdir()
    damaged(kind, 20, tmp_path / "first")  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert damaged(kind, LONG, tmp_path / "all") > LONG // 3
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200 * 1024  # KiB
