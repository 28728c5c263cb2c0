"""`peftlab check`: says everything that is wrong with experiment folders and task files, and what a run would be.

Runs and writes nothing, and imports no code from outside peftlab, but for a grader that `--plugins` allows where it
steers the run: its version is in the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from peftlab import protocols
from peftlab.cli import arguments, catalogue, problem_text, tables, units
from peftlab.config import references, task
from peftlab.config.folders import PARAMETER_FILES, YAML_SUFFIXES, shared_files
from peftlab.config.settings import read_json, read_yaml
from peftlab.config.source import Source
from peftlab.config.spec import ADAPTER_FILE, RunSpec
from peftlab.errors import UserError, unknown_name
from peftlab.modelling import beginning

DEFAULT_FOLDER = "experiments"


def check(words: Sequence[str], *, with_model: bool, dialect: str | None = None) -> None:
    """Check every path, print what each would run, and report all problems of all paths.

    Raises:
        typer.Exit: With code 2 when anything is wrong.
        UserError: There is nothing to check.
    """
    paths, settings = arguments.split(words)
    overrides = arguments.parse(settings)
    targets = [target for path in paths or [DEFAULT_FOLDER] for target in _targets(path)]
    problems = 0
    for target in targets:
        found = _check_one(target, overrides, with_model=with_model, dialect=dialect)
        problems += len(found)
        for problem in found:
            typer.echo(problem_text(problem), err=True)
    what = f"{len(targets)} checked"
    typer.echo(
        f"{what}, {problems} problem{'s' if problems != 1 else ''}" if problems else f"{what}, all well", err=True
    )
    if problems:
        raise typer.Exit(2)


def _targets(path: str) -> list[str]:
    """A task or its file, an experiment's folder or file, a folder of such files, or all experiments below one."""
    folder = Path(path)
    if not folder.is_dir():
        if path == DEFAULT_FOLDER:
            raise UserError(
                f"nothing to check: there is no folder {DEFAULT_FOLDER}/ here", fix="name folders or task files"
            )
        return [path]
    singles = sorted(str(file) for file in folder.iterdir() if file.suffix in YAML_SUFFIXES)
    if singles and not any((folder / name).is_file() for name in (ADAPTER_FILE, *PARAMETER_FILES)):
        return singles
    shared = shared_files()
    files = (file for file in folder.rglob("*.json") if file.name not in shared)
    inside = {
        str(file.parent) for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    return sorted(inside) or [path]


def _check_one(target: str, overrides: Mapping[str, Any], *, with_model: bool, dialect: str | None) -> list[UserError]:
    problems: list[UserError] = []
    try:
        if _is_for_a_launcher(target):
            _print(target, {"kind": "settings of a launcher, which it looks at itself"})
        elif _names_task(target):
            _report_task(task.load(target), problems)
        else:
            _check_files(Path(target), problems)
            spec = arguments.load_spec(target, overrides, dialect)
            _report_run(target, spec, problems, with_model=with_model)
    except UserError as error:
        problems.append(error)
    except OSError as error:
        problems.append(UserError(f"{target} cannot be read: {error}", fix="check the file and its permissions"))
    return list({problem.message: problem for problem in problems}.values())


def _is_for_a_launcher(target: str) -> bool:
    """A file as `accelerate config` writes it, which lies beside experiments that are single files."""
    path = Path(target)
    return path.suffix in YAML_SUFFIXES and path.is_file() and "distributed_type" in read_yaml(path)


def _names_task(target: str) -> bool:
    """A task's name or its file; a YAML that is a whole experiment has a model in it, or nothing of a task."""
    path = Path(target)
    if path.suffix in YAML_SUFFIXES and path.is_file():
        content = read_yaml(path)
        return "model" not in content and not content.keys().isdisjoint(task.Task.model_fields)
    return path.suffix in YAML_SUFFIXES or (not path.exists() and target in task.available())


def _check_files(folder: Path, problems: list[UserError]) -> None:
    """Each file by itself, because loading the folder stops at the first mistake."""
    for name in (ADAPTER_FILE, *PARAMETER_FILES):
        try:
            content = read_json(folder / name) if (folder / name).is_file() else {}
        except UserError as error:
            problems.append(error)
        else:
            if name == ADAPTER_FILE and isinstance(content.get("peft_type"), str):
                _look_up_peft_type(problems, content["peft_type"], folder / name)


def _report_task(checked: task.Task, problems: list[UserError]) -> None:
    _look_up_grading(problems, checked)
    lines: dict[str, tables.Cell] = {"kind": checked.kind, "metric": checked.primary_metric}
    for part in task.PARTS:
        source: Source | None = getattr(checked, part)
        lines[part] = _rows_text(source) if source else "none"
    if checked.known_leaks:
        lines["known leak"] = "\n".join(checked.known_leaks)
    _print(f"task {checked.name}", lines)


def _report_run(target: str, spec: RunSpec, problems: list[UserError], *, with_model: bool) -> None:
    _look_up_grading(problems, spec.task)
    _look_up(problems, "engines", spec.generation.engine, where="generation.engine")
    lines: dict[str, tables.Cell] = {"experiment": spec.experiment, "method": spec.method}
    try:
        lines.update(_keys(spec))
    except references.NotInstalled as error:  # the content of the model's files is part of them
        lines["keys"] = f"not computable: {error.message} ({error.fix})"
    if with_model and not problems:
        lines["parameters"] = _parameters_text(spec)
    try:
        beginning.check(spec)
    except UserError as error:
        problems.append(error)
    notes = [*spec.notes, *filter(None, [last_batch_note(spec)]), *(f"cannot run yet: {text}" for text in spec.unready)]
    notes += [f"known leak: {sentence}" for sentence in spec.task.known_leaks]
    if notes:
        lines["note"] = "\n".join(notes)
    _print(target, lines)


def _keys(spec: RunSpec) -> dict[str, tables.Cell]:
    lines: dict[str, tables.Cell] = {"run": spec.stem, "train key": spec.train_key, "arm": spec.arm}
    for part in ("valid", "test"):
        if getattr(spec.task, part) is not None:
            steps = spec.train.max_steps
            known = steps is not None
            lines[f"{part} key"] = (
                spec.evaluation_key(part, spec.step_identity(steps or 0)) if known else "once the steps are counted"
            )
            lines[f"{part} key of the base"] = spec.evaluation_key(part, spec.base_identity())
    return lines


def _look_up(problems: list[UserError], kind: str, name: str, *, where: str) -> None:
    """Our own plug-ins are looked at; code from outside is not imported by a check."""
    if ":" not in name and name not in protocols.names(kind):
        problems.append(unknown_name(kind.removesuffix("s"), name, protocols.names(kind), where=where))


def _look_up_grading(problems: list[UserError], checked: task.Task) -> None:
    if checked.grader is not None and ":" in checked.grader.name:
        return
    try:
        task.measured_metrics(checked)
    except UserError as error:
        problems.append(error)


def _look_up_peft_type(problems: list[UserError], wanted: str, path: Path) -> None:
    known = catalogue.peft_types()
    if ":" in wanted:  # code from outside is not imported by a check
        return
    if known and wanted.upper() not in known and wanted.lower() not in protocols.names("methods"):
        problems.append(unknown_name("peft_type", wanted, known, where=str(path)))


def _parameters_text(spec: RunSpec) -> str:
    from peftlab.modelling import counting

    counts = counting.count_parameters(spec)
    if counts.trainable is None or counts.total is None:
        return f"not computable: {counts.reason}"
    how = "counted without weights" if counts.source == "meta" else "counted on the weights"
    return f"{counts.trainable:,} of {counts.total:,} trainable ({units.share(counts.trainable, counts.total)}), {how}"


def last_batch_note(spec: RunSpec) -> str | None:
    """A sentence when the last validation batch would be under half full, as far as the number of rows is declared."""
    source = spec.task.valid
    if source is None:
        return None
    rows = source.sample if isinstance(source.sample, int) else source.size if source.sample is None else None
    batch = spec.batch.per_device_eval_batch_size
    if rows is None or not 0 < rows % batch < batch / 2:
        return None
    return f"the last validation batch holds {rows % batch} of {batch} rows ({rows} rows in all)"


def _rows_text(source: Source) -> str:
    if source.generator is not None:
        return f"{source.generator}, {source.size} rows generated from seed {source.seed}"
    drawn = f", {source.sample} drawn" if source.sample is not None else ""
    fixed = references.is_commit(source.revision) or references.is_local(source.dataset or "")
    pinned = "" if fixed else ", revision not pinned"
    subset = f" ({', '.join(str(one.subset) for one in source.each())})" if source.subset else ""
    return f"{source.dataset}{subset} {source.split}{drawn}{pinned}"


def _print(title: str, lines: Mapping[str, tables.Cell]) -> None:
    typer.echo(title)
    tables.write_pairs({f"  {name}": value for name, value in lines.items()})
