"""Rows of HumanEval and MBPP as prompts, solutions and tests, and instructions behind the Alpaca prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
)


def function(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of HumanEval: its prompt, without the white space at its ends, is what the program begins with.

    So bigcode-evaluation-harness asks (`tasks/humaneval.py`), because what tokens a prompt's last line end makes with
    the answer's first characters depends on the tokenizer.
    """
    prompt = row["prompt"].strip()
    tests = {"before": prompt, "tests": row["test"], "entry": row["entry_point"]}
    return {"prompt": prompt, "answer": "\n" + row["canonical_solution"], "tests": tests}


def described(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MBPP, full or sanitized: a docstring of its text and its first test is what the program begins with.

    The prompt of bigcode-evaluation-harness (`tasks/mbpp.py`). All tests of the row are run, behind what they need:
    imports (sanitized) or code (full).
    """
    text = row["text"] if "text" in row else row["prompt"]
    prompt = f'"""\n{text}\n{row["test_list"][0]}\n"""\n'
    needed = [*row.get("test_imports", ()), *filter(None, [row.get("test_setup_code")])]
    tests = {"before": prompt, "tests": _lines("\n".join([*needed, *row["test_list"]])), "entry": None}
    return {"prompt": prompt, "answer": _lines(row["code"]), "tests": tests}


def instruction(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with `instruction`, `output` and perhaps `input`, behind the Alpaca prompt, of which there are two."""
    given = row.get("input") or ""
    asked = f"### Instruction:\n{row['instruction']}\n\n" + (f"### Input:\n{given}\n\n" if given else "")
    prompt = (_ALPACA_INPUT if given else _ALPACA) + asked + "### Response:"
    return {"prompt": prompt, "answer": row["output"], "tests": None}


def either(row: Mapping[str, Any]) -> dict[str, Any]:
    """An instruction to train on, or a row of a benchmark, which is asked as that benchmark always is."""
    if "entry_point" in row:
        return function(row)
    return described(row) if "test_list" in row else instruction(row)


def _lines(text: str) -> str:
    """Text with line ends of one kind: MBPP has some of Windows."""
    return text.replace("\r\n", "\n")
