"""The file formats of the public image sets, read with numpy alone; nothing is executed."""

import gzip
import io
import lzma
import math
import pickle
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from prunus.check import brief

__all__ = [
    "OWN_FILES", "checked_pair", "read_arrays", "read_cifar10", "read_idx", "read_idx_set",
    "read_npz",
]  # fmt: skip

OWN_FILES = (".npz", ".npy", ".pt", ".pth")  # of a user's own data

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_PARTS = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
SITES = {
    "mnist": "https://yann.lecun.com/exdb/mnist/ (mirrored in many places)",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
}
LARGEST = 2**34  # bytes of a file's arrays
SMALL, TIGHTEST = (
    2**24,
    200,
)  # larger ones are refused where they unpack to so many times their size
BATCH = 2**26  # bytes of a batch of CIFAR-10, which has half of that
# What the pickles of CIFAR-10 hold beside plain values, under numpy's old and new names.
PICKLED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def read_idx(path: Path) -> np.ndarray:
    """One IDX file, gzip-compressed or not.

    The format: two zero bytes, a type byte, the number of axes, each axis as a big-endian 32-bit
    integer, then the values.

    Raises:
        ValueError: the file is no IDX file, or shorter or longer than its header says.
    """
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES:
                raise ValueError(f"{path} is no IDX file: it begins with {head!r}. Fetch it again.")
            dtype, axes = np.dtype(IDX_TYPES[head[2]]), head[3]
            sizes = file.read(4 * axes)
            shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">i4"))
            wanted = math.prod(shape) * dtype.itemsize
            fits = len(shape) == axes and min(shape, default=0) >= 0 and wanted <= LARGEST
            # A byte more than the header says, so that what is packed can say no more than that.
            values = file.read(wanted + 1) if fits else b""
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}). Fetch it again.") from None
    if not fits or len(values) != wanted:
        held = f"more than {wanted}" if len(values) > wanted else str(len(values))
        raise ValueError(
            f"{path} is cut off or damaged: its header says shape {shape}, "
            f"it holds {held} bytes of values. Fetch it again."
        )
    return np.frombuffer(values, dtype).reshape(shape)


def read_idx_set(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The four IDX files of MNIST or Fashion-MNIST, or `name`.npz, as uint8 images and labels.

    Looks in `folder`/`name` and `folder`, for .gz files and for unpacked ones.
    """
    places = [folder / name, folder]
    for place in places:
        found = {key: _either(place, stem) for key, stem in IDX_PARTS.items()}
        present = {key: path for key, path in found.items() if path is not None}
        if len(present) == len(found):
            return _images({key: read_idx(path) for key, path in present.items()}, place)
        if present:
            lacking = ", ".join(f"{IDX_PARTS[key]}.gz" for key in found if found[key] is None)
            raise FileNotFoundError(f"{name}: {place} lacks {lacking}. Get it from {SITES[name]}.")
        if (place / f"{name}.npz").is_file():
            return _images(read_npz(place / f"{name}.npz"), place / f"{name}.npz")
    wanted = ", ".join(f"{stem}.gz" for stem in IDX_PARTS.values())
    raise _missing(name, f"{wanted} (or {name}.npz)", places)


def read_cifar10(folder: Path) -> dict[str, np.ndarray]:
    """CIFAR-10 as (samples, 3, 32, 32) uint8 images.

    Takes the folder `cifar-10-batches-py`, the archive `cifar-10-python.tar.gz`, or
    `cifar10.npz` / `cifar10-subset.npz` with x_train, y_train, x_test, y_test. The batches are
    pickles: they are read with an unpickler that knows arrays and plain values and nothing else.
    """
    places = [folder / "cifar10", folder]
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
    for place in places:
        unpacked = place / "cifar-10-batches-py"
        if unpacked.is_dir():
            batches = [_open_batch(unpacked / name) for name in [*names, "test_batch"]]
            return _images(_join(batches), unpacked)
        archive = place / "cifar-10-python.tar.gz"
        if archive.is_file():
            return _images(_join(_archived(archive, [*names, "test_batch"])), archive)
        for stem in ("cifar10.npz", "cifar10-subset.npz"):
            if (place / stem).is_file():
                return _images(read_npz(place / stem), place / stem)
    raise _missing("cifar10", "cifar-10-batches-py/, cifar-10-python.tar.gz or cifar10.npz", places)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file; object arrays, which would be pickles, are refused."""
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Save one with numpy.savez(path, x=, y=)."
        )
    try:
        with zipfile.ZipFile(path) as stored:
            _check_sizes(stored)
            return {
                entry.filename.removesuffix(".npy"): _array(stored, entry)
                for entry in stored.infolist()
            }
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is no readable .npz file of plain arrays ({brief(str(error))}). "
            f"Save it with numpy.savez(path, x=inputs, y=labels)."
        ) from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a user's own file, by its ending: .npz, .npy (x alone), .pt or .pth.

    A file of torch holds a dict of tensors, a pair (x, y), or x alone. It is read with
    `weights_only=True`: no code of it runs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds other things than numbers.
    """
    if path.suffix == ".npz":
        return read_npz(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".npy":
        try:
            return {"x": np.array(np.load(path, mmap_mode="r", allow_pickle=False))}
        except UNREADABLE as error:
            raise ValueError(
                f"{path} is no readable .npy file of numbers ({_brief(error)}). Save it with "
                f"numpy.save(path, inputs)."
            ) from None
    return _read_pt(path)


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    import torch  # the readers of images do without

    try:
        with zipfile.ZipFile(path) as stored:
            _check_sizes(stored)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, list | tuple) and len(found) == 2:
            found = dict(zip(("x", "y"), found, strict=True))
        named = found if isinstance(found, dict) else {"x": found}
        held = path.stat().st_size
        arrays = {}
        for name, value in named.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{name!r:.40} is a {type(value).__name__}, not a tensor")
            if value.numel() * value.element_size() > held:
                raise ValueError(f"{name!r:.40} says more numbers than the file holds")
            half = value.dtype in (torch.bfloat16, torch.float16)
            arrays[str(name)] = (value.detach().float() if half else value.detach()).numpy()
    except (*UNREADABLE, pickle.UnpicklingError, LookupError, AttributeError, AssertionError) as e:
        raise ValueError(
            f"{path} is no readable file of tensors ({_brief(e)}). Save it with "
            f'torch.save({{"x": inputs, "y": labels}}, path).'
        ) from None
    return arrays


def _brief(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return brief(said, 160)


UNREADABLE = (
    ValueError, TypeError, SyntaxError, KeyError, EOFError, OSError, RuntimeError,
    NotImplementedError, OverflowError, MemoryError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


def _check_sizes(stored: zipfile.ZipFile) -> None:
    """Refuse an archive before it is unpacked, by what it says of itself.

    Raises:
        ValueError: more bytes than are read, or packed as no data are; or a name twice.
    """
    entries = stored.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("an array's name stands twice")
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST:
        raise ValueError(f"its arrays have {total} bytes, more than the {LARGEST} that are read")
    for entry in entries:
        if entry.file_size > SMALL and entry.file_size > TIGHTEST * entry.compress_size:
            raise ValueError(
                f"{entry.filename} unpacks from {entry.compress_size} bytes to {entry.file_size}"
            )


def _array(stored: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must say as many bytes as there are.

    Raises:
        ValueError: it does not, or the array holds objects, which would be pickles.
    """
    with stored.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{entry.filename} has version {version} of the format")
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds objects, not numbers")
        wanted = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or wanted != entry.file_size - file.tell():
            raise ValueError(
                f"{entry.filename} says shape {shape} of {dtype}, and has "
                f"{entry.file_size - file.tell()} bytes"
            )
        values = np.empty(wanted, np.uint8)
        view, reader, got = memoryview(values.data), io.BufferedReader(cast(Any, file)), 0
        while got < wanted and (more := reader.readinto(view[got:])):
            got += more
        if got < wanted:
            raise ValueError(f"{entry.filename} is cut off")
    array: np.ndarray = np.frombuffer(values, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def checked_pair(
    path: Path, arrays: dict[str, np.ndarray], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays x and y of one part of a user's file: finite inputs, one whole label each.

    Raises ValueError with the file, the array and what is wrong with it.
    """
    x_name, y_name = f"x{part}", f"y{part}"
    lacking = [name for name in (x_name, y_name) if name not in arrays]
    if lacking:
        raise ValueError(
            f"{path} must hold arrays {x_name} and {y_name}, it lacks {', '.join(lacking)}; it "
            f"holds {brief(', '.join(sorted(arrays)) or 'none')}."
        )
    x, y = arrays[x_name], arrays[y_name]
    if x.ndim < 2 or len(x) == 0 or y.shape != (len(x),):
        raise ValueError(
            f"{path}: `{x_name}` must be (samples, ...) with at least one sample and `{y_name}` "
            f"one label per sample, got shapes {x.shape} and {y.shape}."
        )
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{path}: `{x_name}` must hold numbers, got dtype {x.dtype}.")
    whole = y.dtype.kind in "iu" or (y.dtype.kind == "f" and bool((y == np.rint(y)).all()))
    if not whole or y.min() < 0:
        raise ValueError(
            f"{path}: `{y_name}` must hold class labels 0, 1, …, got dtype {y.dtype} with values "
            f"from {y.min()} to {y.max()}."
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(x))[0]]
        raise ValueError(
            f"{path}: `{x_name}` must be finite, got {x[tuple(index)]} at index {index}. "
            f"Remove the bad values first."
        )
    indices = x.dtype.kind in "iu" and x.dtype != np.uint8
    return x.astype(np.int64 if indices else np.float32), y.astype(np.int64)


def _images(arrays: dict[str, np.ndarray], place: Path) -> dict[str, np.ndarray]:
    lacking = [key for key in IDX_PARTS if key not in arrays]
    if lacking:
        raise ValueError(f"{place} lacks the arrays {', '.join(lacking)}. Fetch it again.")
    result = {}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and x.shape[-1] == 3:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.ndim != 4 or x.dtype != np.uint8 or len(x) != len(y):
            raise ValueError(
                f"{place}: the {part} images must be uint8 with one label each, got "
                f"{x.dtype} {x.shape} and {len(y)} labels. Fetch it again."
            )
        result[f"x_{part}"], result[f"y_{part}"] = x, y
    return result


def _either(folder: Path, stem: str) -> Path | None:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    return None


def _missing(name: str, wanted: str, places: list[Path]) -> FileNotFoundError:
    looked = " and ".join(str(place) for place in places)
    return FileNotFoundError(
        f"{name}: missing {wanted}; looked in {looked}. Get it from {SITES[name]} and give the "
        f"folder with --data-dir or PRUNUS_DATA, or name none to fetch it from OpenML."
    )


BROKEN = (pickle.UnpicklingError, AttributeError, IndexError, RecursionError, AssertionError)


class _Plain(pickle._Unpickler):  # the one in C takes memory for a place that a file only names
    """An unpickler that makes arrays and plain values and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in an image batch")
        return _empty if name == "_reconstruct" else super().find_class(module, name)


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy begins an array with, whose values follow; nothing else begins one."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"an array begins as {kind!r:.30} of shape {shape!r:.30}")
    return np.ndarray((0,), np.uint8)


def _archived(archive: Path, names: list[str]) -> list[dict[str, np.ndarray]]:
    """The batches of an archive."""
    parts = []
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.getmember(f"cifar-10-batches-py/{name}")
                if not member.isreg():
                    raise ValueError(f"{name} is no file in it")
                parts.append(cast(Any, tar.extractfile(member)).read(BATCH + 1))
    except (*UNREADABLE, tarfile.TarError) as error:
        said = brief(" ".join(str(error).strip("'").split()))
        raise ValueError(
            f"{archive} is no whole archive of CIFAR-10 ({said}). Fetch it again."
        ) from None
    return [_batch(part, archive) for part in parts]


def _open_batch(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"cifar10: missing {path}. Get it from {SITES['cifar10']}.")
    with path.open("rb") as file:
        return _batch(file.read(BATCH + 1), path)


def _batch(data: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        if len(data) > BATCH:
            raise ValueError(f"more than {BATCH} bytes")
        stored = _Plain(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = np.asarray(stored[b"data"]), np.asarray(stored[b"labels"])
        x, y = pixels.reshape(-1, 3, 32, 32), labels.astype(np.uint8)
        if pixels.dtype != np.uint8 or not np.array_equal(labels, y) or y.shape != x.shape[:1]:
            raise ValueError(f"images {pixels.shape} of {pixels.dtype}, labels {labels.shape}")
    except UNREADABLE + BROKEN as error:
        said = brief(" ".join(str(error).split()))
        raise ValueError(f"{path} is no batch of CIFAR-10 ({said}). Fetch it again.") from None
    return {"x": x, "y": y}


def _join(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    *train, test = batches
    return {
        "x_train": np.concatenate([b["x"] for b in train]),
        "y_train": np.concatenate([b["y"] for b in train]),
        "x_test": test["x"],
        "y_test": test["y"],
    }
