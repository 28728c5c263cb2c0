"""Records written as the HiRA baselines leave them: a folder per run, in it a file per data set that was answered.

    results_<method>/<model>-<trained on>-<method>-lr=...-seed=...-<name>-<time>/
        output.jsonl
        checkpoint-<step>/output_<data set>_eval.jsonl
        checkpoint-<step>/predictions_<data set>.json

Rows are theirs: arguments, the adapter's config, memory and time, parameters, then an item each with `context`, `pred`
and `gt`. The arguments' row has one key more, `peftlab_info`, with what theirs have no word for, and an item its id.
Only answers in words are written, and letters chosen by their logits; scores are made by whoever reads the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.config import task as tasks
from peftlab.config.templates import fill
from peftlab.dialects._s3_names import DATASETS, FULL, LETTERS, OWN_ROW, TASKS
from peftlab.errors import UserError

_MIB = 2**20


def export_files(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """Path to text of every file of a run.

    Args:
        record: A record as plain data.
        facts: `samples`: (evaluation) -> its samples.

    Raises:
        UserError: The run was imported, did not finish, or was not scored on a data set of theirs.
    """
    name = f"{record['key'][:12]} ({record['experiment']})"
    origin = record["provenance"].get("imported_from")
    if origin:
        raise UserError(f"{name} was imported from {origin}", fix="use the file that it was imported from")
    if record["status"] != "finished":
        raise UserError(f"{name} did not finish: it is {record['status']}", fix="run it again: it goes on")
    wanted = _final(record)
    if not wanted:
        scored = sorted({one["task"] for one in record["evaluations"] if one["what"] == "task"})
        raise UserError(
            f"{name} has no scored answers on a data set of s3: it was scored on {', '.join(scored) or 'nothing'}",
            fix=f"peftlab evaluate it on one of {', '.join(TASKS)}",
        )
    folder, files = _folder(record), {}
    for dataset, evaluation in wanted.items():
        args = _args(record, dataset, evaluation)
        rows = [_row(record, evaluation, one) for one in facts["samples"](evaluation)]
        if not rows:
            raise UserError(f"{name}: the answers on {evaluation['task']} are not stored", fix="evaluate it again")
        head = [args, record["spec"].get("adapter"), _run(record), _counts(record)]
        place = f"{folder}/checkpoint-{evaluation['checkpoint']}"
        files[f"{folder}/output.jsonl"] = _lines([_args(record, _trained_on(record), evaluation), *head[1:]])
        files[f"{place}/output_{dataset}_eval.jsonl"] = _lines([*head, *rows])
        whole = {"args": args, "peft_config": head[1], "figures": {**head[2], **head[3]}, "predictions": rows}
        files[f"{place}/predictions_{dataset}.json"] = json.dumps(whole, indent=1, allow_nan=False) + "\n"
    return files


def _lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _final(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The evaluations of the weights that the run ended with, by the name of the data set; of several the last."""
    found: dict[str, Mapping[str, Any]] = {}
    for role in ("last", "best"):
        for one in record["evaluations"]:
            if (one["what"], one["part"], one["role"]) == ("task", "test", role) and one["task"] in TASKS:
                found[TASKS[one["task"]]] = one
    return found


# ----------------------------------------------------------------------------------------------------------- names


def _method(record: Mapping[str, Any]) -> str:
    adapter = record["spec"].get("adapter")
    return FULL if adapter is None else str(adapter["peft_type"]).lower()


def _trained_on(record: Mapping[str, Any]) -> str:
    return TASKS.get(record["task"], record["task"])


def _folder(record: Mapping[str, Any]) -> str:
    """The folder's name as theirs are made; the end of the key keeps two runs of one second apart."""
    method = _method(record)
    model = str(_get(record, "model.id")).rstrip("/").rpartition("/")[2]
    rate, time = _get(record, "optim.learning_rate"), record["created_at"][:19].replace(":", "-")
    parts = [model, _trained_on(record), method, f"lr={rate:.2e}", f"seed={record['seed']}"]
    return f"results_{method}/{'-'.join([*parts, record['key'][:6], time])}"


def _get(record: Mapping[str, Any], name: str) -> Any:
    """A setting of the record's spec by its dotted name; None where it has none."""
    group, _, key = name.partition(".")
    return (record["spec"].get(group) or {}).get(key)


# ------------------------------------------------------------------------------------------------------------ rows

_FLAGS = {
    "model_name": "model.id",
    "batch": "batch.per_device_train_batch_size",
    "grad_acc": "batch.gradient_accumulation_steps",
    "lr": "optim.learning_rate",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup_steps",
    "epoch": "train.num_train_epochs",
    "eval_strategy": "train.eval_strategy",
    "eval_steps": "train.eval_steps",
    "early_stop_patience": "train.early_stopping_patience",
    "enable_grad_ckpt": "model.gradient_checkpointing",
    "save_total_limit": "save.save_total_limit",
}
_OF_THE_ANSWERS = {"beam_size": "num_beams", "max_new_tokens": "max_new_tokens", "do_sample": "do_sample"}


def _args(record: Mapping[str, Any], dataset: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Their arguments, as far as ours have the same meaning, and what they have no word for."""
    adapter = record["spec"].get("adapter") or {}
    targets = adapter.get("target_modules")
    generation = evaluation["settings"].get("generation") or {}
    bits = {"float32": 32, "bfloat16": 16, "float16": 16}.get(str(_get(record, "model.dtype")))
    if _get(record, "quant.method") == "bnb-int8":
        bits = 8
    given = {
        "dataset": dataset,
        "peft_type": _method(record),
        "r_ab": adapter.get("r"),
        "target_modules": ",".join(targets) if isinstance(targets, (list, tuple)) else targets,
        "load_bit": bits,
        "seed": record["seed"],
        "exp_name": record["experiment"].rpartition("/")[2],
        **{theirs: _get(record, ours) for theirs, ours in _FLAGS.items()},
        **{theirs: generation.get(ours) for theirs, ours in _OF_THE_ANSWERS.items()},
    }
    own = {
        **{name: record[name] for name in ("key", "arm", "experiment", "task", "category", "created_at")},
        "step": evaluation["checkpoint"],
        "generation": dict(generation),
        "partial": evaluation["partial"],
    }
    return {**{name: value for name, value in given.items() if value is not None}, OWN_ROW: own}


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Theirs is what the device holds at the end; a peak is what is known here."""
    peak = (record["cost"].get("memory_bytes") or {}).get("maximum")
    return {
        "mem_used": None if peak is None else round(peak / _MIB, 1),
        "train_seconds": record["cost"]["seconds"].get("train"),
    }


def _counts(record: Mapping[str, Any]) -> dict[str, Any]:
    trainable, total = (record["cost"].get(name) for name in ("num_trainable_parameters", "num_parameters"))
    known = trainable is not None and bool(total)
    return {"trainable": trainable, "all": total, "trainable%": 100 * trainable / total if known else None}


def _row(record: Mapping[str, Any], evaluation: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    said, reference = sample["prediction"], sample["reference"]
    if DATASETS[TASKS[evaluation["task"]]].grader == "choice":
        index = said.get("index")
        chosen = _best(said) if index is None else index
        said, reference = {"text": "" if chosen is None else LETTERS[chosen]}, LETTERS[int(reference)]
    if isinstance(reference, (list, tuple)):  # theirs has one text an item
        reference = reference[0]
    return {
        "context": _context(record, evaluation, sample),
        "pred": said.get("text") or "",
        "gt": str(reference),
        "item": sample["item"],
    }


def _best(said: Mapping[str, Any]) -> int | None:
    scores = [score for score in said.get("scores") or () if score == score]
    return list(said["scores"]).index(max(scores)) if scores else None


def _context(record: Mapping[str, Any], evaluation: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """The prompt, without worked examples: the task's template over the item's columns."""
    own = record["spec"].get("task") or {}
    same = own.get("name") == evaluation["task"] and own.get("prompt")
    prompt = own["prompt"] if same else tasks.load(evaluation["task"]).prompt
    return fill(prompt, sample["columns"])
