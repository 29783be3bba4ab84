"""`prunus theory at-init`: pruning before training, simulated, mapped and measured."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.at_init_given import Densities, Out, numbers, said_plainly, save, with_error
from prunus.cli.theory_at_init_real import safe_density, sweep

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Pruning at initialisation: when it helps generalisation, and when it destroys it.",
)

Classes = Annotated[int, typer.Option(help="Classes K.")]
Samples = Annotated[int, typer.Option(help="Training points n.")]
Dimension = Annotated[int, typer.Option(help="Inputs d.")]
Neurons = Annotated[int, typer.Option(help="Hidden units m of each class.")]
Signal = Annotated[float, typer.Option(help="Length μ of a class's mean.")]
Noise = Annotated[float, typer.Option(help="Standard deviation σ_n of the inputs' noise.")]
InitScale = Annotated[float, typer.Option(help="Standard deviation σ_0 of the first weights.")]
Support = Annotated[int, typer.Option(help="Coordinates that carry a class's mean.")]


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
            f"{with_error(row.accuracy, row.accuracy_error, ''):>16}  "
            f"{with_error(row.gain, row.gain_error, '+'):>16}  {predicted:>10}  "
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
        save(out, [vars(row) for row in rows], chart, records)
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
    save(out, None, chart, records)


app.command(name="safe-density")(safe_density)
app.command()(sweep)
