"""`prunus theory teacher-student`: learning curves, errors after pruning, and which method wins."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Predict what pruning costs a student network. All errors are half the mean squared one.",
)

Students = Annotated[int, typer.Option("--students", "-K", help="K, hidden units of the student.")]
Teachers = Annotated[int, typer.Option("--teachers", "-M", help="M, hidden units of the teacher.")]
Noise = Annotated[float, typer.Option(help="Standard deviation σ of the training labels' noise.")]
Until = Annotated[float, typer.Option(help="Training samples per input, α.")]
Inputs = Annotated[int, typer.Option(help="N: inputs of the random start, and of simulations.")]
LearningRate = Annotated[float, typer.Option(help="η of both layers.")]
TeacherReadout = Annotated[float, typer.Option(help="v* of every teacher unit.")]
Unit = Annotated[str, typer.Option("--activation", help="erf, relu or linear.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Simulations = Annotated[int, typer.Option(help="Real students trained beside the theory.")]
Out = Annotated[Path, typer.Option(help="Folder for figures and numbers.")]


@app.command()
def curve(
    students: Students = 6,
    teachers: Teachers = 2,
    noise: Noise = 0.0,
    until: Until = 400.0,
    inputs: Inputs = 500,
    rate: LearningRate = 0.5,
    teacher_readout: TeacherReadout = 4.0,
    activation: Unit = "erf",
    soft_committee: Annotated[
        bool, typer.Option("--soft-committee", help="Fix the readout at 1 and learn w alone.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="Integrator, such as LSODA or RK45.")] = None,
    simulations: Simulations = 3,
    seed: Seed = 0,
    out: Out = Path("out"),
) -> None:
    """Learning curve by the equations, its plateaus, and simulated students beside it.

    Example: prunus theory teacher-student curve -K 6 -M 2 --noise 0.25
    """
    import torch

    from prunus.report.figure import figure, save_figure
    from prunus.rng import generator_for
    from prunus.theory import teacher_student as ts

    generator = generator_for(seed, "curve")
    start = ts.random_weights(
        students, teachers, inputs, generator=generator, teacher_readout=teacher_readout
    )
    if soft_committee:
        start = ts.Weights(
            0.5 * start.student, start.teacher, torch.ones(students), torch.ones(teachers)
        )
    readout_rate = 0.0 if soft_committee else rate
    options: dict[str, Any] = {
        "until": until,
        "rate": rate,
        "readout_rate": readout_rate,
        "noise": noise,
        "activation": activation,
    }
    theory = ts.solve(ts.order_parameters(start), method=method, **options)
    records: list[dict[str, Any]] = [
        {"alpha": a, "error": e, "series": "learning equations", "kind": "theory"}
        for a, e in zip(theory.times.tolist(), theory.errors.tolist(), strict=True)
        if a > 0
    ]
    if simulations:
        first = max(1.0 / inputs, 0.1)
        times = torch.logspace(
            torch.tensor(first).log10().item(), torch.tensor(until).log10().item(), 25
        ).double()
        times[-1] = until
        batch = ts.Weights(
            start.student.expand(simulations, -1, -1),
            start.teacher.expand(simulations, -1, -1),
            start.v.expand(simulations, -1),
            start.v_star,
        )
        run = ts.simulate(batch, times=times, generator=generator, progress=None, **options)
        for n, alpha in enumerate(run.times.tolist()):
            values = run.errors[n]
            records.append(
                {
                    "alpha": alpha,
                    "error": float(values.mean()),
                    "low": float(values.min()),
                    "high": float(values.max()),
                    "series": f"gradient descent, N = {inputs}",
                    "kind": "measured",
                }
            )
    chart = figure(
        records,
        x="alpha",
        y="error",
        x_title="α, samples per input",
        y_title="generalisation error, half-MSE",
        title=f"K = {students}, M = {teachers}, σ = {noise:g}",
        x_scale="log",
        y_scale="log",
        width=520,
        height=320,
    )
    typer.echo(f"error at alpha = {until:g}: {float(theory.errors[-1]):.6g} (half-MSE, noiseless)")
    typer.echo(f"{theory.method}, {theory.evaluations} evaluations")
    for plateau in ts.plateaus(theory):
        end = "the end" if plateau.end is None else f"{plateau.end:.4g}"
        escape = "none" if plateau.escape is None else f"{plateau.escape:.4g}"
        typer.echo(
            f"plateau: alpha = {plateau.begin:.4g} to {end}, error {plateau.error:.4g}, "
            f"escape at {escape}"
        )
    for path in save_figure(chart, out / "teacher-student-curve", records):
        typer.echo(path)


@app.command()
def prune(
    students: Students = 6,
    teachers: Teachers = 2,
    noise: Noise = 0.0,
    until: Until = 400.0,
    inputs: Inputs = 500,
    rate: LearningRate = 0.5,
    teacher_readout: TeacherReadout = 4.0,
    activation: Unit = "erf",
    reweight: Annotated[
        str | None, typer.Option(help="Least squares on kept nodes: preact, act or teacher.")
    ] = None,
    kernel: Annotated[str, typer.Option(help="Node DPP: preact, act, output or rbf.")] = "preact",
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale students to norm √N before pruning.")
    ] = False,
    count_noise: Annotated[
        bool, typer.Option("--count-noise", help="Add σ²/2, as on noisy test labels.")
    ] = False,
    masks: Annotated[int, typer.Option(help="Real masks per method and density; 0: none.")] = 20,
    simulations: Simulations = 3,
    seed: Seed = 0,
    out: Out = Path("out"),
) -> None:
    """Error after pruning by six methods, with real masks and the paper's inequalities.

    Students are trained by gradient descent; the closed forms are taken at their own overlaps.

    Example: prunus theory teacher-student prune -K 6 -M 2 --noise 0.25 --reweight act
    """
    from prunus.report.figure import figure, save_figure
    from prunus.report.teacher_student import inequality_figure
    from prunus.report.text import table_text
    from prunus.reproduce.pruned_students import compare_methods, inequality_records
    from prunus.rng import generator_for
    from prunus.theory import teacher_student as ts

    generator = generator_for(seed, "prune")
    start = ts.random_weights(
        students,
        teachers,
        inputs,
        generator=generator,
        teacher_readout=teacher_readout,
        seeds=simulations,
    )
    run = ts.simulate(
        start,
        until=until,
        rate=rate,
        readout_rate=rate,
        noise=noise,
        activation=activation,
        generator=generator,
        progress=None,
    )
    records = compare_methods(
        run.weights,
        activation=activation,
        reweight=reweight,
        kernel=kernel,
        normalise=normalise,
        counted_noise=noise if count_noise else 0.0,
        masks=masks,
        generator=generator,
        progress=None,
    )
    title = f"K = {students}, M = {teachers}, σ = {noise:g}"
    measured = {(r["kept"], r["series"]): r["error"] for r in records if r["kind"] == "measured"}
    rows = []
    for record in records:
        if record["kind"] == "theory":
            real = measured.get((record["kept"], record["series"]))
            row = {
                "kept nodes or share": f"{record['kept']} of {students}",
                "method": record["series"],
                "closed form": f"{record['error']:.4g}",
                "real masks": "" if real is None else f"{real:.4g}",
                "deviation": "" if real is None else f"{record['error'] / real - 1:+.1%}",
            }
            rows.append(row)
    typer.echo(table_text(rows, title=f"half-MSE after pruning, {title}"))
    noise_note = f"counted (sigma^2/2 = {noise**2 / 2:g})" if count_noise else "not counted"
    typer.echo(
        f"weights {'normalised' if normalise else 'as trained'}; label noise {noise_note}; "
        f"least squares: {reweight or 'none'}; unpruned {float(run.errors[-1].mean()):.4g}"
    )
    claims = inequality_records(
        [ts.order_parameters(ts.one_seed(run.weights, s)) for s in range(simulations)],
        activation=activation,
        reweight=reweight,
        kernel=kernel,
        normalise=normalise,
    )
    for claim in dict.fromkeys(r["claim"] for r in claims):
        held = [str(r["kept"]) for r in claims if r["claim"] == claim and r["holds"]]
        failed = [str(r["kept"]) for r in claims if r["claim"] == claim and not r["holds"]]
        typer.echo(
            f"{claim}: holds at k = {', '.join(held) or 'none'}; fails at k = "
            f"{', '.join(failed) or 'none'}"
        )
    chart = figure(
        records,
        x="kept",
        y="error",
        x_title="kept nodes k (edges: density k/K)",
        y_title="error after pruning, half-MSE",
        title=title,
        y_scale="log",
        width=520,
        height=340,
    )
    paths = save_figure(chart, out / "teacher-student-prune", records)
    claims_chart = inequality_figure(
        claims, x="kept", x_title="kept nodes k", y_title="error, half-MSE"
    )
    paths += save_figure(claims_chart, out / "teacher-student-inequalities", claims)
    for path in paths:
        typer.echo(path)


@app.command("map")
def map_(
    students: Annotated[str, typer.Option("--students", "-K", help="Values of K.")] = "4,6,8",
    teachers: Annotated[str, typer.Option("--teachers", "-M", help="Values of M.")] = "2",
    noise: Annotated[str, typer.Option(help="Values of σ.")] = "0,0.25,1",
    reweight: Annotated[
        str, typer.Option(help="Least-squares modes: none, preact, act, teacher.")
    ] = "none,act",
    until: Until = 1600.0,
    inputs: Inputs = 500,
    rate: LearningRate = 0.5,
    teacher_readout: TeacherReadout = 4.0,
    activation: Unit = "erf",
    starts: Annotated[int, typer.Option(help="Random starts per cell.")] = 3,
    seed: Seed = 0,
    out: Out = Path("out"),
) -> None:
    """Which method wins over a grid of K, M, σ, density and least squares.

    Example: prunus theory teacher-student map -K 4,6,8,12 -M 2 --noise 0,0.25,1
    """
    from prunus.report.figure import save_figure
    from prunus.report.teacher_student import map_figure
    from prunus.report.text import table_text
    from prunus.reproduce.pruned_students import map_records
    from prunus.rng import generator_for
    from prunus.theory import teacher_student as ts

    cells = ts.method_map(
        _numbers("--students", students, int),
        _numbers("--teachers", teachers, int),
        _numbers("--noise", noise, float),
        reweights=[None if name == "none" else name for name in reweight.split(",")],
        activation=activation,
        generator=generator_for(seed, "map"),
        progress=None,
        starts=starts,
        inputs=inputs,
        until=until,
        rate=rate,
        readout_rate=rate,
        teacher_readout=teacher_readout,
    )
    records = map_records(cells)
    columns = ("K", "M", "sigma", "kept", "least squares", "best", "error", "second", "its error")
    shown = [{column: _cell(record[column]) for column in columns} for record in records]
    typer.echo(table_text(shown, title="best method by mean error over the starts"))
    held: dict[tuple[Any, ...], dict[str, list[bool]]] = {}
    for cell in cells:
        if cell.reweight is None:
            claims = held.setdefault((cell.students, cell.teachers, cell.noise), {})
            for student in cell.ranking.inequalities:
                for found in student:
                    name = f"{found.claim.smaller} <= {found.claim.larger}"
                    claims.setdefault(name, []).append(found.holds)
    for place, claims in held.items():
        shares = "; ".join(f"{name}: {sum(v) / len(v):.2f}" for name, v in claims.items())
        typer.echo(f"K, M, sigma = {place}: share of (start, k) where it holds: {shares}")
    for path in save_figure(map_figure(records), out / "teacher-student-map", records):
        typer.echo(path)


def _numbers(name: str, text: str, kind: Any) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} takes numbers with commas between them, got {text!r}. For example 4,6,8."
        ) from None


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
