"""`prunus prune`: one network, one recipe, one density, saved with its report."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["prune"]


def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="`package.module:factory`, a folder that this command wrote (with --factory), or "
            "a language model's folder with a config.json (with --text)."
        ),
    ],
    recipe: Annotated[
        str, typer.Option(help="A name from `prunus list recipes`, or a Recipe(...) as Python.")
    ] = "magnitude+ls",
    density: Annotated[
        list[str] | None,
        typer.Option(help="Kept / total in (0, 1]; or GLOB=VALUE, as often as needed."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Instead of a density: parameters=N, macs=N, bytes=N, compressed=N (bytes), "
            "latency=SHARE, or gap=LIMIT "
            "as in `prunus plan`."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Instead of a density: a file that `prunus plan --out` wrote."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="Of a gap: predicted, mean_square, sup or changed.")
    ] = "predicted",
    delta: Annotated[float, typer.Option(help="Failure probability of a gap.")] = 0.05,
    data: Annotated[
        str | None,
        typer.Option(help="digits, mnist, fashion-mnist, cifar10, or an .npz with arrays x and y."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the network and its report; must be new or empty.")
    ] = Path("pruned"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load first, as .safetensors.")
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(help="`package.module:factory` that builds the network of a saved folder."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="`package.module:function`, called as train(model, step) to retrain."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Prune in so many steps, training after each.")] = 1,
    layers: Annotated[
        list[str] | None, typer.Option(help="Names or globs of layers to prune; all by default.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Names or globs of layers to leave alone.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibrate on the first so many training samples.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Certify on the test part; it stands in the report.")
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option(help="Calibrate and prune block by block: auto, or a glob of modules."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute, such as cuda.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of torch and BLAS; what they are set to by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    text: Annotated[
        Path | None, typer.Option(help="Of a language model's folder: UTF-8 text that calibrates.")
    ] = None,
    evaluate_on: Annotated[
        Path | None,
        typer.Option("--evaluate", help="Likewise: text for the perplexity before and after."),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Likewise: tokens in a calibration window.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Likewise: tokens in a window that is scored.")
    ] = None,
    inputs: Annotated[
        str, typer.Option(help="Likewise: calibrate behind pruned blocks, or dense ones.")
    ] = "pruned",
    within: Annotated[
        str, typer.Option(help="Likewise: all statistics of a block at once, or by layers.")
    ] = "block",
    aim: Annotated[
        str, typer.Option(help="Likewise: least squares aims at own outputs, or the dense ones.")
    ] = "own",
    memory: Annotated[
        float | None, typer.Option(help="Likewise: GB that may be used beside the libraries.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Likewise: windows that run together.")] = 1,
) -> None:
    """Prune a network, print what it cost, and save it with a report.

    The training part of the data calibrates, the test part scores. An .npz with x and y is split
    3 : 1 by class. The folder holds the weights (safetensors), pruned.json and report.html;
    for nodes also the compact network.

    Examples:

    prunus prune prunus.bench.zoo:digits_mlp --recipe magnitude+ls --density 0.2 --data digits

    prunus prune prunus.bench.zoo:digits_cnn --recipe importance-node+ls --density 0.3
    --data digits --train prunus.bench.zoo:retrain_digits --rounds 3 --out smaller

    prunus prune Llama-folder --recipe sparsegpt --density 0.5 --text book.txt --out sparse
    """
    if ":" not in model and (Path(model) / "config.json").is_file():
        from prunus.cli.folder import prune_saved
        from prunus.recipe import parse

        others = {"--budget": budget, "--data": data, "--weights": weights, "--train": train,
                  "--factory": factory, "--blocks": blocks, "--certify": certify}  # fmt: skip
        unfit = [option for option, given in others.items() if given]
        if unfit:
            raise ValueError(
                f"{model} is a language model's folder, for which {unfit[0]} does not serve. See "
                f"`prunus prune --help` for what does."
            )
        prune_saved(
            Path(model),
            out,
            parse(recipe) if "(" in recipe else recipe,
            _target(density, None, plan, None, kind, delta),
            score=evaluate_on,
            window=window,
            text=text,
            samples=128 if samples is None else samples,
            length=length,
            inputs=inputs,
            within=within,
            aim=aim,
            memory=None if memory is None else round(memory * 1e9),
            batch=batch,
            layers=layers or None,
            exclude=exclude or None,
            device=device,
            seed=seed,
        )
        return
    import warnings
    from dataclasses import replace

    from prunus.bench import evaluate, load_data
    from prunus.check import whole
    from prunus.cli.imports import named_function
    from prunus.engine import prune as run
    from prunus.files import write_text
    from prunus.parts import NODES
    from prunus.presets import resolve
    from prunus.recipe import parse
    from prunus.schedules import Iterative
    from prunus.theory.gap import VacuousWarning

    if certify and data is None:
        raise ValueError("--certify needs --data: its test part is fresh.")
    _new_folder(out)
    whole("rounds", rounds, low=1)
    if samples is not None:
        whole("samples", samples, low=1)
    chosen = resolve(parse(recipe) if "(" in recipe else recipe)[1]
    trainer = None if train is None else named_function("--train", train)
    if rounds > 1 and trainer is None:
        raise ValueError("--rounds needs --train package.module:function to train between them.")
    if rounds > 1:
        chosen = replace(chosen, schedule=Iterative(rounds))
    found = None if data is None else load_data(data, data_dir=data_dir)
    batches = None if found is None else found.batches(limit=samples)
    network = _network(model, factory, weights)
    pruned = run(
        network,
        chosen,
        _target(density, budget, plan, batches, kind, delta),
        data=batches,
        layers=layers or None,
        exclude=exclude or None,
        evaluate=None if found is None else lambda m: evaluate(m, found),
        train=trainer,
        seed=seed,
        device=device,
        blocks=blocks,
        threads=threads,
    )
    # First of all: what follows may fail, and the training took hours.
    pruned.save(out)
    write_text(out / "run.json", _facts(model, recipe, data, seed, found))
    if batches is not None:
        pruned = pruned.measured(batches[0][0][:64])
        nodes = chosen.granularity.units == NODES
        pruned.save(out, example=batches[0][0][:8] if nodes else None)
    typer.echo(pruned.summary())
    certificate = None
    if certify and found is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VacuousWarning)  # the summary says it in words
            certificate = pruned.certify([found.x_test])
        typer.echo(certificate.summary())
    pruned.report(out / "report.html", certificate=certificate)
    typer.echo(out / "report.html")
    typer.echo(out)


def _new_folder(out: Path) -> None:
    from prunus.files import make_folder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already. Choose another folder with --out, or remove it.")
    make_folder(out)


def _network(model: str, factory: str | None, weights: Path | None) -> Any:
    from torch import nn

    from prunus.cli.imports import named_function
    from prunus.result import load

    if ":" in model:
        network = named_function("MODEL", model)()
    elif Path(model).is_dir():
        if factory is None:
            raise ValueError(
                f"{model} holds weights and no code. Give --factory package.module:factory, the "
                f"function that builds the network."
            )
        network = load(model, named_function("--factory", factory)).model
    else:
        raise ValueError(
            f"MODEL must be package.module:factory or a folder that `prunus prune` wrote, got "
            f"{model!r}."
        )
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"MODEL: {model} returned a {type(network).__name__}, a torch.nn.Module is needed."
        )
    if weights is not None:
        _load_weights(network, weights)
    return network.eval()


def _load_weights(network: Any, weights: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise ValueError(f"--weights: there is no file {weights}.")
    try:
        network.load_state_dict(load_file(weights))
    except SafetensorError as error:
        raise ValueError(
            f"--weights: {weights} is no whole safetensors file ({error}). Save it with "
            f"safetensors.torch.save_file(model.state_dict(), path)."
        ) from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--weights: {weights} does not fit the network: {reason}") from None


def _target(
    density: list[str] | None,
    budget: str | None,
    plan: Path | None,
    batches: Any,
    kind: str,
    delta: float,
) -> Any:
    """A density, {glob: density}, Budget or Plan from the options; None where a recipe fixes it."""
    from prunus.budget import Budget, Plan
    from prunus.check import unknown
    from prunus.reading import text_of

    if sum(bool(given) for given in (density, budget, plan)) > 1:
        raise ValueError("Give --density, --budget or --plan, not both.")
    if plan is not None:
        if not plan.is_file():
            raise FileNotFoundError(f"No plan at {plan}. Write one with prunus plan --out.")
        return Plan.from_json(text_of(plan), f"--plan {plan}")
    if budget is not None:
        name, _, value = budget.partition("=")
        known = ("density", "parameters", "macs", "bytes", "compressed", "latency", "gap")
        if name not in known:
            raise unknown("budget", name, known)
        number = _number("--budget", value)
        if name == "latency":
            if batches is None:
                raise ValueError("--budget latency needs --data: the first batch is timed.")
            return Budget(latency=number, example=batches[0][0][:64])
        if name == "density":
            return Budget(density=number)
        if name == "gap":
            return Budget(gap=number, kind=kind, delta=delta)
        if not number.is_integer():
            raise ValueError(f"--budget {name} must be a whole number >= 1, got {value!r}.")
        if name == "compressed":
            return Budget(bytes=int(number), coder="compressed")
        whole: dict[str, Any] = {name: int(number)}
        return Budget(**whole)
    if not density:
        return None
    pairs = [text.rpartition("=") for text in density]
    if len(pairs) == 1 and not pairs[0][1]:
        return _number("--density", density[0])
    if any(not glob for glob, _, _ in pairs):
        raise ValueError(
            f"--density must be one number, or GLOB=VALUE each time, got {' '.join(density)}."
        )
    return {glob: _number("--density", value) for glob, _, value in pairs}


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} must be a number, got {text!r}.") from None


def _facts(model: str, recipe: str, data: str | None, seed: int, found: Any) -> str:
    import json

    from prunus.host import host_facts, versions

    facts = {
        "model": model,
        "recipe": recipe,
        "data": data,
        "data_fingerprint": None if found is None else found.fingerprint,
        "seed": seed,
        "versions": versions(),
        "host": host_facts(),
    }
    return json.dumps(facts, indent=1) + "\n"
