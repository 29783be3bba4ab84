"""Folders in Hugging Face's layout on the command line: read, pruned, scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["perplexity", "prune_saved"]


def perplexity(
    folder: Annotated[Path, typer.Argument(help="A folder that `from_pretrained` loads.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to score.")] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Instead of a text: token ids in an .npy file.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens seen at once; the model's longest, at most 2048.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens by which windows are apart; the window by default.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows that run together.")] = 1,
    device: Annotated[str | None, typer.Option(help="Where to compute, such as cuda.")] = None,
) -> None:
    """Perplexity of a language model on a text, with the window and stride it depends on.

    Of a folder that `prunus prune` wrote, windows that hold its calibration text are counted as
    in-sample.

    Example:

    prunus perplexity pruned --text book.txt --window 512
    """
    from prunus.folder.account import ACCOUNT, read_account

    if (text is None) == (ids is None):
        raise ValueError("Give --text FILE or --ids FILE.npy.")
    known = read_account(folder) if (folder / ACCOUNT).is_file() else None
    score = scorer(text, ids, window=window, stride=stride, batch=batch, device=device)
    typer.echo(score(folder, None if known is None else known[0].seen))


def scorer(
    text: Path | None,
    ids: Path | None,
    *,
    window: int | None,
    stride: int | None,
    batch: int,
    device: str | None,
) -> Callable[..., Any]:
    """A function (folder, seen) -> `Perplexity` of a model on the text."""
    import numpy as np
    import torch

    from prunus.likelihood import perplexity as measured
    from prunus.tokens import stream

    def score(folder: Path, seen: Any = None) -> Any:
        model, tokenizer = _loaded(folder, tokenizer=text is not None)
        if ids is not None:
            if not ids.is_file():
                raise FileNotFoundError(f"There is no file {ids}.")
            try:
                tokens = torch.from_numpy(np.load(ids, allow_pickle=False).astype(np.int64))
            except ValueError as error:
                raise ValueError(f"{ids} is no .npy file of token ids ({error}).") from None
            tokens = tokens.flatten()
        else:
            assert text is not None  # one of both is given
            tokens = torch.tensor([i for piece in stream(text, tokenizer) for i in piece])
        longest = getattr(model.config, "max_position_embeddings", None) or 2048
        return measured(
            model if device is None else model.to(device),
            tokens,
            window=window or min(longest, 2048),
            stride=stride,
            batch=batch,
            seen=seen,
        )

    return score


def _loaded(folder: Path, *, tokenizer: bool) -> tuple[Any, Any]:
    from prunus.folder.checkpoint import open_checkpoint

    open_checkpoint(folder)  # names what is missing or truncated
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar
    quiet()
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder) if tokenizer else None


def prune_saved(
    src: Path,
    out: Path,
    recipe: Any,
    density: Any,
    *,
    score: Path | None,
    window: int | None,
    engine: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> None:
    """`prunus prune` of a folder: prune, print, and say the perplexity before and after.

    Args:
        src: the folder.
        out: of the pruned one.
        recipe: a name or a `Recipe`.
        density: as `prune_folder` takes it.
        score: text on which both are scored, or None.
        window: of the scores; the calibration's length where None.
        engine: name of an executor that takes batches or blocks, or None.
        workers: of it.
        options: of `prune_folder`.
    """
    from contextlib import nullcontext

    from prunus.bench import make_executor
    from prunus.bench.grid.executors import closing
    from prunus.folder import prune_folder
    from prunus.report.folder import folder_summary

    text = options.get("text")
    if score is not None and text is not None and Path(text).resolve() == score.resolve():
        raise ValueError(
            f"--evaluate {score} is the text that calibrates, so that its perplexity says nothing "
            f"of other text. Give another file."
        )
    if score is not None and not score.is_file():
        raise FileNotFoundError(f"There is no text file {score}.")
    if engine is None and workers is not None:
        raise ValueError("--workers needs --executor local, ray or dask.")
    taken: Any = nullcontext()
    if engine is not None:
        taken = closing(make_executor(engine, workers=workers))
    with taken as executor:
        result = prune_folder(src, out, recipe, density, executor=executor, **options)
    scores: dict[str, Any] = {}
    if score is not None:
        measure = scorer(
            score,
            None,
            window=window or options.get("length"),
            stride=None,
            batch=options.get("batch", 1),
            device=options.get("device"),
        )
        scores = {"dense": measure(src, result.seen), "pruned": measure(out, result.seen)}
    typer.echo(folder_summary(result, scores))
    result.report(out / "report.html", scores=scores)
    typer.echo(out / "report.html")
    typer.echo(out)
