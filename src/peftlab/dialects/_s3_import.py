"""Evaluation files of the HiRA baselines read as records, their answers included, so that they are graded again here.

A file `output_<data set>_eval.jsonl` has a row of arguments, the adapter's config, memory and time, and the counts of
parameters, then one row an item: `context`, `pred`, `gt`. `predictions_<data set>.json` holds the same as one object.
Scores are not in these files: they are made here, by the parsers that each data set has there and has here.

What a file does not say stays unknown: a step that stands neither in the arguments nor in the folder's name, a seed
that was not set, and a memory that is the whole device's at the end and no peak.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from peftlab.config.groups import GenerationSettings
from peftlab.dialects._s3_names import DATASETS, FULL, LETTERS, NAME, OWN_ROW, Graded
from peftlab.digest import digest
from peftlab.errors import UserError, unknown_name
from peftlab.foreign import ForeignItems
from peftlab.protocols import Example, Grade, Grader, Prediction, find, metric_name

_FIX = "is this an evaluation file of dialect s3, whole as it was written?"
_STEP = re.compile(r"checkpoint-(\d+)")
_TRAINED_ON = re.compile(rf"-({'|'.join(sorted(DATASETS, key=len, reverse=True))})-[a-z0-9]+-lr=")
_NOT_OF_THE_ARM = ("seed", "ckpt", "output_folder", "local_rank", "exp_name", "num_workers", "load_order", OWN_ROW)
_NO_ADAPTER_KEYS = ("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")


# -------------------------------------------------------------------------------------------------------- the file


def parse(text: str, where: str) -> dict[str, Any]:
    """A file as `args`, `peft_config`, the figures of training, and `samples`; both kinds of file come to the same.

    Raises:
        UserError: It is no such file.
    """
    try:
        if PurePath(where).suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = _rows_of_object(json.loads(text), where)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}", fix=_FIX) from None
    head = [row for row in rows if not _is_sample(row)]
    samples = [row for row in rows if _is_sample(row)]
    if not head or not isinstance(head[0], dict) or "dataset" not in head[0]:
        raise UserError(f"{where}: its first row is no row of arguments, which names model and data set", fix=_FIX)
    if not samples:
        raise UserError(f"{where}: no row has 'pred' and 'gt', so there is nothing to grade", fix=_FIX)
    figures = {name: row[name] for row in head[1:] if isinstance(row, dict) for name in _FIGURES if name in row}
    configs = [row for row in head[1:] if isinstance(row, dict) and "peft_type" in row]
    return {"args": head[0], "peft_config": configs[0] if configs else None, "figures": figures, "samples": samples}


_FIGURES = ("mem_used", "train_seconds", "trainable", "all")


def _rows_of_object(found: Any, where: str) -> list[Any]:
    if not isinstance(found, dict) or not isinstance(found.get("predictions"), list):
        raise UserError(
            f"{where}: no object with 'args' and 'predictions': such a file says not what was trained",
            fix="import the output_..._eval.jsonl beside it",
        )
    head = [found.get("args"), found.get("peft_config"), found.get("figures") or {}]
    return [*head, *found["predictions"]]


def _is_sample(row: Any) -> bool:
    return isinstance(row, dict) and "pred" in row and "gt" in row


# ------------------------------------------------------------------------------------------------------ the record


def import_result(result: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A file as a record in plain data: one run with one evaluation; its key is the digest of the content.

    Raises:
        UserError: The file is damaged or something else; names the field.
    """
    args, own = result["args"], dict(result["args"].get(OWN_ROW) or {})
    dataset = _dataset(args, where)
    graded, key = DATASETS[dataset], digest([args, result["samples"]])
    adapter = _adapter(result, where)
    seed, step, unknown = _number(args, "seed", where), _step(args, own, where), _unknown(result)
    if seed is None:
        unknown["seed"] = "the file names none; it is filed as seed 0"
    if step is None:
        unknown["step"] = "neither the arguments nor the folder's name say which checkpoint; it is filed as step 0"
    arm = {name: value for name, value in args.items() if name not in _NOT_OF_THE_ARM}
    plain_adapter = {name: value for name, value in (adapter or {}).items() if name not in _NO_ADAPTER_KEYS}
    figures = result["figures"]
    return {
        "version": 1,
        "status": "finished",
        "category": own.get("category", "main"),
        "key": key,
        "arm": digest({"imported_from": NAME, "task": graded.task, "args": arm, "peft_config": plain_adapter}),
        "experiment": own.get("experiment") or _experiment(args, adapter, where),
        "method": str((adapter or {}).get("peft_type", "full")).lower(),
        "task": own.get("task") or _trained_on(args, where) or graded.task,
        "seed": int(seed or 0),
        "created_at": own.get("created_at"),
        "identity": {"imported_from": NAME, "content": key},
        "spec": _spec(args, adapter, graded.task, where),
        "evaluations": [_evaluation(result, graded, key, int(step or 0), where)],
        "before_reason": "the file has the trained model's answers only",
        "training": {"step": step, "role": "last", "last_step": step},
        "cost": {
            "seconds": {"train": float(seconds)} if (seconds := _number(figures, "train_seconds", where)) else {},
            "num_trainable_parameters": _count(figures, "trainable", where),
            "num_parameters": _count(figures, "all", where),
            "unknown": unknown,
        },
        "provenance": {"imported_from": NAME, "exported_key": own.get("key"), "args": dict(args)},
    }


def import_items(result: Mapping[str, Any], where: str) -> dict[str, ForeignItems]:
    """The answers of the file's one evaluation, with their grades."""
    graded = DATASETS[_dataset(result["args"], where)]
    key = _evaluation_key(digest([result["args"], result["samples"]]))
    examples, predictions, grades = _graded(result, graded, where)
    samples = [
        {
            "item": example.item,
            "columns": dict(example.columns),
            "reference": example.reference,
            **({"choices": list(example.choices)} if example.choices else {}),
            "prediction": {name: value for name, value in vars(prediction).items() if value not in (None, ())},
            "grades": {mode: _judged(found[index]) for mode, found in grades.items()},
        }
        for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
    ]
    items = [example.item for example in examples]
    return {key: ForeignItems(items=items, samples=samples, outcomes=_outcomes(graded, grades, examples))}


def _judged(grade: Grade) -> dict[str, Any]:
    return {name: value for name, value in vars(grade).items() if name != "why"}  # its graders tell no kinds apart


def _evaluation_key(key: str) -> str:
    return digest({"imported": key, "part": "test"})


def _evaluation(result: Mapping[str, Any], graded: Graded, key: str, step: int, where: str) -> dict[str, Any]:
    examples, _, grades = _graded(result, graded, where)
    outcomes = _outcomes(graded, grades, examples)
    grader: Grader = find("graders", graded.grader)
    summary = dict(grader.summary(grades[graded.modes[0]], examples))
    baselines = {name: value for name, value in summary.items() if name.startswith("baseline")}
    return {
        "key": _evaluation_key(key),
        "what": "task",
        "task": graded.task,
        "part": "test",
        "checkpoint": step,
        "role": "last",
        "metrics": {name: _metric(values) for name, values in outcomes.items()},
        "num_items": len(examples),
        "grader": {"name": graded.grader, "modes": list(graded.modes), "version": grader.version},
        "baselines": baselines,
        "settings": _settings(result["args"], where),
        "notes": {name: value for name, value in summary.items() if name not in baselines},
    }


def _metric(values: Sequence[float]) -> dict[str, Any]:
    """Mean and its standard error over items: s / sqrt(n), with the sample standard deviation."""
    count, mean = len(values), math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else None
    return {"mean": mean, "standard_error": error, "n": count, "direction": "higher"}


# ------------------------------------------------------------------------------------------------------ the answers


def _graded(
    result: Mapping[str, Any], graded: Graded, where: str
) -> tuple[list[Example], list[Prediction], dict[str, list[Grade]]]:
    pairs = [_pair(row, graded, f"{where}: answer {number}") for number, row in enumerate(result["samples"], start=1)]
    grader: Grader = find("graders", graded.grader)
    try:
        grades = {
            mode: [grader.grade(prediction, example, mode) for example, prediction in pairs] for mode in graded.modes
        }
    except UserError as error:
        raise UserError(f"{where}: {error.message}", fix=error.fix) from error
    return [example for example, _ in pairs], [prediction for _, prediction in pairs], grades


def _pair(row: Mapping[str, Any], graded: Graded, where: str) -> tuple[Example, Prediction]:
    context, said, gold = (_text(row, name, where) for name in ("context", "pred", "gt"))
    item = row.get("item") or digest({"context": context, "gt": gold})
    columns = {"context": context, "gt": gold}
    if graded.grader != "choice":
        return Example(item=item, reference=gold, columns=columns), Prediction(text=said)
    right = _letter(gold)
    if right is None:
        raise UserError(f"{where}: 'gt' = {gold[:60]!r} is none of {', '.join(LETTERS)}", fix=_FIX)
    choices = tuple(f" {letter}" for letter in LETTERS)
    return (
        Example(item=item, reference=right, choices=choices, columns=columns),
        Prediction(text=said, index=_letter(said)),
    )


def _letter(text: str) -> int | None:
    first = text.strip()[:1].upper()
    return LETTERS.index(first) if first in LETTERS else None


def _outcomes(
    graded: Graded, grades: Mapping[str, Sequence[Grade]], examples: Sequence[Example]
) -> dict[str, list[float]]:
    grader: Grader = find("graders", graded.grader)
    found = {metric_name(grader, mode): [one.score for one in made] for mode, made in grades.items()}
    whole = grader.corpus(grades[graded.modes[0]], examples)
    return {**found, **{name: list(values) for name, values in whole.items()}}


# ------------------------------------------------------------------------------------------------------- arguments


def _dataset(args: Mapping[str, Any], where: str) -> str:
    name = _text(args, "dataset", where)
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS, where=where)
    return name


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        state = "is missing" if name not in row else f"= {str(value)[:60]!r} is no text"
        raise UserError(f"{where}: '{name}' {state}", fix=_FIX)
    return value


def _number(row: Mapping[str, Any], name: str, where: str) -> int | float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: '{name}' = {str(value)[:60]!r} is no number of 0 or more", fix=_FIX)
    return value


def _count(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = _number(row, name, where)
    return None if value is None else int(value)


def _adapter(result: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The adapter's config as the file has it; of a method of theirs that has none, what the arguments say."""
    kind = _text(result["args"], "peft_type", where).lower()
    if kind == FULL:
        return None
    if result["peft_config"] is not None:
        return {**result["peft_config"], "peft_type": str(result["peft_config"]["peft_type"]).rpartition(".")[2]}
    if not re.fullmatch(r"[a-z][a-z0-9_]*", kind):
        raise UserError(f"{where}: 'peft_type' = {kind[:60]!r} is no name of a method", fix=_FIX)
    targets = result["args"].get("target_modules")
    named = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else targets
    rank = _count(result["args"], "r_ab", where)
    found = {"peft_type": kind.upper(), "r": rank, "target_modules": named}
    return {name: value for name, value in found.items() if value is not None}


def _experiment(args: Mapping[str, Any], adapter: Mapping[str, Any] | None, where: str) -> str:
    method = "full-finetuning" if adapter is None else str(adapter["peft_type"]).lower()
    model = _text(args, "model_name", where).rstrip("/").rpartition("/")[2]
    rank = f"-r{adapter['r']}" if adapter and adapter.get("r") else ""
    name = args.get("exp_name") or f"{model}{rank}"
    safe = re.sub(r"[^A-Za-z0-9._+=-]+", "-", str(name)).lstrip("._+=-")
    return f"{method}/{safe or 'unnamed'}"


def _trained_on(args: Mapping[str, Any], where: str) -> str | None:
    """Our task for what the checkpoint was trained on, which stands in the name of its folder."""
    found = _TRAINED_ON.search(str(args.get("ckpt") or "")) or _TRAINED_ON.search(where)
    return DATASETS[found[1]].task if found else None


def _step(args: Mapping[str, Any], own: Mapping[str, Any], where: str) -> int | None:
    found = _STEP.search(str(args.get("ckpt") or "")) or _STEP.search(where)
    return own.get("step") if found is None else int(found[1])


def _unknown(result: Mapping[str, Any]) -> dict[str, str]:
    found = {"adapter_bytes": "the file does not say it"}
    if "mem_used" in result["figures"]:
        found["memory"] = f"the file says {result['figures']['mem_used']} MiB: the whole device's at the end, no peak"
    return found


def _spec(args: Mapping[str, Any], adapter: Mapping[str, Any] | None, task: str, where: str) -> dict[str, Any]:
    """The arguments under our names, as far as the file has them."""
    bits = _count(args, "load_bit", where)
    named: dict[str, dict[str, Any]] = {
        "model": {
            "id": _text(args, "model_name", where),
            "dtype": "float32" if bits == 32 else None,  # 16 is bfloat16 where the device has it, else float16
            "gradient_checkpointing": args.get("enable_grad_ckpt"),
        },
        "quant": {"method": "bnb-int8" if bits == 8 else None},
        "optim": {
            "learning_rate": _number(args, "lr", where),
            "weight_decay": _number(args, "weight_decay", where),
            "warmup_steps": _number(args, "warmup", where),
        },
        "batch": {
            "per_device_train_batch_size": _count(args, "batch", where),
            "gradient_accumulation_steps": _count(args, "grad_acc", where),
        },
        "train": {"num_train_epochs": _number(args, "epoch", where), "eval_strategy": args.get("eval_strategy")},
        "generation": _decoding(args, where),
    }
    groups = {name: {key: value for key, value in group.items() if value is not None} for name, group in named.items()}
    return {"seed": int(_number(args, "seed", where) or 0), "task": {"name": task}, "adapter": adapter, **groups}


def _decoding(args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Beams and limits; temperature, top_p and top_k change nothing there unless `do_sample` is set."""
    greedy = args.get("decoding") == "greedy"
    return {
        "num_beams": 1 if greedy else _count(args, "beam_size", where),
        "max_new_tokens": _count(args, "max_new_tokens", where),
        "do_sample": args.get("do_sample"),
    }


def _settings(args: Mapping[str, Any], where: str) -> dict[str, Any]:
    plain = {**GenerationSettings().model_dump(mode="json"), "max_new_tokens": None}
    given = {name: value for name, value in _decoding(args, where).items() if value is not None}
    return {"model": {"id": _text(args, "model_name", where)}, "generation": {**plain, **given}}
