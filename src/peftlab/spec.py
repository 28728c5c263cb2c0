"""Frozen models of a run; strict loading from folder + task + overrides; its keys, arm and method.

Everything here is declared, not measured: no torch, no download. The keys are explained in docs/design/keys.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from peftlab import references
from peftlab.digest import digest
from peftlab.errors import UserError, nearest
from peftlab.groups import (
    GROUPS,
    BatchSettings,
    DataSettings,
    GenerationSettings,
    ModelSettings,
    OptimSettings,
    TrainSettings,
)
from peftlab.settings import Settings, declared, read_json, setting, validated
from peftlab.task import Part, Task
from peftlab.task import load as load_task

PROTOCOL = 1
"""Raised only when the meaning of a run changes; it is part of every key."""

TEXT_WINDOWS, TEXT_WINDOW_TOKENS = 64, 256
"""The forgetting text: its first so many windows of so many tokens."""

ADAPTER_FILE = "adapter_config.json"
PARAMETER_FILES = ("training_params.json", "training_parameters.json")
BOOKKEEPING = ("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
"""Keys of an adapter config that say nothing about the adapter."""

_LISTED = "peftlab list settings names every setting with its type, default and meaning"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


class RunSpec(Settings):
    """One run: what is trained on what, with which seed. Two runs with equal `train_key` are the same run."""

    experiment: str = setting(..., "method/name of the folder", key="none")
    folder: str = setting("", "where the experiment lies", key="none")
    task: Task = setting(...)
    seed: int = setting(0, "drives data order, adapter start, dropout and sampling", ge=0)
    adapter: dict[str, Any] | None = setting(None, "peft's own config; null: full fine-tuning")
    model: ModelSettings = setting(...)
    optim: OptimSettings = setting(...)
    batch: BatchSettings = setting(...)
    train: TrainSettings = setting(...)
    generation: GenerationSettings = setting(...)
    data: DataSettings = setting(...)

    @model_validator(mode="after")
    def _fits_task(self) -> RunSpec:
        if self.train.eval_steps is not None and self.task.valid is None:
            raise ValueError(f"train.eval_steps is set, but task '{self.task.name}' has no validation rows")
        if self.generation.chat_template and self.task.kind != "generate":
            raise ValueError(f"generation.chat_template is set, but task '{self.task.name}' generates nothing")
        if self.generation.few_shot and self.task.kind == "classify":
            raise ValueError(f"generation.few_shot is set, but task '{self.task.name}' shows no prompt")
        return self

    # ------------------------------------------------------------------------------------------------- identity

    @property
    def method(self) -> str:
        """Lower-case peft type with its variant, or `full`."""
        return method_name(self.adapter)

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step, over all processes."""
        return self.batch.per_device_train_batch_size * self.batch.gradient_accumulation_steps

    def identity(self) -> dict[str, Any]:
        """Everything declared that can change the weights or the points of the curve; what the train key hashes."""
        groups = {name: declared(getattr(self, name), "train") for name in GROUPS}
        groups["model"] = {**groups["model"], **references.content(self.model.id, self.model.revision)}
        identity: dict[str, Any] = {"protocol": PROTOCOL, "seed": self.seed, "task": self.task.identity()}
        identity.update({name: group for name, group in groups.items() if group})
        if self.adapter is not None:
            identity["adapter"] = {key: value for key, value in self.adapter.items() if key not in BOOKKEEPING}
        if self.train.steered:
            identity["steering"] = {
                "evaluation": self._evaluation("valid"),
                "grader": self.task.grader.model_dump(mode="json"),
                "metrics": list(self.task.metrics.items()),
            }
        return identity

    @property
    def train_key(self) -> str:
        """Names the record."""
        return digest(self.identity())

    @property
    def arm(self) -> str:
        """The identity without the seed: what groups the seeds of one configuration."""
        return digest({name: value for name, value in self.identity().items() if name != "seed"})

    @property
    def stem(self) -> str:
        """Name of the record and its folder."""
        experiment = self.experiment.replace("/", "--")
        return f"{experiment}--{self.task.name}--seed{self.seed}--{self.train_key[:12]}"

    def _evaluation(self, part: Part) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "protocol": PROTOCOL,
            "task": self.task.evaluation_identity(part),
            "generation": declared(self.generation, "eval") if self.task.kind == "generate" else {},
            "batch": declared(self.batch, "eval"),
            "data_seed": self.data.data_seed,
        }
        if self.task.kind != "generate":
            identity["max_length"] = self.data.max_length
        if self.generation.few_shot:
            others = {part: source.identity() for part in ("valid", "test") if (source := getattr(self.task, part))}
            identity["shots"] = {"count": self.generation.few_shot, "task": self.task.identity(), **others}
        if self.generation.do_sample:
            identity["seed"] = self.seed
        return identity

    def evaluation_key(self, part: Part, source: Mapping[str, Any]) -> str:
        """Names one evaluation: rows, prompt, limits and batch of `part`, of the weights that `source` identifies."""
        return digest({**self._evaluation(part), "source": dict(source)})

    def text_key(self, source: Mapping[str, Any]) -> str:
        """Names the loss on the forgetting text of the weights that `source` identifies."""
        text = {"name": self.data.forgetting, "windows": TEXT_WINDOWS, "tokens": TEXT_WINDOW_TOKENS}
        return digest({"protocol": PROTOCOL, "text": text, "source": dict(source)})

    def step_identity(self, step: int) -> dict[str, Any]:
        """The weights of this run after `step` steps."""
        return {"run": self.train_key, "step": step}

    def base_identity(self) -> dict[str, Any]:
        """The bare model: reference, content and arithmetic."""
        arithmetic = ("id", "revision", "dtype", "attn_implementation", "matmul_precision", "trust_remote_code")
        plain = {name: value for name, value in declared(self.model, "train").items() if name in arithmetic}
        return {**plain, **references.content(self.model.id, self.model.revision)}


def method_name(adapter: Mapping[str, Any] | None) -> str:
    """`full`, or the peft type in lower case followed by its variants.

    A variant shows in the config itself: `use_<variant>: true`, a non-empty `<variant>_config`, or a string as the
    way of initialising. So a variant that is new in peft gets its name without code here.
    """
    if adapter is None:
        return "full"
    variants = set()
    for key, value in adapter.items():
        if key.startswith("use_") and value is True:
            variants.add(key.removeprefix("use_"))
        elif key.startswith("init_") and isinstance(value, str):
            variants.add(value)
        elif key.endswith("_config") and value:
            variants.add(key.removesuffix("_config"))
    return "_".join([str(adapter["peft_type"]).lower(), *sorted(variants)])


# ----------------------------------------------------------------------------------------------------- loading


def load(
    path: str | Path, *, task: str | None = None, seed: int | None = None, overrides: Mapping[str, Any] | None = None
) -> RunSpec:
    """Resolve an experiment folder, a task and overrides to one frozen RunSpec.

    Args:
        path: `experiments/<method>/<name>/`, holding an optional adapter_config.json and training_params.json.
        task: A task's name; overrides the folder's.
        seed: Overrides the folder's.
        overrides: Dotted keys to values, such as `{"optim.learning_rate": 2e-4}`.

    Raises:
        UserError: Anything wrong in the folder, the files or the overrides.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"experiment folder not found: {folder}",
            fix=_similar_folder(folder) or "give the path of a folder experiments/<method>/<name>/",
        )
    adapter, parameters, where = _read_folder(folder)
    plain: dict[str, Any] = {name: dict(_group(parameters, name, where)) for name in GROUPS}
    top = {name: value for name, value in parameters.items() if name not in GROUPS}
    if task is not None:
        top["task"] = task
    if seed is not None:
        top["seed"] = seed
    for key, value in (overrides or {}).items():
        _override(plain, top, key, value)
    if overrides or task is not None or seed is not None:
        where += " with the settings of the command line"
    _known_top_level(top, where)
    if not isinstance(top.get("task"), str):
        raise UserError(f"{folder}: no task is named", fix="add task=NAME (peftlab list tasks), or 'task' in the file")
    groups = {
        name: validated(model, plain[name], where=f"{where} [{name}]", fix=_LISTED) for name, model in GROUPS.items()
    }
    refuse_model_code(plain["model"], overrides or {}, where)
    resolved_task = _with_rows(load_task(top["task"]), groups["data"])
    names = {"experiment": _experiment_name(folder), "seed": top.get("seed", 0)}
    parts = {"folder": str(folder), "task": resolved_task, "adapter": adapter}
    groups["generation"] = _task_limits(groups["generation"], plain["generation"], resolved_task)
    return validated(RunSpec, {**names, **parts, **groups}, where=where, fix=_LISTED)


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
    resolved_task = _with_rows(load_task(task), groups["data"])
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
    if task is not None:  # another task has its own limits and rows
        defaults = GenerationSettings()
        plain["generation"].update(stop=list(defaults.stop), max_new_tokens=defaults.max_new_tokens)
        plain["data"].update(train_rows=None, valid_rows=None, test_rows=None)
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
    resolved = _with_rows(resolved, groups["data"])
    if task is not None:
        given = {key.partition(".")[2]: value for key, value in overrides.items() if key.startswith("generation.")}
        groups["generation"] = _task_limits(groups["generation"], given, resolved)
    fields = {name: getattr(spec, name) for name in RunSpec.model_fields}
    return validated(RunSpec, {**fields, **groups, "task": resolved}, where="command line")


def _refuse_rows(key: str, task: Task) -> None:
    """Drawing other test rows from the rows that were trained on would score what was learnt by heart."""
    shared = task.train is not None and task.test is not None and task.train.pool == task.test.pool
    if key in ("data.train_rows", "data.valid_rows") or (key == "data.test_rows" and shared):
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


def _read_folder(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any], str]:
    found = [name for name in PARAMETER_FILES if (folder / name).is_file()]
    if len(found) == 2:
        raise UserError(f"{folder} holds both {' and '.join(found)}", fix="they are one file under two names: keep one")
    known = {ADAPTER_FILE, *PARAMETER_FILES}
    for file in sorted(folder.glob("*.json")):
        if file.name not in known:
            guess = nearest(file.name, known)
            fix = f"did you mean '{guess}'?" if guess else f"known files: {', '.join(sorted(known))}"
            raise UserError(f"unknown file in the experiment folder: {file}", fix=fix)
    adapter_path = folder / ADAPTER_FILE
    adapter = read_json(adapter_path) if adapter_path.is_file() else None
    if adapter is not None and not isinstance(adapter.get("peft_type"), str):
        raise UserError(f"{adapter_path}: 'peft_type' is required", fix='add for example "peft_type": "LORA"')
    if not found and adapter is None:
        inside = sorted(str(path.parent) for name in known for path in folder.glob(f"*/{name}"))
        fix = f"name one of those in it, such as {inside[0]}" if inside else f"add {PARAMETER_FILES[0]}"
        raise UserError(f"{folder} holds no experiment: no {PARAMETER_FILES[0]}, no {ADAPTER_FILE}", fix=fix)
    where = str(folder / (found[0] if found else PARAMETER_FILES[0]))
    return adapter, read_json(folder / found[0]) if found else {}, where


def _group(parameters: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = parameters.get(name, {})
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: '{name}' is a group and must be an object, not {json.dumps(value)}", fix="write {...}"
        )
    return value


def _override(groups: dict[str, dict[str, Any]], top: dict[str, Any], key: str, value: Any) -> None:
    group, dot, name = key.partition(".")
    if not dot:
        if key in GROUPS:
            raise UserError(f"override '{key}' names a group", fix=f"name one of its settings: {key}.<setting>=value")
        top[key] = value
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


def _known_top_level(top: Mapping[str, Any], where: str) -> None:
    known = ["task", "seed", *GROUPS]
    for key in top:
        if key not in known:
            owners = [f"{group}.{key}" for group, model in GROUPS.items() if key in model.model_fields]
            guess = owners[0] if owners else nearest(key, known)
            hint = f"did you mean '{guess}'?" if guess else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'", fix=hint)


def _with_rows(task: Task, data: Any) -> Task:
    changes = {}
    for part in ("train", "valid", "test"):
        rows = getattr(data, f"{part}_rows")
        if rows is None:
            continue
        source = getattr(task, part)
        if source is None:
            raise UserError(f"data.{part}_rows: task '{task.name}' has no {part} part", fix="remove the setting")
        place = f"data.{part}_rows = {rows}"
        changes[part] = validated(type(source), {**source.model_dump(), "sample": rows}, where=place, fix=_LISTED)
    return task.model_copy(update=changes)


def _task_limits(generation: Any, given: Mapping[str, Any], task: Task) -> GenerationSettings:
    """The task's own limit and stop strings stand in the default's place, not in the user's."""
    update: dict[str, Any] = {}
    if "max_new_tokens" not in given and task.max_new_tokens is not None:
        update["max_new_tokens"] = task.max_new_tokens
    if "stop" not in given and task.stop:
        update["stop"] = task.stop
    resolved: GenerationSettings = generation.model_copy(update=update)
    return resolved


def _experiment_name(folder: Path) -> str:
    parts = folder.resolve().parts[-2:]
    for part in parts:
        if not _SAFE_NAME.fullmatch(part):
            raise UserError(
                f"the folder name '{part}' cannot name a result", fix="use letters, digits and . _ + = - only"
            )
    return "/".join(parts)


def _similar_folder(folder: Path) -> str | None:
    """Every name of the path that is not there is replaced by the nearest one that is."""
    found = Path(folder.anchor)
    for name in folder.parts[len(found.parts) :]:
        guess: str | None = name
        if not (found / name).is_dir():
            guess = nearest(name, [child.name for child in found.iterdir() if child.is_dir()])
        if guess is None:
            return None
        found /= guess
    return f"did you mean '{found}'?"
