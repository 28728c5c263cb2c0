"""Choices by likelihood with prompts computed once; the commonsense rows of LLM-Adapters, and answers in words."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.source import Source
from peftlab.config.spec import RunSpec
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.graders import option
from peftlab.modelling import adapting, models
from peftlab.modelling.models import Built
from peftlab.protocols import Example, Prediction
from peftlab.rows import sources
from peftlab.scores import choosing
from peftlab.tasks import _llm_adapters as rows_of_sets

ROOT = Path(__file__).parents[1]
MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or ROOT.parent / "shared" / "data")
needs_mirror = pytest.mark.skipif(not (MIRROR / "mirror.json").is_file(), reason=f"no mirror at {MIRROR}")

ITEMS = [
    Example(item="a", prompt="which is it, of these three: ", choices=(" yes", " no", " maybe so"), reference=0),
    Example(item="b", prompt="pick:", choices=(" b", " cc"), reference=1),
    Example(item="c", prompt="again, what is it?", choices=(" ccc", " d", " e", " a longer choice", " f"), reference=3),
    Example(item="d", prompt="x:", choices=("y", "z"), reference=0),
    Example(
        item="e", prompt="a prompt of more tokens than any window here has, so that it moves:", choices=(" 1", " 22")
    ),
]
ADAPTERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "lora": ("llama", {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}, True),
    "adaption": ("llama", {"peft_type": "ADAPTION_PROMPT", "adapter_len": 3, "adapter_layers": 2}, True),
    "prefix": ("llama", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, False),
    "shadow": ("llama", {"peft_type": "SHADOW"}, False),
}


def test_prompts_as_they_are_shown() -> None:
    """Those of LLM-Adapters to the blank, two of which stand behind the first paragraph; and of lm-eval's arc_easy."""
    told = "Please choose the correct answer to the question: What do plants drink?\n\nAnswer1: water Answer2: milk "
    row = {
        "instruction": told + "Answer3: oil Answer4: ink\n\nAnswer format: answer1/answer2/answer3/answer4",
        "output": "the correct answer is answer1",
        "answer": "answer1",
    }
    (found,) = examples(tasks.load("arc_easy"), [row])
    assert found.prompt == "Question: What do plants drink?\nAnswer:"
    assert found.choices == (" water", " milk", " oil", " ink")
    asked = (
        "Please answer the following question with true or false, question: is ice cold?\n\nAnswer format: true/false"
    )
    (found,) = examples(
        tasks.load("boolq_generated"),
        [{"instruction": asked, "output": "the correct answer is true", "answer": "true"}],
    )
    assert found.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  "
        f"\n\n### Instruction:\n{asked}\n\n### Response:\n"
    )
    assert found.target == "the correct answer is true"


def test_a_mark_that_is_taken_out_leaves_its_blank_as_in_lm_eval() -> None:
    """There, the text is stripped before its marks go, and acc_norm counts the blank that stood behind the first."""
    assert rows_of_sets._without_marks(" [step] Turn  it off. [title] Wait.") == " Turn it off.. Wait."
    assert rows_of_sets._without_marks("  plain ") == "plain"


def built_for(
    tmp_path: Path, architecture: str = "llama", adapter: dict[str, Any] | None = None, **overrides: Any
) -> tuple[Built, RunSpec]:
    named = {"data.max_length": 256, **{key.replace("__", "."): value for key, value in overrides.items()}}
    resolved = loading.load(toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter), overrides=named)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    with torch.no_grad():  # an adapter that starts as nothing would prove nothing
        for parameter in built.trainable().values():
            parameter.add_(torch.randn_like(parameter) * (0.3 if adapter else 0.0))
    return built, resolved


def by_hand(built: Built, spec: RunSpec) -> list[list[float]]:
    """Each choice alone behind its prompt, without padding and without anything kept."""
    rows = choosing.rows_of(built, ITEMS, spec, ())
    flat = [choosing._whole(built, [row])[0] for row in rows]
    return [[flat[place] for place in item] for item in choosing._of_item(ITEMS)]


def scores_of(built: Built, spec: RunSpec) -> list[list[float]]:
    return [list(one.scores) for one in toy.drained(choosing.choose(built, ITEMS, spec, ()))[0]]


def equal(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    return all(np.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(found, expected, strict=True))


def way(built: Built, spec: RunSpec) -> str:
    rows = choosing.rows_of(built, ITEMS, spec, ())
    return choosing._way(built, rows, choosing._of_item(ITEMS), spec.batch)[1].__name__


# ------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("architecture", toy.CAUSAL)
def test_a_prompt_computed_once_gives_what_whole_rows_give(tmp_path: Path, architecture: str) -> None:
    """In batches of every size and order; two of these models attend to a window of fewer tokens than a prompt has."""
    built, spec = built_for(tmp_path, architecture)
    expected = by_hand(built, spec)
    assert way(built, spec) == "_going_on"
    for size, order in ((1, "file"), (4, "length"), (7, "file"), (64, "length")):
        batch = spec.batch.model_copy(update={"per_device_eval_batch_size": size, "eval_order": order})
        assert equal(scores_of(built, spec.model_copy(update={"batch": batch})), expected)


@pytest.mark.parametrize("name", ADAPTERS)
def test_methods_that_cannot_go_on_from_a_prompt_take_whole_rows(tmp_path: Path, name: str) -> None:
    architecture, adapter, once = ADAPTERS[name]
    built, spec = built_for(tmp_path, architecture, adapter)
    assert (way(built, spec) == "_going_on") is once
    assert equal(scores_of(built, spec), by_hand(built, spec))


def test_a_model_that_differs_when_it_goes_on_takes_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of a thousandth is no rounding in float32."""
    built, spec = built_for(tmp_path)
    kept, seen = choosing._going_on, []

    def other(built: Built, rows: Any) -> list[float]:
        seen.append(len(rows))
        return [score * 1.001 for score in kept(built, rows)]

    monkeypatch.setattr(choosing, "_going_on", other)
    assert equal(scores_of(built, spec), by_hand(built, spec))
    assert len(seen) == 1


def test_a_prompt_is_computed_once(tmp_path: Path) -> None:
    """Tokens that the model is given, counted where they enter: every prompt once, every choice but its last token."""
    built, spec = built_for(tmp_path, batch__per_device_eval_batch_size=1)
    rows = choosing.rows_of(built, ITEMS[2:3], spec, ())
    given: list[int] = []
    built.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: given.append(inputs[0].numel()))
    choosing._going_on(built, rows)
    longest = max(len(choice) for choice in ITEMS[2].choices)
    assert given == [len(ITEMS[2].prompt), 5 * (longest - 1)]


@pytest.mark.full
def test_every_method_scores_choices_as_from_whole_rows(tmp_path: Path) -> None:
    """Whatever way it takes; a method that is refused on the tiny model is left out."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    methods: Any = importlib.import_module("methods")
    from peftlab.invariants import examination

    wrong, asked = [], 0
    for name in methods.rows():
        folder = tmp_path / name.replace(" ", "_")
        try:
            spec = methods.spec_of(name, "tiny-llama", "float32", folder)
            built = examination.trial_of(spec, folder / "trial").first.built
        except UserError:
            continue
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in built.trainable().values():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if built.method.rows_alone:
            spec = spec.model_copy(update={"batch": spec.batch.model_copy(update={"per_device_eval_batch_size": 1})})
        asked += 1
        if not equal(scores_of(built, spec), by_hand(built, spec)):
            wrong.append(name)
    assert asked > 70 and not wrong


# ------------------------------------------------------------------------------------- rows of LLM-Adapters' sets


def multiple(introduction: str, question: str, options: str, names: str, answer: str) -> dict[str, Any]:
    text = f"{introduction}: {question}\n\n{options}Answer format: {names}"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def test_every_form_of_row_is_taken_apart() -> None:
    piqa = multiple(
        "Please choose the correct solution to the question",
        "open a jar ",
        "Solution1: turn the lid: left \n\nSolution2: shake it\n\n",
        "solution1/solution2",
        "solution2",
    )
    found = rows_of_sets.choices(piqa)
    assert (found["question"], found["choices"], found["answer"], found["name"]) == (
        "open a jar",
        ["turn the lid: left", "shake it"],
        1,
        "solution2",
    )
    yes = multiple(
        "Please answer the following question with true or false, question",
        "is a cat a pet?",
        "",
        "true/false",
        "false",
    )
    found = rows_of_sets.yes_or_no(yes)
    assert (found["question"], found["choices"], found["answer"]) == ("is a cat a pet?", ["yes", "no"], 1)
    situation = multiple(
        "Please choose the correct answer to the question",
        "Ann lent Bo a pen. Bo lost it. How would Ann feel?",
        "Answer1: glad Answer2: cross Answer3: tall\n\n",
        "answer1/answer2/answer3",
        "answer2",
    )
    found = rows_of_sets.situation(situation)
    assert (found["context"], found["answer"]) == ("Ann lent Bo a pen. Bo lost it.", 1)
    ending = multiple(
        "Please choose the correct ending to complete the given sentence",
        "Sport: [header] How to run [title] Tie a shoe. [step] Pull it  tight.",
        "Ending1: [substeps] Then go. Ending2: Sit down. [title] Rest. Ending3: c Ending4: d\n\n",
        "ending1/ending2/ending3/ending4",
        "ending1",
    )
    found = rows_of_sets.ending(ending)
    assert found["activity"] == "Sport"
    assert found["question"] == "Sport: How to run. Tie a shoe. Pull it tight."
    assert found["choices"][:2] == [" Then go.", "Sit down.. Rest."]
    blank = multiple(
        "Please choose the correct answer to fill in the blank to complete the given sentence",
        "The cup did not fit the box as _ was big.",
        "Option1: the cup Option2: the box ",
        "option1/option2",
        "option1",
    )
    found = rows_of_sets.blank(blank)
    assert (found["before"], found["choices"]) == (
        "The cup did not fit the box as",
        ["the cup was big.", "the box was big."],
    )
    assert found["twins"] == "the box | the cup | The cup did"


def test_a_lettered_row_becomes_one_of_this_format() -> None:
    row = {
        "question": "Where do fish live? ",
        "choices": {"label": ["A", "B"], "text": ["water", "sky"]},
        "answerKey": "B",
    }
    found = rows_of_sets.lettered(row)
    assert (found["choices"], found["answer"], found["name"]) == (["water", "sky"], 1, "answer2")
    assert rows_of_sets.choices({**found, "answer": found["name"]})["choices"] == ["water", "sky"]
    with pytest.raises(UserError, match="no question with lettered options"):
        rows_of_sets.lettered({**row, "answerKey": ""})


@pytest.mark.parametrize("convert", [rows_of_sets.choices, rows_of_sets.yes_or_no, rows_of_sets.blank])
def test_other_rows_are_refused(convert: Any) -> None:
    row = multiple(
        "Please choose the correct answer to the question",
        "Why?",
        "Answer1: a Answer2: b\n\n",
        "answer1/answer2",
        "answer3",
    )
    with pytest.raises(UserError, match="no multiple-choice row"):
        convert(row)


def test_a_summary_shows_a_model_that_always_says_the_same() -> None:
    rows = [Example(item=str(number), reference=f"answer{number % 3 + 1}") for number in range(7)]
    texts = ["the correct answer is answer2"] * 5 + ["no idea", "answer5"]
    grades = [option.grade(Prediction(text=text), row, "first") for text, row in zip(texts, rows, strict=True)]
    assert option.summary(grades, rows) == {
        "baseline_constant_answer": 3 / 7,
        "valid_answer_rate": 6 / 7,
        "answer_share_answer1": 0,
        "answer_share_answer2": 5 / 7,
        "answer_share_answer3": 0,
        "answer_share_answer5": 1 / 7,
    }
    with pytest.raises(UserError, match="the reference 'a marsh' names no option"):
        option.grade(Prediction(text="answer1"), Example(item="a", reference="a marsh"), "first")


# --------------------------------------------------------------------------------------------- several tasks' code


def test_shared_code_is_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tasks.load("openbookqa").convert
    yaml = (tasks.TASK_FOLDER / "piqa.yaml").read_text()
    monkeypatch.setattr(tasks, "TASK_FOLDER", tmp_path)
    (tmp_path / "one.yaml").write_text(yaml)
    (tmp_path / "one.py").write_text("from peftlab.tasks._first import convert\n")
    (tmp_path / "_first.py").write_text("from peftlab.tasks._second import convert\n")
    seen = set()
    for text in ("a = 1\n", "a = 2\n"):
        (tmp_path / "_second.py").write_text(text)
        seen.add(tasks.load("one").convert)
    assert len(seen) == 2
    (tmp_path / "one.py").write_text((Path(tasks.__file__).parents[1] / "tasks" / "openbookqa.py").read_text())
    assert tasks.load("one").convert == alone  # code that shares nothing keeps the digest of its text


def test_shared_code_is_imported_in_the_form_that_the_digest_sees() -> None:
    for file in tasks.TASK_FOLDER.glob("*.py"):
        named = re.findall(r"^.*peftlab.*tasks.*$", file.read_text(), re.MULTILINE)
        imports = [line for line in named if re.match(r"\s*(from|import)\b", line)]
        assert all(re.match(r"from peftlab\.tasks\._\w+ import ", line) for line in imports), file.name
        assert not re.search(r"^from \.|^import \.", file.read_text(), re.MULTILINE), file.name


def test_rows_of_several_subsets_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = {}
    for name, answers in (("b", ["true", "false"]), ("a", ["answer1"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps({"answer": one}) + "\n" for one in answers))
        index[f"some/sets:{name}"] = {
            "folder": name,
            "splits": {"train": "train.jsonl"},
            "partial": ["train"] * (name == "a"),
        }
    (tmp_path / "mirror.json").write_text(json.dumps(index))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(tmp_path))
    both = sources.read(Source(dataset="some/sets", subset=("b", "a"), split="train"))
    assert [row["answer"] for row in both.rows] == ["true", "false", "answer1"]
    assert both.partial and [one["subset"] for one in both.origin["subsets"]] == ["b", "a"]
    assert not sources.read(Source(dataset="some/sets", subset="b", split="train")).partial
    with pytest.raises(ValueError, match="empty list"):
        Source(dataset="some/sets", subset=(), split="train")


# ------------------------------------------------------------------------------------------------------ real data

TEST_ROWS = {
    "boolq": 3270,
    "piqa": 1838,
    "social_i_qa": 1954,
    "hellaswag": 1000,
    "winogrande": 1267,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
    "commonsense_qa": 1221,
}
SAMPLE = 300


def real(name: str, monkeypatch: pytest.MonkeyPatch, every: int = 1) -> tuple[Task, list[Example]]:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    task = tasks.load(name)
    assert task.test is not None
    rows = sources.read(task.test).rows
    return task, examples(task, [rows[place] for place in range(0, len(rows), every)])


def judge(rows: Sequence[Example]) -> None:
    """The gold answer in words scores 1 under both parsers, the next option, nothing and the echoed format score 0."""
    for row in rows:
        names = row.columns["instruction"].rpartition("Answer format: ")[2].strip().split("/")
        following = names[(names.index(row.reference) + 1) % len(names)]
        for text, expected in ((row.target, 1), (f"the correct answer is {following}", 0), ("", 0)):
            for mode in ("first", "strict"):
                assert option.grade(Prediction(text=text), row, mode).score == expected, (mode, text, row)
        assert option.grade(Prediction(text="/".join(names)), row, "strict").score == 0


@needs_mirror
@pytest.mark.parametrize("name", TEST_ROWS)
def test_a_sample_of_the_gold_answers_scores_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = real(f"{name}_generated", monkeypatch, every=max(1, TEST_ROWS[name] // SAMPLE))
    assert len(rows) >= min(SAMPLE, TEST_ROWS[name])
    judge(rows)
    assert task.max_new_tokens == 32 and not any(stop in row.target for row in rows for stop in task.stop)


@pytest.mark.full
@needs_mirror
@pytest.mark.parametrize("name", TEST_ROWS)
def test_all_gold_answers_score_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = real(f"{name}_generated", monkeypatch)
    assert len(rows) == TEST_ROWS[name]
    judge(rows)


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("name", TEST_ROWS)
def test_both_tasks_of_a_set_have_the_same_rows_and_clusters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, chosen = real(name, monkeypatch)
    _, generated = real(f"{name}_generated", monkeypatch)
    assert len(chosen) == len(generated) == TEST_ROWS[name]
    assert [row.cluster for row in chosen] == [row.cluster for row in generated]
    for one, other in zip(chosen, generated, strict=True):
        number = re.sub(r"\D", "", other.reference)
        assert one.reference == (int(number) - 1 if number else ["true", "false"].index(other.reference))
        assert all(choice.strip() for choice in one.choices) and one.prompt


# ------------------------------------------------------------------------------------------------- another harness


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_choices_are_those_of_lm_evaluation_harness(tmp_path: Path) -> None:
    """Likelihoods, choices and both scores, from the same prompts and options; see benchmarks/lm_eval_agreement.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    agreement: ModuleType = importlib.import_module("lm_eval_agreement")
    built, spec = built_for(tmp_path)
    items = [  # no prompt ends in white space, which that harness moves into the options
        Example(
            item=f"{number}", prompt=f"what is {number} and {number * 7 % 5}?", choices=choices, reference=number % 2
        )
        for number, choices in enumerate([(" one", " four and a half"), (" 3", " a few", " none at all")] * 6)
    ]
    found = agreement.compared(built, spec, items, tmp_path)
    assert 0 < found.theirs["acc"] < 1  # a score that says something
    assert found.unlike == [] and found.largest < 1e-3
    assert found.ours == pytest.approx(found.theirs, abs=1e-12)
