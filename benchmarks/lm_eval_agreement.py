"""Choices by likelihood beside lm-evaluation-harness: the same model, prompts and options, item by item.

    python benchmarks/lm_eval_agreement.py [--items 50] [--model ID] [TASK ...]

It needs `lm-eval` (0.4.13 was used), the small real model, and a mirror of the data (PEFTLAB_MIRROR). Each task's first
items are handed to that harness as a task of its own making, with our prompts and options; it tokenises, pads, scores
and normalises by itself. Where each choice has a context of its own it gets the whole sentences, and takes them apart
by the code of its task `winogrande`. What differs is listed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.modelling import models
from peftlab.modelling.models import Built
from peftlab.protocols import Example
from peftlab.rows import data
from peftlab.scores import choosing, grading

TASKS = ("openbookqa", "piqa", "social_i_qa", "arc_easy", "hellaswag", "winogrande")
EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "lora" / "smollm2-135m-r16"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Both harnesses on the same items.

    Attributes:
        ours: acc and acc_norm; of endings behind several contexts acc alone.
        theirs: The same, of lm-evaluation-harness.
        unlike: Places of items whose choice differs, by the sum or by the character.
        largest: The largest difference of a log-likelihood.
        seconds: How long each took.
    """

    ours: dict[str, float]
    theirs: dict[str, float]
    unlike: list[int]
    largest: float
    seconds: tuple[float, float]


def compared(built: Built, spec: RunSpec, examples: Sequence[Example], folder: Path) -> Agreement:
    """Score the examples with both; `folder` takes the rows that are handed over."""
    from peftlab.config.task import GraderChoice

    started = time.perf_counter()
    predictions = _drained(choosing.choose(built, examples, spec, ()))[0]
    ours_took = time.perf_counter() - started
    modes = ("acc",) if examples[0].contexts else ("acc", "acc_norm")
    judged = GraderChoice(name="choice", modes=modes)
    chosen = spec.task.model_copy(update={"grader": judged, "metrics": {"acc": "higher"}})
    ours = {name: metric.mean for name, metric in grading.grade(chosen, examples, predictions).metrics.items()}
    started = time.perf_counter()
    samples, theirs = _theirs(built, examples, folder, spec.batch.per_device_eval_batch_size)
    theirs_took = time.perf_counter() - started
    unlike, largest = [], 0.0
    for place, (example, prediction, scores) in enumerate(zip(examples, predictions, samples, strict=True)):
        lengths = np.array([len(choice.lstrip()) for choice in example.choices])
        largest = max(largest, float(np.abs(np.array(prediction.scores) - scores).max()))
        pairs = ((np.array(prediction.scores), scores), (np.array(prediction.scores) / lengths, scores / lengths))
        if any(one.argmax() != other.argmax() for one, other in pairs[: len(modes)]):
            unlike.append(place)
    return Agreement(ours=ours, theirs=theirs, unlike=unlike, largest=largest, seconds=(ours_took, theirs_took))


def _drained(scoring: Any) -> Any:
    while True:
        try:
            next(scoring)
        except StopIteration as stop:
            return stop.value


def _theirs(
    built: Built, examples: Sequence[Example], folder: Path, batch_size: int
) -> tuple[list[np.ndarray], dict[str, float]]:
    """The log-likelihoods and the two scores of lm-evaluation-harness."""
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = folder / "rows.jsonl"
    rows, how = _sentences(examples) if examples[0].contexts else _options(examples)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "handed_over",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        **how,
    }
    model = HFLM(pretrained=built.model, tokenizer=built.tokenizer, batch_size=batch_size, max_length=512)
    found = simple_evaluate(
        model=model,
        tasks=[ConfigurableTask(config=config)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        num_fewshot=0,
    )
    samples = sorted(found["samples"]["handed_over"], key=lambda sample: sample["doc_id"])
    scores = [np.array([float(answer[0]) for answer in sample["filtered_resps"]]) for sample in samples]
    results = found["results"]["handed_over"]
    return scores, {one["metric"]: float(results[f"{one['metric']},none"]) for one in how["metric_list"]}


def _options(examples: Sequence[Example]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows with a prompt and options, and how they are read."""
    rows = [
        {
            "prompt": example.prompt,
            "options": [choice.lstrip() for choice in example.choices],
            "gap": example.choices[0][: len(example.choices[0]) - len(example.choices[0].lstrip())],
            "answer": example.reference or 0,
        }
        for example in examples
    ]
    gaps = {row["gap"] for row in rows}
    assert len(gaps) == 1, "one task has one separator"
    return rows, {
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "target_delimiter": gaps.pop(),
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def _sentences(examples: Sequence[Example]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Whole sentences with a blank, as the data set has them, and that harness' own reading of them."""
    from lm_eval.tasks.winogrande import preprocess_winogrande as reading

    rows = []
    for example in examples:
        first, second = ast.literal_eval(example.columns["choices"])
        sentence = f"{example.columns['before']}_ {example.columns['after']}"
        rows.append(
            {"sentence": sentence, "option1": first, "option2": second, "answer": str((example.reference or 0) + 1)}
        )
    return rows, {
        "doc_to_text": reading.doc_to_text,
        "doc_to_choice": reading.doc_to_choice,
        "doc_to_target": reading.doc_to_target,
        "metric_list": [{"metric": "acc"}],
    }


def main() -> None:
    """One line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--model")
    asked = parser.parse_args()
    overrides: dict[str, Any] = {"model.dtype": "float32", "data.test_rows": asked.items}
    if asked.model:
        overrides["model.id"] = asked.model
    built = None
    for name in asked.tasks:
        spec = loading.load(EXPERIMENT, overrides={**overrides, "task": name})
        built = built or models.bare(models.load(spec.model, "causal"))
        with tempfile.TemporaryDirectory() as folder:
            found = compared(built, spec, data.load(spec).test, Path(folder))
        shown = "  ".join(f"{key} {found.ours[key]:.3f} {found.theirs[key]:.3f}" for key in found.ours)
        print(f"{name:16s} {shown}  choices unlike: {found.unlike or 'none'}  largest difference {found.largest:.1e}")
        print(f"{'':16s} seconds {found.seconds[0]:.1f} {found.seconds[1]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
