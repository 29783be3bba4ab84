"""Data sets: named ones, files of one's own, and every way a file can be wrong."""

import gzip
import io
import os
import pickle
import tarfile
import urllib.error
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from prunus.bench import load_data, stratified_split
from prunus.bench.data import sets as data_module
from prunus.bench.data.formats import read_idx, read_npz
from prunus.rng import generator_for


def idx(values: np.ndarray) -> bytes:
    """An IDX file written from the format's definition."""
    header = bytes([0, 0, 8, values.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0)


@pytest.fixture
def mnist_folder(tmp_path, pixels):
    folder = tmp_path / "mnist"
    folder.mkdir()
    arrays = {
        "train-images-idx3-ubyte": pixels.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": pixels.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, values in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    return tmp_path, arrays


def test_digits_are_whole_and_split_by_class():
    data = load_data("digits")
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert len(data.x_train) + len(data.x_test) == 1797
    assert float(data.x_train.min()) == 0
    assert float(data.x_train.max()) == 1
    every = torch.cat([data.y_train, data.y_test])
    for label in range(10):
        count = int((every == label).sum())
        assert int((data.y_test == label).sum()) == int(count * 0.25 + 0.5)
    again = load_data("digits")
    assert torch.equal(data.x_test, again.x_test)
    assert data.fingerprint == again.fingerprint


def test_split_is_a_partition_by_class():
    labels = np.array([0] * 8 + [1] * 2 + [2])
    train, test = stratified_split(labels, 0.25, generator=generator_for(3))
    assert sorted([*train, *test]) == list(range(11))
    assert [int((labels[test] == k).sum()) for k in range(3)] == [2, 1, 0]


def test_mnist_from_idx(mnist_folder):
    folder, arrays = mnist_folder
    data = load_data("mnist", data_dir=folder)
    raw = arrays["train-images-idx3-ubyte"][3, 5, 7]
    assert float(data.x_train[3, 0, 5, 7]) == pytest.approx((raw / 255 - 0.1307) / 0.3081, abs=1e-5)
    assert data.y_test.tolist() == list(range(10))
    for packed in (folder / "mnist").iterdir():  # unpacked files read the same
        (folder / "mnist" / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert load_data("mnist", data_dir=folder).fingerprint == data.fingerprint


def test_idx_that_is_cut_off_or_foreign(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "a-idx2-ubyte"
    path.write_bytes(idx(values))
    assert np.array_equal(read_idx(path), values)
    path.write_bytes(idx(values)[:-1])
    with pytest.raises(ValueError, match=r"cut off or damaged: its header says shape \(3, 4\)"):
        read_idx(path)
    path.write_bytes(b"PK\3\4 and more")
    with pytest.raises(ValueError, match="is no IDX file"):
        read_idx(path)
    packed = tmp_path / "b.gz"
    packed.write_bytes(gzip.compress(idx(values))[:-9])
    with pytest.raises(ValueError, match="is no whole gzip file"):
        read_idx(packed)


def test_missing_files_say_what_where_and_how(tmp_path, mnist_folder):
    with pytest.raises(FileNotFoundError, match="cifar10: missing cifar-10-batches-py/") as caught:
        load_data("cifar10", data_dir=tmp_path)
    assert f"looked in {tmp_path / 'cifar10'} and {tmp_path}" in str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)
    (mnist_folder[0] / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load_data("mnist", data_dir=mnist_folder[0])


def test_without_folder_and_network(monkeypatch, tmp_path):
    import sklearn.datasets

    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", refuse)
    with pytest.raises(OSError, match="No network: give a local folder with --data-dir"):
        load_data("mnist")


def test_openml_rows_become_images(monkeypatch, tmp_path, pixels):
    import sklearn.datasets
    from sklearn.utils import Bunch

    table = Bunch(data=pixels.integers(0, 256, (12, 3072)).astype(float), target=["3"] * 12)
    full = data_module.IMAGE_SETS["cifar10"]
    short = replace(full, openml=replace(full.openml, train=5))
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: table)
    monkeypatch.setitem(data_module.IMAGE_SETS, "cifar10", short)
    data = load_data("cifar10")
    assert data.x_train.shape == (5, 3, 32, 32)
    assert data.x_test.shape == (7, 3, 32, 32)
    assert data.y_test.tolist() == [3] * 7
    raw = table.data[6, 1024 + 32 * 2 + 5]
    assert float(data.x_test[1, 1, 2, 5]) == pytest.approx((raw / 255 - 0.4822) / 0.2435, abs=1e-5)
    monkeypatch.setitem(data_module.IMAGE_SETS, "cifar10", full)
    with pytest.raises(OSError, match="CIFAR_10 has 12 rows, more than 50000 were expected"):
        load_data("cifar10")


def cifar_batches(pixels) -> dict[str, bytes]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: pickle.dumps(
            {b"data": pixels.integers(0, 256, (4, 3072), dtype=np.uint8), b"labels": [0, 1, 2, 9]},
            protocol=2,
        )
        for name in names
    }


def test_cifar_batches_folder_archive_and_npz_agree(tmp_path, pixels):
    batches = cifar_batches(pixels)
    folder = tmp_path / "unpacked" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in batches.items():
            (folder / name).write_bytes(content)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = load_data("cifar10", data_dir=tmp_path / "unpacked")
    assert data.x_train.shape == (20, 3, 32, 32)
    assert load_data("cifar10", data_dir=tmp_path / "packed").fingerprint == data.fingerprint
    plain = {n: pickle.loads(c, encoding="bytes") for n, c in batches.items()}
    images = {n: p[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for n, p in plain.items()}
    train = [f"data_batch_{i}" for i in range(1, 6)]
    np.savez(
        tmp_path / "cifar10.npz",
        x_train=np.concatenate([images[n] for n in train]),
        y_train=np.array([0, 1, 2, 9] * 5, dtype=np.uint8),
        x_test=images["test_batch"],
        y_test=np.array([0, 1, 2, 9], dtype=np.uint8),
    )
    assert load_data("cifar10", data_dir=tmp_path).fingerprint == data.fingerprint


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, pixels):
    batches = cifar_batches(pixels)
    batches["data_batch_2"] = pickle.dumps({b"data": Payload(tmp_path / "made"), b"labels": []})
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2 is no batch of CIFAR-10 \(\w+\.mkdir has"):
        load_data("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "made").exists()


def test_npz_of_ones_own(tmp_path, pixels):
    x, y = pixels.normal(size=(40, 6)), np.arange(40) % 4
    np.savez(tmp_path / "own.npz", x=x, y=y)
    data = load_data(tmp_path / "own.npz")
    assert data.x_train.dtype == torch.float32
    assert len(data.x_test) == 12  # of each class of ten, floor(2.5 + 0.5)
    np.savez(tmp_path / "split.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    assert torch.equal(
        load_data(tmp_path / "split.npz").x_test, torch.from_numpy(x[30:].astype(np.float32))
    )
    np.savez(tmp_path / "tokens.npz", x=np.arange(40).reshape(10, 4), y=y[:10] // 2)
    assert load_data(tmp_path / "tokens.npz").x_train.dtype == torch.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, "must hold arrays x and y, it lacks y; it holds x"),
        ({"x": np.ones((3, 2)), "y": np.zeros(4, int)}, r"got shapes \(3, 2\) and \(4,\)"),
        ({"x": np.ones((0, 2)), "y": np.zeros(0, int)}, "with at least one sample"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, r"finite, got nan at index \[0, 0"),
        ({"x": np.ones((3, 2)), "y": np.array([0.5, 1, 2])}, "`y` must hold class labels"),
        ({"x": np.ones((3, 2)), "y": np.array([-1, 1, 2])}, "from -1 to 2"),
        ({"x": np.array([["a"], ["b"]]), "y": np.zeros(2, int)}, "`x` must hold numbers"),
        ({"x": np.array([[None]]), "y": np.zeros(1, int)}, "no readable .npz file of plain arrays"),
        ({"x": np.ones((2, 2)), "y": np.arange(2)}, "no class has two samples"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "bad.npz")


def test_npz_that_is_not_there_or_cut_off(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*own\.npz"):
        load_data(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", x=np.ones((4, 2)), y=np.zeros(4, int))
    whole = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is no readable \.npz file"):
        load_data(tmp_path / "own.npz")


def test_unknown_name_suggests():
    with pytest.raises(
        ValueError, match=r"Unknown data set 'mnits'\. Did you mean mnist"
    ) as caught:
        load_data("mnits")
    assert "must end in .npz" in str(caught.value)


@pytest.mark.skipif(not os.environ.get("PRUNUS_DATA"), reason="PRUNUS_DATA names no folder")
def test_the_real_mnist():
    data = load_data("mnist")
    assert data.x_train.shape == (60000, 1, 28, 28)
    assert torch.bincount(data.y_test).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-3)
    assert float(data.x_train.std()) == pytest.approx(1, abs=1e-3)


def test_archives_are_not_unpacked_beyond_what_they_say(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stored:
        stored.writestr("x.npy", b"\0" * 2**25)
    with pytest.raises(ValueError, match=r"bomb\.npz is no readable .* unpacks from \d+ bytes to"):
        read_npz(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**5, 10**5)}
    )
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("x.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"says shape \(100000, 100000\) .* and has 0 bytes"):
        read_npz(path)
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes([0, 0, 0, 4]) + bytes(2**25)))
    with pytest.raises(ValueError, match=r"header says shape \(4,\), it holds more than 4 bytes"):
        read_idx(packed)


def test_arrays_of_every_order_come_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
              "s": np.array(3), "e": np.zeros((0, 4))}  # fmt: skip
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    found = read_npz(tmp_path / "d.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = 1  # and may be written to
