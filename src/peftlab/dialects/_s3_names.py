"""What the HiRA baselines call data sets and methods, beside our own names, and how each set's answers are graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAME = "s3"
OWN_ROW = "peftlab_info"
"""Key of the arguments' row under which an export says whose record it is."""


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A data set of theirs: our task, and the grader with its modes, the first of which gives the primary metric."""

    task: str
    grader: str
    modes: tuple[str, ...]


_OPTION = ("s3", "first", "strict")
_TEXT = ("rouge_l", "rouge_1", "rouge_2")

DATASETS: Mapping[str, Graded] = {
    "boolq": Graded(task="boolq_generated", grader="option", modes=_OPTION),
    "piqa": Graded(task="piqa_generated", grader="option", modes=_OPTION),
    "siqa": Graded(task="social_i_qa_generated", grader="option", modes=_OPTION),
    "hellas": Graded(task="hellaswag_generated", grader="option", modes=_OPTION),
    "winog": Graded(task="winogrande_generated", grader="option", modes=_OPTION),
    "arce": Graded(task="arc_easy_generated", grader="option", modes=_OPTION),
    "arcc": Graded(task="arc_challenge_generated", grader="option", modes=_OPTION),
    "obqa": Graded(task="openbookqa_generated", grader="option", modes=_OPTION),
    "common_170k": Graded(task="commonsense_170k", grader="option", modes=_OPTION),
    "gsm8k": Graded(task="gsm8k", grader="numeric", modes=("flexible", "strict")),
    "meta_math": Graded(task="metamath_gsm8k", grader="numeric", modes=("flexible", "strict")),
    "mmlu": Graded(task="mmlu", grader="choice", modes=("acc",)),
    "e2e": Graded(task="e2e", grader="rouge", modes=_TEXT),
    "samsum": Graded(task="samsum", grader="rouge", modes=_TEXT),
    "dailydialog": Graded(task="dailydialog", grader="rouge", modes=_TEXT),
    "convai2": Graded(task="convai2", grader="rouge", modes=_TEXT),
}
"""Numbers have no parser of theirs that is described; they are read by our own."""

TASKS: Mapping[str, str] = {graded.task: dataset for dataset, graded in DATASETS.items()}

FULL = "fft"
"""Their `peft_type` of full fine-tuning."""

LETTERS = ("A", "B", "C", "D")
"""What an answer by option logits is one of."""
