"""The verbs of `peftlab results`: list, show, diff, export, import."""

from __future__ import annotations

from typing import Annotated

import typer

from peftlab.cli.options import Format, Json, Results, ResultsOrParents, Where

results_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True, no_args_is_help=False)


@results_app.callback()
def results(
    context: typer.Context,
    folder: Results = "results",
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Only this task.")] = None,
    where: Where = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only runs made with other versions than installed.")] = False,
    json: Json = False,
) -> None:
    """List runs with their scores; `show` prints one, `diff` says in what two differ, `export` and `import` exchange.

    \b
    Examples:
      peftlab results --task gsm8k
      peftlab results --where 'status == "finished" and optim.learning_rate < 1e-3'
      peftlab results --stale
      peftlab results show 3f2a91
      peftlab results diff 3f2a91 b07c44
      peftlab results export --format s0 --to exchange
      peftlab results import method_comparison/results/*.json

    Writes nothing, but for export and import.
    """
    if context.invoked_subcommand is None:
        from peftlab.cli import records

        records.list_all(folder, task=task, where=where, stale=stale, as_json=json)
    context.obj = folder


@results_app.command(name="show")
def results_show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A record's path, a key prefix, or an experiment folder.")],
    folder: ResultsOrParents = None,
    json: Json = False,
) -> None:
    """Print one run: scores, cost, config, and what it was made with.

    \b
    Examples:
      peftlab results show 3f2a91
      peftlab results show experiments/lora/smollm2-135m-r16 --json
    """
    from peftlab.cli import records

    records.show(run, folder=folder or context.obj, as_json=json)


@results_app.command(name="diff")
def results_diff(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="RUN", help="As for show.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="As for show.")],
    folder: ResultsOrParents = None,
    json: Json = False,
) -> None:
    """Print the settings in which two runs differ, defaults included.

    \b
    Examples:
      peftlab results diff 3f2a91 b07c44
      peftlab results diff experiments/lora/r16 experiments/lora/r32 --json
    """
    from peftlab.cli import records

    records.diff(first, second, folder=folder or context.obj, as_json=json)


@results_app.command(name="export")
def results_export(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Folder to write below.")],
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="As for show; none: all that the format can express.")
    ] = None,
    dialect: Format = "s0",
    folder: ResultsOrParents = None,
) -> None:
    """Write runs as result files of another system; a run that its format cannot express is refused, not bent.

    \b
    Examples:
      peftlab results export --format s0 --to exchange
      peftlab results export --format s0 3f2a91 --to exchange
      peftlab results export --format s3 3f2a91 --to exchange

    Writes files below <DIR>, named as that system names them. One that is there with other content is never replaced.
    """
    from peftlab.cli import exchanging

    exchanging.export(runs or [], dialect=dialect, to=to, folder=folder or context.obj)


@results_app.command(name="import")
def results_import(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Result files of the other system.")],
    dialect: Format = "s0",
    folder: ResultsOrParents = None,
) -> None:
    """Read result files of another system in as runs: files of s0 have scores alone, files of s3 every answer.

    \b
    Examples:
      peftlab results import method_comparison/MetaMathQA/results/*.json
      peftlab results import --format s3 checkpoint-500/output_boolq_eval.jsonl
      peftlab results import --results elsewhere old.json

    Writes one record per file, or none when a file is damaged. A file that was imported before is not taken twice.
    """
    from peftlab.cli import exchanging

    exchanging.import_files(files, dialect=dialect, folder=folder or context.obj)
