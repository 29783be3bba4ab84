"""`prunus theory at-init`: pruning before training, simulated, mapped and measured."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Pruning at initialisation: when it helps generalisation, and when it destroys it.",
)

Densities = Annotated[
    str, typer.Option(help="Fractions kept, with commas, or LOW:HIGH:COUNT on a log scale.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Stem of the files: STEM-table.json; .svg, .png, .csv, .json of figures."),
]
Classes = Annotated[int, typer.Option(help="Classes K.")]
Samples = Annotated[int, typer.Option(help="Training points n.")]
Dimension = Annotated[int, typer.Option(help="Inputs d.")]
Neurons = Annotated[int, typer.Option(help="Hidden units m of each class.")]
Signal = Annotated[float, typer.Option(help="Length μ of a class's mean.")]
Noise = Annotated[float, typer.Option(help="Standard deviation σ_n of the inputs' noise.")]
InitScale = Annotated[float, typer.Option(help="Standard deviation σ_0 of the first weights.")]
Support = Annotated[int, typer.Option(help="Coordinates that carry a class's mean.")]


@contextmanager
def said_plainly() -> Iterator[None]:
    """Warnings as single lines on standard error at once, each text once."""
    said: set[str] = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in said:
            said.add(text)
            typer.echo(f"prunus: note: {text}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = say
        yield


def numbers(name: str, text: str) -> list[float]:
    """`0.1,0.5,1` or `0.01:1:20` (on a log scale) as numbers."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            first, last, n = float(low), float(high), int(count)
            if n < 2 or not (0 < first < math.inf and 0 < last < math.inf):
                raise ValueError
            step = (last / first) ** (1 / (n - 1))
            return [first * step**i for i in range(n - 1)] + [last]
        found = [float(part) for part in text.split(",") if part.strip()]
        if not all(math.isfinite(value) for value in found):
            raise ValueError
        return found
    except ValueError:
        raise ValueError(
            f"`{name}` must be finite numbers with commas, or LOW:HIGH:COUNT with LOW, HIGH > 0 "
            f"and COUNT >= 2, got {text!r}."
        ) from None


def hidden(text: str) -> list[int]:
    """Hidden widths `100,50` as whole numbers."""
    found = numbers("model", text)
    if any(value != round(value) for value in found):
        raise ValueError(f"`model` must be whole numbers with commas, the widths, got {text!r}.")
    return [round(value) for value in found]


@app.command()
@said_plainly()
def simulate(
    densities: Densities = "1,0.6,0.35,0.25,0.12,0.05,0.01,0.0006",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    engine: Annotated[str, typer.Option(help="dual, primal or reduced.")] = "dual",
    steps: Annotated[int, typer.Option(help="Gradient steps.")] = 150,
    classes: Classes = 4,
    samples: Samples = 60,
    dimension: Dimension = 4096,
    neurons: Neurons = 50,
    signal: Signal = 6.0,
    noise: Noise = 1.0,
    init_scale: InitScale = 1e-4,
    support: Support = 1,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Record test accuracy along training, too.")
    ] = False,
    out: Out = None,
    report: Annotated[Path | None, typer.Option(help="HTML page of the simulation.")] = None,
) -> None:
    """Train randomly pruned networks and print measured beside predicted accuracies.

    Example: prunus theory at-init simulate --densities 1,0.25,0.001 --seeds 5
    """
    import torch

    from prunus.report.at_init import accuracy_figure, at_init_page
    from prunus.theory import at_init

    setting = at_init.Setting(
        classes=classes,
        samples=samples,
        dimension=dimension,
        neurons=neurons,
        signal=signal,
        noise=noise,
        init_scale=init_scale,
        support=support,
    )
    run = at_init.simulate(
        setting,
        numbers("densities", densities),
        seeds=seeds,
        engine=engine,  # type: ignore[arg-type]  # checked there, with near matches
        steps=steps,
        checkpoints=12 if trajectory else 0,
        dtype=torch.float32,
    )
    rows = at_init.summarise(run)
    typer.echo(
        f"K={classes} n={samples} d={dimension} m={neurons} mu={signal:g} sigma_n={noise:g} "
        f"sigma_0={init_scale:g}, {seeds} seeds, engine {engine}"
    )
    typer.echo(
        f"{'density':>8}  {'regime':<12}  {'test acc':>16}  {'gain':>16}  {'predicted*':>10}  "
        f"{'bound':>6}  {'test loss':>9}  {'train loss':>10}  {'certificate':>11}"
    )
    for row in rows:
        regime = at_init.classify_regime(setting, row.density)
        predicted = "" if row.predicted is None else f"{row.predicted:.3f}"
        predicted += "?" if predicted and not row.valid else " "
        typer.echo(
            f"{row.density:>8.4g}  {regime.name:<12}  "
            f"{_with_error(row.accuracy, row.accuracy_error, ''):>16}  "
            f"{_with_error(row.gain, row.gain_error, '+'):>16}  {predicted:>10}  "
            f"{row.accuracy_bound:>6.3f}  {row.test_loss:>9.3f}  {row.train_loss:>10.4f}  "
            f"{row.certificate:>11.3f}"
        )
    keep = at_init.p_keep(neurons, classes, 0.01, support)
    over, mild = at_init.p_over(classes, neurons, dimension), at_init.p_mild(neurons, dimension)
    typer.echo(f"p_over = {over:.4g} (proved), p_keep(0.01) = {keep:.4g} (proved), ", nl=False)
    typer.echo(f"log d / m = {mild:.4g} (paper, order of magnitude only)")
    typer.echo(
        "* closed form, heuristic; ? marks densities where it is not to be relied on. The bound "
        "on the mean\n  accuracy over masks and the certificate, a bound on the test error, are "
        "proved. Gains are paired by seed."
    )
    if out is not None:
        chart, records = accuracy_figure({"": (setting, rows)})
        _save(out, [vars(row) for row in rows], chart, records)
    if report is not None:
        from prunus.files import write_text

        typer.echo(write_text(report, at_init_page(setting, rows, seeds=seeds)))


@app.command()
@said_plainly()
def phase(
    axis: Annotated[
        str, typer.Option(help="noise, signal, neurons, classes, samples or init_scale.")
    ] = "noise",
    values: Annotated[
        str, typer.Option(help="Values on the axis, with commas or LOW:HIGH:COUNT.")
    ] = "0.5:2:20",
    densities: Densities = "0.0004:1:20",
    measured: Annotated[
        int, typer.Option(help="Also train this many seeds a cell, and map them beside; 0: none.")
    ] = 0,
    classes: Classes = 4,
    samples: Samples = 60,
    dimension: Dimension = 4096,
    neurons: Neurons = 50,
    signal: Signal = 6.0,
    noise: Noise = 1.0,
    init_scale: InitScale = 1e-4,
    out: Annotated[Path, typer.Option(help="Stem of the files that are written.")] = Path(
        "out/at-init-phase"
    ),
) -> None:
    """Map test accuracy over density and one other parameter, with the theory's curves.

    Example: prunus theory at-init phase --axis noise --values 0.5:2:20 --densities 0.001:1:20
    """
    from prunus.report.at_init import phase_figure
    from prunus.theory import at_init

    setting = at_init.Setting(
        classes=classes,
        samples=samples,
        dimension=dimension,
        neurons=neurons,
        signal=signal,
        noise=noise,
        init_scale=init_scale,
    )
    if measured < 0:
        raise ValueError(f"`measured` must be >= 0, got {measured}.")
    found = numbers("values", values)
    if axis in ("neurons", "classes", "samples"):
        if any(value != round(value) for value in found) and ":" not in values:
            raise ValueError(f"`values` must be whole numbers for axis {axis!r}, got {values!r}.")
        found = [int(v) for v in dict.fromkeys(round(value) for value in found)]
    columns = numbers("densities", densities)
    diagrams = {"predicted (heuristic)": at_init.phase_diagram(setting, axis, found, columns)}
    if measured:
        title = f"measured, {measured} seeds"
        diagrams[title] = at_init.phase_diagram(
            setting, axis, found, columns, engine="dual", seeds=measured
        )
    chart, records = phase_figure(diagrams)
    for title, diagram in diagrams.items():
        best = ", ".join(
            f"{value:g}: {p:.3g}"
            for value, p in zip(diagram.values, diagram.best.tolist(), strict=True)
        )
        typer.echo(f"best density by {axis}, {title}: {best}")
    if measured:
        predicted, trained = diagrams.values()
        error = predicted.accuracy - trained.accuracy
        ok = predicted.valid
        typer.echo(
            f"predicted - measured: RMSE {float(error.square().mean().sqrt()):.4f} over "
            f"{error.numel()} cells, {float(error[ok].square().mean().sqrt()):.4f} over the "
            f"{int(ok.sum())} where the prediction is valid"
        )
    _save(out, None, chart, records)


@app.command(name="safe-density")
@said_plainly()
def safe_density(
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a .npz with x and y.")
    ] = "digits",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--widths",
            help="Hidden widths of a ReLU network, or package.module:function, a function "
            "(features, classes, seed) -> module, a chain of linear layers.",
        ),
    ] = "100",
    samples: Annotated[int, typer.Option(help="Training points to use; 0 takes all.")] = 300,
    input_noise: Annotated[
        float, typer.Option(help="Noise added to the inputs, in units of their deviation.")
    ] = 0.0,
    pruned_layers: Annotated[
        int | None, typer.Option(help="Only the first so many layers are pruned.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the data sets.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the answer.")] = None,
) -> None:
    """How far a fully connected network may be pruned at random before training.

    Example: prunus theory at-init safe-density --data digits --model 100,100
    """
    import torch

    from prunus.bench.at_init.masks import built, hidden_widths
    from prunus.bench.data.sets import load_data
    from prunus.cli.imports import named_function
    from prunus.files import write_text
    from prunus.rng import generator_for
    from prunus.theory import at_init

    loaded = load_data(data, data_dir=data_dir)
    generator = generator_for(seed, "safe-density")
    x, y = loaded.x_train.flatten(1).double(), loaded.y_train
    if samples < 0:
        raise ValueError(f"`samples` must be >= 0, got {samples}.")
    if samples:
        chosen = torch.randperm(len(x), generator=generator)[:samples]
        fewest = int(torch.bincount(y[chosen], minlength=int(y.max()) + 1).min())
        if fewest < 2:
            raise ValueError(
                f"`samples` of {samples} leave {fewest} of some class, and 2 are needed. Raise it."
            )
        x, y = x[chosen], y[chosen]
    if input_noise < 0:
        raise ValueError(f"`input_noise` must be >= 0, got {input_noise}.")
    x = x - x.mean(0)
    x = x / x.std()
    if input_noise:
        x = x + input_noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if ":" in model:
        make = named_function("--model", model)
        layers = hidden_widths(built(make, x.shape[1], int(y.max()) + 1, seed))
    else:
        layers = hidden(model)
    found = at_init.safe_density(x, y, layers, pruned_layers=pruned_layers, generator=generator)
    lines = {
        "safe density (measured rule)": found.density,
        "coverage limit (heuristic)": found.coverage_limit,
        "hard limit (proved, no recommendation)": found.hard_limit,
        "live paths per input and output": found.paths,
        "smallest support of a class": float(found.support.min()),
    }
    for name, value in lines.items():
        typer.echo(f"{name:<40} {value:.4g}")
    typer.echo(found.note)
    if out is not None:
        answer = {
            "data": data,
            "fingerprint": loaded.fingerprint,
            "widths": layers,
            "samples": len(x),
            "input_noise": input_noise,
            "seed": seed,
            "density": found.density,
            "coverage_limit": found.coverage_limit,
            "hard_limit": found.hard_limit,
            "paths": found.paths,
            "support": found.support.tolist(),
            "curve": [found.densities.tolist(), found.accuracy.tolist()],
            "note": found.note,
        }
        typer.echo(write_text(out, json.dumps(answer, indent=1) + "\n"))


@app.command()
@said_plainly()
def sweep(
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a .npz with x and y.")
    ] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="Hidden widths of a ReLU network, or package.module:function, a function "
            "(features, classes, seed) -> module."
        ),
    ] = "100",
    methods: Annotated[
        str, typer.Option(help="Of random-init, snip, grasp, synflow.")
    ] = "random-init,snip,grasp,synflow",
    densities: Densities = "0.8,0.5,0.3,0.2,0.1,0.05,0.02",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 10,
    samples: Annotated[int, typer.Option(help="Training points of each seed.")] = 300,
    input_noise: Annotated[
        float, typer.Option(help="Noise added to all inputs, in units of their deviation.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(help="Steps of full-batch Adam.")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Rate of Adam.")] = 1e-2,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the data sets.")
    ] = None,
    out: Out = None,
) -> None:
    """Prune real networks before training by four methods, beside the dense control.

    Example: prunus theory at-init sweep --data digits --input-noise 1 --seeds 5
    """
    from prunus.bench.at_init.stacked import FullBatch
    from prunus.bench.at_init.sweep import sweep as run_sweep
    from prunus.bench.data.sets import load_data
    from prunus.cli.imports import named_function
    from prunus.report.at_init import alignment_figure, sweep_figure

    network = named_function("--model", model) if ":" in model else hidden(model)
    found = run_sweep(
        load_data(data, data_dir=data_dir),
        network,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        densities=numbers("densities", densities),
        seeds=seeds,
        samples=samples,
        input_noise=input_noise,
        training=FullBatch(steps=steps, learning_rate=learning_rate),
    )
    typer.echo(
        f"{data}, {samples} training points, input noise {input_noise:g}, model {model}, "
        f"{seeds} seeds"
    )
    typer.echo(
        f"{'method':<30}  {'density':>7}  {'test acc':>15}  {'gain over dense':>16}  "
        f"{'over control':>16}  {'train loss':>10}  {'dead':>5}  {'cut off':>7}  {'alignment':>14}"
    )
    for cell in found.cells:
        align = (
            "" if cell.alignment is None else (f"{cell.alignment_start:.3f} > {cell.alignment:.3f}")
        )
        typer.echo(
            f"{cell.method:<30}  {cell.density:>7.4g}  "
            f"{_with_error(cell.accuracy, cell.accuracy_error, ''):>15}  "
            f"{_with_error(cell.gain, cell.gain_error, '+') + ('*' if cell.boost else ' '):>16}  "
            f"{_with_error(cell.control_gain, cell.control_gain_error, '+'):>16}  "
            f"{cell.train_loss:>10.4f}  {cell.dead_units:>5.2f}  {cell.disconnected:>7.2f}  "
            f"{align:>14}"
        )
    typer.echo(
        "Standard errors in brackets; gains are paired by seed. * gain above 0 at the 5 % level "
        "after Holm's correction.\nThe control is the dense network with smaller first weights: "
        "a gain that it shows too is none of the mask's.\ndead: hidden units without a kept "
        "weight in or out; cut off: seeds with an output that no path reaches;\nalignment: of "
        "first-layer units with class means, before > after training."
    )
    if out is not None:
        from prunus.report.figure import beside

        chart, records = sweep_figure(found)
        _save(out, [vars(cell) for cell in found.cells], chart, records)
        if found.cells[0].alignment is not None:
            chart, records = alignment_figure(found)
            _save(beside(out, "-alignment"), None, chart, records)


def _with_error(value: float | None, error: float | None, sign: str) -> str:
    if value is None:
        return ""
    return f"{value:{sign}.3f}" + ("" if error is None else f" ({error:.3f})")


def _save(out: Path, rows: Any, chart: Any, records: list[dict[str, Any]]) -> None:
    from prunus.files import write_text
    from prunus.report.figure import beside, save_figure

    if rows is not None:
        typer.echo(write_text(beside(out, "-table.json"), json.dumps(rows, indent=1) + "\n"))
    for path in save_figure(chart, out, records):
        typer.echo(path)
