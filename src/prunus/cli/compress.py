"""`prunus compress` and `prunus decompress`: a pruned network as one small file, and back."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["compress", "decompress"]

FACTORY = "`package.module:factory` that builds the dense network."


def compress(
    folder: Annotated[Path, typer.Argument(help="A folder that `prunus prune` wrote.")],
    factory: Annotated[str, typer.Option(help=FACTORY)],
    out: Annotated[Path, typer.Option(help="The file.")] = Path("compressed.safetensors"),
    values: Annotated[
        list[str] | None,
        typer.Option(help="Values shared by each layer, such as 8, or GLOB=NUMBER each time."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="`package.module:function`, called as tune(model) to train the values."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="The file of Han et al. (2015b), Huffman coded.")
    ] = False,
) -> None:
    """Write a pruned network as one file: entropy-coded masks, values shared or kept to the bit.

    Without --values every weight keeps its bits. The table says what the bytes are spent on.

    Example: prunus compress pruned --factory prunus.bench.zoo:digits_mlp --values 8 --out small.st
    """
    from prunus.cli.imports import named_function
    from prunus.compression import compress as run
    from prunus.result import load

    found = run(
        load(folder, named_function("--factory", factory)),
        out,
        values=_values(values or []),
        fine_tune=None if tune is None else named_function("--tune", tune),
        coder="published" if published else "adaptive",
    )
    typer.echo(found.summary())
    typer.echo(found.path)


def decompress(
    file: Annotated[Path, typer.Argument(help="A file that `prunus compress` wrote.")],
    out: Annotated[
        Path,
        typer.Option(help="With --factory a folder as `prunus prune` writes it, else a file."),
    ],
    factory: Annotated[str | None, typer.Option(help=FACTORY)] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Refuse files that decode to more bytes.")
    ] = None,
) -> None:
    """Read a compressed network back: its tensors as one .safetensors file, or the pruned network.

    Example: prunus decompress small.st --out weights.safetensors
    """
    from prunus.cli.imports import named_function
    from prunus.coding.state import MAX_BYTES
    from prunus.compression import decompress as run

    limit = MAX_BYTES if max_bytes is None else max_bytes
    if factory is None:
        typer.echo(_tensors(run(file, max_bytes=limit), out))
        return
    pruned: Any = run(file, named_function("--factory", factory), max_bytes=limit)
    typer.echo(pruned.save(out))


def _tensors(state: Any, out: Path) -> Path:
    from safetensors.torch import save

    from prunus.files import write_bytes

    return write_bytes(out, save({name: value.clone() for name, value in state.items()}))


def _values(given: list[str]) -> Any:
    pairs = [text.rpartition("=") for text in given]
    try:
        numbers = [int(number) for _, _, number in pairs]
    except ValueError:
        raise ValueError(
            f"--values must be a whole number, or GLOB=NUMBER each time, got {' '.join(given)}."
        ) from None
    if len(pairs) == 1 and not pairs[0][1]:
        return numbers[0]
    if any(not glob for glob, _, _ in pairs):
        raise ValueError(f"--values must be one number, or GLOB=NUMBER, got {' '.join(given)}.")
    globs = [glob for glob, _, _ in pairs]
    return dict(zip(globs, numbers, strict=True)) or None
