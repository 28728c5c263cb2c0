"""Runs the program that was answered against the tests of its row, in the sandbox, and scores 1 when all hold.

The reference of a row says what the tests are: a mapping with `tests` (text, or a list of statements), `entry` (the
function that a `check` in the tests is called with; absent: the tests are statements that use the program's names) and
`before` (what the program begins with, before the answer); or the tests alone. Metrics `pass@K` over several answers
are made of these scores in `scores/passing.py`.

Modes:
    bigcode: The answer goes on where `before` ends, up to the first stop word of bigcode-evaluation-harness: those of
        its HumanEval for tests with an `entry`, those of its MBPP for others.
    chat: The program is the last fenced block of the answer that holds the function (`entry`, or one that the tests
        call), else the last one; behind `before`, whose names it may use or define anew. A block that is not closed
        goes to the end. Without a block the answer itself is taken when it is such a program; else there is none,
        which is a failure (`no_code`).

Kinds of failure: `syntax`, `exception`, `assertion`, `timeout`, `memory`, `output`, `lost` (`sandbox/programs.py`), and
`no_code`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftlab.errors import UserError, unknown_name
from peftlab.protocols import Example, Grade, Grader, Prediction
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.programs import Outcome, Program

MODES = ("bigcode", "chat")
STOP_WORDS_OF_FUNCTIONS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
STOP_WORDS_OF_DESCRIPTIONS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
_TRIALS = {"a right program": 1, "a wrong one": 2}
_BLOCK = re.compile(r"^[ \t]*(```|~~~)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)


def tests_of(example: Example) -> tuple[str, str, str | None]:
    """What the program begins with, its tests, and the function that they check.

    Raises:
        UserError: The reference holds no tests.
    """
    found = example.reference
    plain: Mapping[str, Any] = found if isinstance(found, Mapping) else {"tests": found}
    tests, before, entry = plain.get("tests"), plain.get("before") or "", plain.get("entry")
    if isinstance(tests, list | tuple) and all(isinstance(one, str) for one in tests):
        tests = "\n".join(tests)
    texts = isinstance(before, str) and (entry is None or isinstance(entry, str))
    if not isinstance(tests, str) or not tests.strip() or not texts:
        raise UserError(
            f"item {example.item}: the reference {str(found)[:80]!r} holds no tests",
            fix="let the task's 'reference' name a column with tests: text, or {tests: ..., entry: ..., before: ...}",
        )
    return before, tests, entry


def program_of(text: str, example: Example, mode: str) -> str | None:
    """The whole program that an answer makes, or None when it holds none.

    Raises:
        UserError: The reference holds no tests, or there is no such mode.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    before, tests, entry = tests_of(example)
    if mode == "bigcode":
        return before + cut(text, entry)
    block = _block(text, tests, entry)
    return None if block is None else f"{before}\n\n{block}" if before else block


def cut(text: str, entry: str | None) -> str:
    """An answer up to the first of bigcode's stop words."""
    words = STOP_WORDS_OF_DESCRIPTIONS if entry is None else STOP_WORDS_OF_FUNCTIONS
    return text[: min((text.find(word) for word in words if word in text), default=len(text))]


def _block(text: str, tests: str, entry: str | None) -> str | None:
    blocks = [textwrap.dedent(match[2]) for match in _BLOCK.finditer(text)]  # a block in a list is indented
    holding = [block for block in blocks if _defines(block, tests, entry)]
    if blocks:
        return (holding or blocks)[-1]
    return text if _defines(text, tests, entry) else None


def _defines(block: str, tests: str, entry: str | None) -> bool:
    """Whether a text is a program with a function that is tested; text that does not compile may still hold one."""
    found = set(re.findall(r"^(?:async[ \t]+)?def[ \t]+(\w+)|^class[ \t]+(\w+)|^(\w+)[ \t]*=", block, re.MULTILINE))
    names = {name for match in found for name in match if name}
    return entry in names if entry is not None else bool(names & _called(tests))


def _called(tests: str) -> set[str]:
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def grade_all(
    predictions: Sequence[Prediction], examples: Sequence[Example], mode: str, execution: Any
) -> Iterator[tuple[int, Grade]]:
    """The grades of many answers, as their programs end; the same program with the same tests runs once.

    Args:
        predictions: What was answered.
        examples: The row of each.
        mode: How an answer becomes a program.
        execution: Group `execution`: what a program may use.

    Raises:
        UserError: A reference holds no tests, or programs cannot be isolated here.
    """
    from peftlab.sandbox.running import run

    wanted: dict[Program, list[int]] = {}
    for number, (prediction, example) in enumerate(zip(predictions, examples, strict=True)):
        _, tests, entry = tests_of(example)
        code = program_of(prediction.text or "", example, mode)
        if code is None:
            yield number, Grade(score=0.0, answer=None, valid=False, why="no_code")
        else:
            wanted.setdefault(Program(code=code, tests=tests, entry=entry), []).append(number)
    limits = Limits(
        cpu_seconds=execution.cpu_seconds,
        wall_seconds=execution.wall_seconds,
        memory_bytes=execution.memory_bytes,
    )
    programs = list(wanted)
    outcomes = run(programs, limits, workers=execution.workers, allow_unsafe=execution.allow_unsafe_code)
    for position, outcome in outcomes:
        for number in wanted[programs[position]]:
            yield number, _judged(outcome, predictions[number].text or "", examples[number], mode)


def _judged(outcome: Outcome, text: str, example: Example, mode: str) -> Grade:
    _, tests, entry = tests_of(example)
    answer = cut(text, entry) if mode == "bigcode" else _block(text, tests, entry)
    passed = outcome.kind == "passed"
    return Grade(
        score=float(passed), answer=answer, valid=outcome.kind != "syntax", why=None if passed else outcome.kind
    )


def ready(execution: Any) -> None:
    """Raise a `UserError` unless a program that passes its tests passes here, and one that does not fails."""
    rows = [Example(item=name, reference={"tests": f"assert one() == {value}"}) for name, value in _TRIALS.items()]
    said = [Prediction(text="def one():\n    return 1\n")] * len(rows)
    found = {rows[number].item: one for number, one in grade_all(said, rows, MODES[0], execution)}
    if [found[name].why for name in _TRIALS] != [None, "assertion"]:
        raise UserError(
            f"programs cannot be tested here: of two trials, {' and '.join(f'{k}: {v.why}' for k, v in found.items())}",
            fix="raise execution.memory_bytes or execution.cpu_seconds, or see what peftlab doctor says of isolation",
        )


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """One answer, under the default limits."""
    from peftlab.config.groups import ExecutionSettings

    ((_, found),) = grade_all([prediction], [example], mode, ExecutionSettings())
    return found


PLUGIN = Grader(
    version=2,
    metric="pass@1",
    modes=MODES,
    grade=grade,
    grade_all=grade_all,
    ready=ready,
    written=lambda prediction, example, mode: program_of(prediction.text or "", example, mode),
)
