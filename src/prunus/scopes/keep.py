"""Where the inputs of scopes are kept: in memory, or in files of a folder that goes away."""

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from prunus.files import Scratch

__all__ = ["Files", "Keep", "Memory"]


@runtime_checkable
class Keep(Protocol):
    """Values by number."""

    def put(self, key: int, tree: Any) -> None:
        """Keep a value; nobody else may change its tensors."""
        ...

    def get(self, key: int) -> Any:
        """The value; its tensors are to be read, not written."""
        ...

    def drop(self, key: int) -> None:
        """Let it go."""
        ...


class Memory:
    """Values kept where they are."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def put(self, key: int, tree: Any) -> None:
        """Keep a value."""
        self._values[key] = tree

    def get(self, key: int) -> Any:
        """The value."""
        return self._values[key]

    def drop(self, key: int) -> None:
        """Let it go."""
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)


class Files(AbstractContextManager["Files"]):
    """Values whose tensors lie in files of a new folder, which is removed on any exit.

    After a kill the next one made there removes it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """An empty store.

        Args:
            folder: where to make the new folder; the system's place for such where None.
        """
        self._home = Scratch(folder)
        self._values: dict[int, tuple[list[Any], TreeSpec, list[Any]]] = {}

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._home.path

    def __enter__(self) -> "Files":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._home.close()

    def put(self, key: int, tree: Any) -> None:
        """Write a value's tensors to a file."""
        leaves, spec = tree_flatten(tree)
        tensors = {str(i): t for i, t in enumerate(leaves) if isinstance(t, Tensor)}
        layout = [
            (t.stride(), t.storage_offset(), t.device) if isinstance(t, Tensor) else None
            for t in leaves
        ]
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, self._path(key))
        rest = [None if isinstance(t, Tensor) else t for t in leaves]
        self._values[key] = (rest, spec, layout)

    def get(self, key: int) -> Any:
        """Read it back, strides and devices as they were."""
        rest, spec, layout = self._values[key]
        tensors = load_file(self._path(key))
        leaves: list[Any] = []
        for i, (other, place) in enumerate(zip(rest, layout, strict=True)):
            if place is None:
                leaves.append(other)
                continue
            stride, _, device = place
            value = tensors[str(i)]
            if value.stride() != stride:
                as_before = value.new_empty_strided(value.shape, stride)
                value = as_before.copy_(value)
            leaves.append(value.to(device))
        return tree_unflatten(leaves, spec)

    def drop(self, key: int) -> None:
        """Remove its file."""
        if self._values.pop(key, None) is not None:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: int) -> Path:
        return self.folder / f"{key}.safetensors"
