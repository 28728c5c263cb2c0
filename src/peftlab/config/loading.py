"""From an experiment, a task and overrides to one frozen RunSpec; strict, and every mistake has a name.

Everything here is declared, not measured: no torch, no download.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.config.folders import read
from peftlab.config.groups import BUDGETS, GROUPS, DataSettings, EndpointSettings, GenerationSettings
from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.config.spec import RunSpec
from peftlab.config.task import DEFAULTS_OF_GENERATION, Task, task_of
from peftlab.config.task import load as load_task
from peftlab.config.templates import template_fields
from peftlab.errors import UserError, nearest

_VALIDATIONS = ("eval_strategy", "eval_steps", "total_eval_times")
UNSAFE = "execution.allow_unsafe_code"
_LISTED = "peftlab list settings names every setting with its type, default and meaning"


def load(
    path: str | Path,
    *,
    task: str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    dialect: str | None = None,
) -> RunSpec:
    """Resolve an experiment, a task and overrides to one frozen RunSpec.

    Args:
        path: `experiments/<method>/<name>/`, holding an optional adapter_config.json and training_params.json; or a
            YAML file with model, adapter, task and settings in one.
        task: A task's name; overrides the experiment's.
        seed: Overrides the experiment's.
        overrides: Dotted keys to values, such as `{"optim.learning_rate": 2e-4}`.
        dialect: The foreign dialect that the experiment is written in (`s0`, `s1`); None: found out by looking.

    Raises:
        UserError: Anything wrong in the folder, the files or the overrides.
    """
    launched = _launched()
    experiment = read(
        path,
        dialect=dialect,
        overrides={**({"launch.num_processes": launched} if launched else {}), **(overrides or {})},
    )
    where = experiment.where
    plain: dict[str, Any] = {name: dict(_group(experiment.parameters, name, where)) for name in GROUPS}
    _refuse_endpoint(plain["endpoint"], where)
    _make_way(plain, overrides or {})
    top = {name: value for name, value in experiment.parameters.items() if name not in GROUPS}
    if task is not None:
        top["task"] = task
    if seed is not None:
        top["seed"] = seed
    for key, value in (overrides or {}).items():
        _override(plain, top, key, value)
    if launched:  # where the experiment has none
        plain["launch"].setdefault("num_processes", launched)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _make_deepspeed(plain["launch"])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        plain["launch"].setdefault("sharding", _fsdp())
    if overrides or task is not None or seed is not None:
        where += " with the settings of the command line"
    _known_top_level(top, where)
    if "task" not in top:
        raise UserError(f"{path}: no task is named", fix="add task=NAME (peftlab list tasks), or 'task' in the file")
    if not isinstance(top["task"], str | dict):
        raise UserError(f"{where}: 'task' = {json.dumps(top['task'])[:80]} is no task", fix="peftlab list tasks")
    groups = {
        name: validated(model, plain[name], where=f"{where} [{name}]", fix=_LISTED) for name, model in GROUPS.items()
    }
    refuse_model_code(plain["model"], overrides or {}, where)
    _refuse_unsafe(plain["execution"], overrides or {}, where)
    _refuse_escape(plain["save"].get("output_dir"), overrides or {}, where)
    resolved_task = _with_data(_task(top["task"], where), groups["data"])
    names = {"experiment": experiment.name, "seed": top.get("seed", 0), "notes": experiment.notes}
    names["unready"] = experiment.unready
    parts = {"folder": str(experiment.path), "task": resolved_task, "adapter": experiment.adapter}
    limits = groups["generation"] = _task_limits(groups["generation"], plain["generation"], resolved_task)
    if resolved_task.kind == "generate":  # what is learnt is written as what is asked, unless the user says otherwise
        asked = plain["data"].get("chat_template", limits.chat_template) or None
        groups["data"] = groups["data"].model_copy(update={"chat_template": asked})
    return validated(RunSpec, {**names, **parts, **groups}, where=where, fix=_LISTED)


def _launched() -> int | None:
    """The number of processes that a launcher started, where one did: it decides the rows of a step."""
    size = os.environ.get("WORLD_SIZE")
    if size is None or "RANK" not in os.environ:
        return None
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"the variable WORLD_SIZE = {size!r} is no number of processes", fix="unset it")
    return int(size)


def _make_deepspeed(launch: dict[str, Any]) -> None:
    """What accelerate's DeepSpeed comes to here, where the experiment does not say it.

    Raises:
        UserError: Its settings stand in no file of DeepSpeed's.
    """
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if "deepspeed" not in launch and file is None:
        raise UserError(
            "accelerate asks for DeepSpeed and names no file of its settings; those of its own are not read here",
            fix="deepspeed_config: {deepspeed_config_file: configs/deepspeed_config.json}",
        )
    launch.setdefault("deepspeed", file)


def _fsdp() -> str:
    """What accelerate's FSDP comes to here.

    Raises:
        UserError: It is the first one.
    """
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("accelerate asks for FSDP 1, there is FSDP 2 only", fix="fsdp_config: {fsdp_version: 2}")
    return "fsdp2"


def _task(named: Any, where: str) -> Task:
    """A task by name, by its file's path, or written out in the experiment itself."""
    if isinstance(named, str):
        return load_task(named)
    return task_of(named, where=f"{where} [task]")


def refuse_model_code(model: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """A received folder or record must not be able to run code: only the user's own words allow it.

    Raises:
        UserError: The file asks for it, the overrides do not.
    """
    if model.get("trust_remote_code") and not overrides.get("model.trust_remote_code"):
        raise UserError(
            f"{where}: the file asks to run code that comes with the model (model.trust_remote_code)",
            fix="if you trust that code, say so yourself on the command line: model.trust_remote_code=true",
        )


def _refuse_escape(folder: str | None, overrides: Mapping[str, Any], where: str) -> None:
    """A received file may have a folder written below the current one; anywhere else only the user's own words."""
    if folder is None or "save.output_dir" in overrides:
        return
    parts = Path(folder).parts
    odd = not parts or Path(folder).is_absolute() or ".." in parts or folder.startswith("~")
    odd = odd or "\\" in folder or "\0" in folder
    if odd or Path.cwd().resolve() not in Path(os.path.realpath(folder)).parents:  # a link may lead out
        raise UserError(
            f"{where}: save.output_dir = {json.dumps(folder)[:200]} lies outside the current folder, or is no folder",
            fix="if you want it there, say so yourself on the command line: save.output_dir=...",
        )


def _refuse_unsafe(execution: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """A received file must not have code that a model wrote run without isolation."""
    if execution.get("allow_unsafe_code") and not overrides.get(UNSAFE):
        raise UserError(
            f"{where}: the file asks to run what models write without isolation ({UNSAFE})",
            fix="if you want that, say so yourself on the command line: --allow-unsafe-code",
        )


def _refuse_endpoint(endpoint: Mapping[str, Any], where: str) -> None:
    """A received file must not have prompts, or a key from the user's environment, sent to an address of its choice."""
    if endpoint:
        raise UserError(
            f"{where}: a file cannot name a server that answers are asked from ('endpoint')",
            fix=f"say so yourself on the command line: endpoint.{next(iter(endpoint))}=...",
        )


def bare(model_id: str, *, task: str, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """A spec for scoring a model as it is, without training: only its evaluation identity is used."""
    plain: dict[str, Any] = {name: {} for name in GROUPS}
    top: dict[str, Any] = {}
    for key, value in {"model.id": model_id, **(overrides or {})}.items():
        _override(plain, top, key, value)
    _known_top_level(top, "command line")
    groups = {
        name: validated(model, plain[name], where=f"command line [{name}]", fix=_LISTED)
        for name, model in GROUPS.items()
    }
    resolved_task = _with_data(load_task(task), groups["data"])
    groups["generation"] = _task_limits(groups["generation"], plain["generation"], resolved_task)
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", model_id.rsplit(":", 1)[-1]).strip("-.")
    return validated(RunSpec, {"experiment": f"base/{name}", "task": resolved_task, **groups}, where="command line")


def with_evaluation(spec: RunSpec, *, task: str | None, overrides: Mapping[str, Any]) -> RunSpec:
    """A finished run's spec with other evaluation settings or another task; what was trained stays what it is.

    Raises:
        UserError: A setting that would have changed the training.
    """
    plain = {name: getattr(spec, name).model_dump(mode="json") for name in GROUPS}
    plain["train"]["evaluate"] = "all"
    plain["execution"]["allow_unsafe_code"] = False  # what was allowed once was allowed there and then
    plain["endpoint"] = {}  # a record's own says who was asked then
    if task is not None:  # another task has its own limits and rows
        defaults = GenerationSettings()
        plain["generation"].update(stop=list(defaults.stop), max_new_tokens=defaults.max_new_tokens)
        for name in ("chat_template", "few_shot"):
            if getattr(spec.task, name) is not None:
                plain["generation"][name] = getattr(defaults, name)
        rows = dict.fromkeys(("train_split", "max_characters", "train_rows", "valid_rows", "test_rows"))
        plain["data"].update(rows, prompt=None)
    for key, value in overrides.items():
        group, dot, name = key.partition(".")
        _refuse_rows(key, spec.task)
        if not dot:
            _refuse_top_level(key)
        field = GROUPS[group].model_fields.get(name) if group in GROUPS else None
        extra = field.json_schema_extra if field is not None else None
        if field is not None and (not isinstance(extra, dict) or extra["key"] == "train"):
            raise UserError(
                f"{key} belongs to the training of {spec.experiment}, which is done",
                fix="run it with that setting instead",
            )
        _override(plain, {}, key, value)
    groups = {
        name: validated(model, plain[name], where=f"command line [{name}]", fix=_LISTED)
        for name, model in GROUPS.items()
    }
    resolved = load_task(task) if task is not None else spec.task
    resolved = _with_data(resolved, groups["data"])
    if task is not None and not resolved.messages:  # how rows are written that are learnt says nothing of others
        groups["data"] = groups["data"].model_copy(update={"chat_template": None})
    if task is not None:
        given = {key.partition(".")[2]: value for key, value in overrides.items() if key.startswith("generation.")}
        groups["generation"] = _task_limits(groups["generation"], given, resolved)
    fields = {name: getattr(spec, name) for name in RunSpec.model_fields}
    return validated(RunSpec, {**fields, **groups, "task": resolved}, where="command line")


def for_sample(spec: RunSpec, task: Task) -> RunSpec:
    """The spec under which a run is scored on a benchmark's sample: the same for all runs but for model and batch."""
    generation = _task_limits(GenerationSettings(), {}, task)
    plain = {"data": DataSettings(), "generation": generation, "endpoint": EndpointSettings()}
    return spec.model_copy(update={"task": task, **plain})


_TRAINING_ROWS = ("data.train_split", "data.max_characters", "data.train_rows", "data.valid_rows")


def _refuse_rows(key: str, task: Task) -> None:
    """Drawing other test rows from the rows that were trained on would score what was learnt by heart."""
    shared = task.train is not None and task.test is not None and task.train.pool == task.test.pool
    if key in _TRAINING_ROWS or (key == "data.test_rows" and shared):
        raise UserError(
            f"{key} decides which rows the run was trained on, which is done", fix="run it with that setting instead"
        )


def _refuse_top_level(key: str) -> None:
    """What stands in no group makes another run, or is no setting at all."""
    if key == "task":
        raise UserError("task=... makes another run", fix="to score this one on another task, give --task NAME")
    _known_top_level({key: None}, "command line")
    raise UserError(f"'{key}' belongs to the training, which is done", fix="run it with that setting instead")


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`key=value` arguments of a command line; values are JSON where they parse as such, else text."""
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise UserError(f"'{argument}' is no setting", fix="write it as key=value, such as train.max_steps=200")
        if key in result:
            raise UserError(f"'{key}' is given twice", fix="give it once")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def _group(parameters: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = parameters.get(name, {})
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: '{name}' is a group and must be an object, not {json.dumps(value)}", fix="write {...}"
        )
    return value


def _make_way(groups: dict[str, dict[str, Any]], overrides: Mapping[str, Any]) -> None:
    """What the command line says in one way replaces what the file says in another: budgets, when to validate."""
    train = groups["train"]
    for rivals in (BUDGETS, _VALIDATIONS):
        if any(overrides.get(f"train.{name}") is not None for name in rivals):
            for name in rivals:
                train.pop(name, None)


def _override(groups: dict[str, dict[str, Any]], top: dict[str, Any], key: str, value: Any) -> None:
    group, dot, name = key.partition(".")
    if not dot:
        if key in GROUPS:
            raise UserError(f"override '{key}' names a group", fix=f"name one of its settings: {key}.<setting>=value")
        top[key] = value
        return
    if group == "task" and isinstance(top.get("task"), dict):
        top["task"] = _replaced(top["task"], name.split("."), value, key)
        return
    if group not in groups:
        guess = nearest(group, GROUPS)
        raise UserError(
            f"override '{key}': unknown group '{group}'", fix=f"groups: {', '.join(GROUPS)}; nearest: {guess}"
        )
    head, dot, rest = name.partition(".")
    if not dot:
        groups[group][name] = value
        return
    inner = groups[group].get(head, {})
    if not isinstance(inner, dict):
        raise UserError(f"override '{key}': '{head}' is not an object", fix=f"set {group}.{head} itself")
    groups[group][head] = {**inner, rest: value}


def _replaced(mapping: Mapping[str, Any], path: list[str], value: Any, key: str) -> dict[str, Any]:
    """The mapping with the value at `path` set, in a task that is written out in the experiment itself."""
    head, *rest = path
    if not rest:
        return {**mapping, head: value}
    inner = mapping.get(head)
    if not isinstance(inner, dict):
        raise UserError(f"override '{key}': '{head}' is not an object", fix=f"set task.{head} itself")
    return {**mapping, head: _replaced(inner, rest, value, key)}


def _known_top_level(top: Mapping[str, Any], where: str) -> None:
    known = ["task", "seed", *GROUPS]
    for key in top:
        if key not in known:
            owners = [f"{group}.{key}" for group, model in GROUPS.items() if key in model.model_fields]
            guess = owners[0] if owners else nearest(key, known)
            hint = f"did you mean '{guess}'?" if guess else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'", fix=hint)


def _with_data(task: Task, data: Any) -> Task:
    """The task with what the settings change of it: its rows and its prompt."""
    changes: dict[str, Any] = {}
    for part in ("train", "valid", "test"):
        rows = getattr(data, f"{part}_rows")
        if rows is None:
            continue
        source = getattr(task, part)
        if source is None:
            raise UserError(f"data.{part}_rows: task '{task.name}' has no {part} part", fix="remove the setting")
        place = f"data.{part}_rows = {rows}"
        changes[part] = validated(type(source), {**source.model_dump(), "sample": rows}, where=place, fix=_LISTED)
    if data.train_split is not None or data.max_characters is not None:
        changes["train"] = _trained_on(changes.get("train", task.train), data, task.name)
        changes |= _follows(changes.get("valid", task.valid), task.train, changes["train"])
    if data.prompt is not None:
        changes["prompt"] = data.prompt
        if task.reference in template_fields(data.prompt):
            raise UserError(
                f"data.prompt = {json.dumps(data.prompt)[:80]} shows {{{task.reference}}}, which is the answer",
                fix=f"leave {{{task.reference}}} out of the prompt",
            )
        given = {**{name: getattr(task, name) for name in type(task).model_fields}, **changes}
        return validated(type(task), given, where=f"data.prompt = {json.dumps(data.prompt)}", fix=_LISTED)
    return task.model_copy(update=changes)


def _trained_on(train: Source | None, data: Any, task_name: str) -> Source:
    """The training source with the split and the limit on characters that the settings name."""
    if train is None:
        name = "train_split" if data.train_split is not None else "max_characters"
        raise UserError(f"data.{name}: task '{task_name}' has no train part", fix="remove the setting")
    changes: dict[str, Any] = {}
    if data.train_split is not None:
        changes.update(split=data.train_split, partial=False)  # a mirror says itself what is a part
    if data.max_characters is not None:
        changes["max_characters"] = data.max_characters or None
    place = f"data.train_split = {json.dumps(data.train_split)}"
    return validated(Source, {**train.model_dump(), **changes}, where=place, fix=_LISTED)


def _follows(valid: Source | None, before: Source | None, after: Source) -> dict[str, Source]:
    """Validation that is drawn from the whole training split is drawn from the one that stands in its place.

    A slice changes what is trained on only: validation is drawn from the whole split, as before.
    """
    if valid is None or before is None or valid.pool != before.pool or after.split_name == before.split_name:
        return {}
    if valid.sample is None or valid.split != valid.split_name:
        return {}
    return {"valid": valid.model_copy(update={"split": after.split_name})}


def _task_limits(generation: Any, given: Mapping[str, Any], task: Task) -> GenerationSettings:
    """The task's own limit, stop strings and way of asking stand in the default's place, not in the user's."""
    own = {name: getattr(task, name) for name in DEFAULTS_OF_GENERATION}
    update = {name: value for name, value in own.items() if name not in given and value not in (None, ())}
    resolved: GenerationSettings = generation.model_copy(update=update)
    return resolved
