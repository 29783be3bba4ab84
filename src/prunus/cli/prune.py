"""`prunus prune`: one network, one recipe, one density, saved with its report."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli import options as own

__all__ = ["prune"]


def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="`package.module:factory`; a folder that this command wrote (with --factory); "
            "`hf:` and a folder or name of the Hugging Face Hub; a .pt2 file; or a language "
            "model's folder with a config.json (with --text)."
        ),
    ],
    recipe: own.Recipe = "magnitude+ls",
    density: Annotated[
        list[str] | None,
        typer.Option(help="Kept / total, such as 0.2 or 20%; or GLOB=VALUE, as often as needed."),
    ] = None,
    nm: Annotated[
        str | None,
        typer.Option("--nm", help="Instead of a density: keep N of every M weights, such as 2:4."),
    ] = None,
    drop: own.Drop = None,
    metric: own.Metric = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Instead of a density: parameters=N, macs=N, bytes=N, compressed=N (bytes), "
            "latency=SHARE, or gap=LIMIT as in `prunus plan`."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Instead of a density: a file that `prunus plan --out` wrote."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Of a gap: predicted (by default), mean_square, sup or changed."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Of a gap: its failure probability; 0.05 by default.")
    ] = None,
    data: own.Data = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the network and its report; must be new or empty.")
    ] = Path("pruned"),
    weights: own.Weights = None,
    factory: own.Factory = None,
    train: Annotated[
        str | None,
        typer.Option(help="`package.module:function`, called as train(model, step) to retrain."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Prune in so many steps, training after each.")] = 1,
    evaluate_on: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            help="`package.module:function`, called as evaluate(model); accuracy by default. Of a "
            "language model's folder: text for the perplexity before and after.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="Names or globs of layers to prune; all by default.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Names or globs of layers to leave alone.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibrate on the first so many training samples.")
    ] = None,
    data_dir: own.DataDir = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Certify on the test part; it stands in the report.")
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option(help="Calibrate and prune block by block: auto, or a glob of modules."),
    ] = None,
    device: own.Device = None,
    threads: Annotated[
        int | None, typer.Option(help="Of torch and BLAS; by default one for small networks.")
    ] = None,
    seed: own.Seed = 0,
    text: Annotated[
        Path | None, typer.Option(help="Of a language model's folder: UTF-8 text that calibrates.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Likewise: tokens in a calibration window.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Likewise: tokens in a window that is scored.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Likewise: calibrate behind pruned blocks (by default), or dense ones."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Likewise: statistics of a whole block (by default), or by layers."),
    ] = None,
    aim: Annotated[
        str | None,
        typer.Option(help="Likewise: least squares aims at own outputs (by default), or dense."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Likewise: GB that may be used beside the libraries.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Likewise: windows that run together; 1 by default.")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Likewise: batches, or blocks with --inputs dense, go to local, ray or dask."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Of --executor: how many at once.")] = None,
) -> None:
    """Prune a network, print what it cost, and save it with a report.

    How much is left is said by one of --density, --nm, --drop, --budget and --plan. The training
    part of the data calibrates, the test part scores; with --drop half of it chooses the density,
    the other half scores. A file with x and y is split 3 : 1 by class.

    The folder holds the weights (safetensors), pruned.json and report.html; for nodes also the
    compact network, for a Hugging Face model the folder hf/, which `from_pretrained` loads.

    Examples:

    prunus prune prunus.bench.zoo:digits_mlp --recipe magnitude+ls --density 0.2 --data digits

    prunus prune prunus.bench.zoo:digits_cnn --recipe importance-node+ls --drop 1% --data digits

    prunus prune prunus.bench.zoo:digits_cnn --recipe importance-node+ls --density 30%
    --data digits --train prunus.bench.zoo:retrain_digits --rounds 3 --out smaller

    prunus prune Llama-folder --recipe sparsegpt --density 0.5 --text book.txt --out sparse
    """
    from prunus.cli.networks import HUB, hub_folder
    from prunus.cli.target import one_of, target

    one_of(density, budget, plan, drop)
    saved = Path(model)
    if model.startswith(HUB) and text is not None:
        saved = hub_folder(model)
    if ":" not in str(saved) and (saved / "config.json").is_file():
        from prunus.cli.folder import prune_saved

        others = {"--budget": budget, "--data": data, "--weights": weights, "--train": train,
                  "--factory": factory, "--blocks": blocks, "--certify": certify,
                  "--drop": drop}  # fmt: skip
        if unfit := [option for option, given in others.items() if given]:
            raise ValueError(
                f"{model} is a language model's folder, for which {unfit[0]} does not serve. See "
                f"`prunus prune --help` for what does; hf:{model} takes a model of another kind."
            )
        ways = {"inputs": inputs, "within": within, "aim": aim, "batch": batch}
        prune_saved(
            saved,
            out,
            _recipe(recipe, nm),
            target(density, None, plan, kind=kind, delta=delta),
            score=None if evaluate_on is None else Path(evaluate_on),
            window=window,
            text=text,
            samples=128 if samples is None else samples,
            length=length,
            memory=None if memory is None else round(memory * 1e9),
            engine=executor,
            workers=workers,
            layers=layers or None,
            exclude=exclude or None,
            device=device,
            seed=seed,
            **{option: given for option, given in ways.items() if given is not None},
        )
        return
    folders = {"--text": text, "--length": length, "--window": window, "--memory": memory,
               "--inputs": inputs, "--within": within, "--aim": aim, "--batch": batch,
               "--executor": executor, "--workers": workers}  # fmt: skip
    if unfit := [option for option, given in folders.items() if given is not None]:
        raise ValueError(
            f"{unfit[0]} is for a language model's folder, which has a config.json; {model} is "
            f"none. Leave it out."
        )
    from prunus.check import whole
    from prunus.cli.given import evaluator, needed_evaluator, read
    from prunus.cli.imports import named_function
    from prunus.cli.networks import network
    from prunus.engine import prune as run
    from prunus.presets import resolve

    if certify and data is None:
        raise ValueError("--certify needs --data: its test part is fresh.")
    with _new_folder(out):
        whole("rounds", rounds, low=1)
        if samples is not None:
            whole("samples", samples, low=1)
        name, chosen = resolve(_recipe(recipe, nm))
        trainer = None if train is None else named_function("--train", train)
        chosen = _in_rounds(name, chosen, rounds, trainer)
        given = None if data is None else read(data, data_dir)
        if certify and given is not None:
            given.needed("--certify")  # said before the pruning, not after it
        dense = network(model, factory, weights)
        choosing, scoring = given, given
        if drop is None:
            judge = evaluator(given, evaluate_on)
        else:
            if given is not None and evaluate_on is None:
                choosing, scoring = given.halves("--drop")
                metric = metric or "accuracy"
            judge = needed_evaluator(choosing, evaluate_on, "--drop")
        asked = target(
            density,
            budget,
            plan,
            drop,
            example=None if given is None else given.first(64),
            kind=kind,
            delta=delta,
            metric=metric,
        )
        if asked is None and chosen.granularity.fixed is None:
            raise ValueError("Give --density, such as 0.2, or --drop, --budget, --plan or --nm.")
        pruned = run(
            dense,
            chosen,
            asked,
            data=None if given is None else given.limited(samples),
            layers=layers or None,
            exclude=exclude or None,
            evaluate=judge,
            train=trainer,
            seed=seed,
            device=device,
            blocks=blocks,
            threads=threads,
        )
        _saved(pruned, out, given, {"model": model, "recipe": recipe, "data": data, "seed": seed})
        if given is not None:
            pruned = pruned.measured(given.first(64))
            smaller = chosen.granularity.shrinks
            pruned.save(out, example=given.first(8) if smaller else None)
        typer.echo(pruned.summary())
        if drop is not None and scoring is not choosing and scoring is not None:
            typer.echo(_fresh(dense, pruned, scoring))
        if hasattr(dense, "save_pretrained") and given is not None:
            typer.echo("\n".join(pruned.save_hf(out / "hf", example=given.first(8)).notes))
            typer.echo(out / "hf")
        certificate = None
        if certify and given is not None:
            certificate = _certified(pruned, given)
            typer.echo(certificate.summary())
        pruned.report(out / "report.html", certificate=certificate)
        typer.echo(_next(out, smaller=chosen.granularity.shrinks))
        typer.echo(out / "report.html")
        typer.echo(out)


def _recipe(recipe: str, nm: str | None) -> Any:
    """A name or a `Recipe`, with N:M granularity where that is asked for."""
    from dataclasses import replace

    from prunus.granularity import NM
    from prunus.presets import resolve
    from prunus.recipe import parse

    found = parse(recipe) if "(" in recipe else recipe
    if nm is None:
        return found
    kept, colon, of = nm.partition(":")
    if not colon or not kept.isdecimal() or not of.isdecimal():
        raise ValueError(f"--nm must be N:M, such as 2:4, got {nm!r}.")
    try:
        return replace(resolve(found)[1], granularity=NM(int(kept), int(of)))
    except ValueError as error:
        raise ValueError(f"--nm {nm}: {error}") from None


def _in_rounds(name: str, recipe: Any, rounds: int, trainer: Any) -> Any:
    from dataclasses import replace

    from prunus.schedules import Iterative

    if recipe.schedule.trains and trainer is None:
        raise ValueError(f"Recipe {name!r} trains between its steps. Give --train.")
    if rounds == 1:
        return recipe
    if trainer is None:
        raise ValueError("--rounds needs --train package.module:function to train between them.")
    return replace(recipe, schedule=Iterative(rounds))


def _saved(pruned: Any, out: Path, given: Any, asked: dict[str, Any]) -> None:
    """First of all: what follows may fail, and the training took hours."""
    import json

    from prunus.files import write_text
    from prunus.host import host_facts, versions

    pruned.save(out)
    known = None if given is None else given.fingerprint or pruned.data_fingerprint
    facts = {**asked, "data_fingerprint": known, "versions": versions(), "host": host_facts()}
    write_text(out / "run.json", json.dumps(facts, indent=1) + "\n")


def _fresh(dense: Any, pruned: Any, scoring: Any) -> str:
    """What the samples say that had no part in choosing the density."""
    from prunus.report.headline import named_score, shown_score
    from prunus.report.text import rendered

    before, after = scoring.scores(dense), scoring.scores(pruned.model)
    said = ", ".join(
        f"{named_score(key)} {shown_score(key, before[key])} → {shown_score(key, after[key])}"
        for key in before
    )
    return rendered(f"on the other half of the test part, which had no part in choosing: {said}")


def _next(out: Path, *, smaller: bool) -> str:
    """How to go on in Python, in a line."""
    what = "the small network" if smaller else "the network with its zeros"
    return f'in Python {what} is prunus.load("{out}", model).{"compact()" if smaller else "model"}'


def _certified(pruned: Any, given: Any) -> Any:
    import warnings

    from prunus.theory.gap import VacuousWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VacuousWarning)  # the summary says it in words
        return pruned.certify(given.needed("--certify"))


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """The folder made, so that what is wrong with it is said now; gone again if it stays empty."""
    from prunus.files import make_folder

    there = out.exists()
    if there and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already. Choose another folder with --out, or remove it.")
    make_folder(out)
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # it holds something
                out.rmdir()
        raise
