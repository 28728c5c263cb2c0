"""Ways in which a number could quietly be wrong; each was possible once, or nearly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from comparing import outcome
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.events import Finished, Saved, Step
from peftlab.graders import choice, numeric
from peftlab.job import evaluating, runs
from peftlab.loop import training
from peftlab.modelling import adapting, models, weights
from peftlab.protocols import Example, find
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.rows.batching import Stream, collate
from peftlab.rows.tokenise import TokenRow
from peftlab.scores import choosing, evaluation


def run(folder: Path, results: Path, **overrides: Any) -> Record:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.run(loading.load(folder, overrides=named), RunStore(results))


def change_task(folder: Path, **changes: Any) -> None:
    path = Path(json.loads((folder / "training_params.json").read_text())["task"])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CLASSIFIER = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}


def test_a_diverged_classifier_is_no_majority_class(tmp_path: Path) -> None:
    resolved = loading.load(toy.write_experiment(tmp_path, architecture="bert", adapter=CLASSIFIER))
    built = adapting.adapt(models.load(resolved.model, "classify", labels=resolved.task.labels), resolved)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "classifier" in name:
                parameter.fill_(float("nan"))
    rows = [Example(item=str(index), pair=(str(index),), reference=0, columns={}) for index in range(6)]
    scored = toy.drained(evaluation.score(built, rows, resolved))
    assert scored.metrics["acc"].mean == 0.0 and scored.notes["valid_answers"]["acc"] == 0


def test_padding_is_what_the_head_of_a_decoder_takes_for_padding(tmp_path: Path) -> None:
    """A classifier on a decoder reads the last token before the padding, found by the config's own id."""
    folder = toy.save_model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 5}))
    settings = loading.bare(str(folder), task="arithmetic").model
    built = models.bare(models.load(settings, "classify", labels=("a", "b")))
    rows = [
        TokenRow(item=str(n), ids=tuple(range(10, 10 + n)), labels_from=n, has_eos=False, truncated=False, label=0)
        for n in (3, 9)
    ]
    built.model.eval()
    with torch.no_grad():
        alone = training.forward(built, collate(rows[:1], pad_id=built.pad_id)).logits[0]
        beside = training.forward(built, collate(rows, pad_id=built.pad_id)).logits[0]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_full_fine_tuning_stops_where_its_base_stops(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, adapter=None)
    resolved = loading.load(folder)
    (Path(resolved.model.id) / "generation_config.json").write_text('{"eos_token_id": [1, 20]}')
    resolved = loading.load(folder)
    record = runs.run(resolved, RunStore(tmp_path / "results"))
    saved = RunStore(tmp_path / "results").folder_of(record) / "adapter"
    assert models.load(resolved.model, "causal").stop_ids == (1, 20)
    assert weights.load_trained(resolved, saved).stop_ids == (1, 20)


# ---------------------------------------------------------------------------------------------------- stale grades


def test_a_changed_grader_grades_the_stored_predictions_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    first = run(folder, tmp_path / "results")
    change_task(folder, grader={"name": "numeric", "modes": ["flexible"]}, metrics={"exact_match_flexible": "higher"})

    def no_model(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("grading needs no model")

    monkeypatch.setattr(models, "load", no_model)
    second = run(folder, tmp_path / "results")
    assert second.key == first.key
    for role in ("base", "last"):
        found = second.evaluation(role)
        assert found is not None and list(found.metrics) == ["exact_match_flexible"]
        assert found.grader == {"name": "numeric", "modes": ["flexible"], "version": find("graders", "numeric").version}
    monkeypatch.setattr(numeric, "PLUGIN", dataclasses.replace(numeric.PLUGIN, version=2))
    found = run(folder, tmp_path / "results").evaluation("last")
    assert found is not None and found.grader == {"name": "numeric", "modes": ["flexible"], "version": 2}


def test_another_task_with_the_same_rows_does_not_take_the_place_of_the_own(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"evaluate": "none"})
    record = run(folder, tmp_path / "results")
    own = Path(json.loads((folder / "training_params.json").read_text())["task"])
    other = own.with_name("other.yaml")
    other.write_text(own.read_text())
    list(evaluating.evaluate(record.key, RunStore(tmp_path / "results"), task=str(other)))
    final = run(folder, tmp_path / "results", train__evaluate="all")
    assert {found.task for found in final.evaluations if found.role == "last"} == {"toy", "other"}


def test_the_same_command_gives_the_same_score_whatever_was_asked_between(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    first = run(folder, tmp_path / "results")
    between = run(folder, tmp_path / "results", generation__max_new_tokens=1)
    again = run(folder, tmp_path / "results")
    assert first.evaluation("last") == again.evaluation("last") != between.evaluation("last")
    assert again.spec == first.spec


def test_few_shot_and_fewer_test_rows_after_a_run_are_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_experiment(tmp_path)
    first = run(folder, tmp_path / "results")
    monkeypatch.setattr(training, "steps", lambda *a: (_ for _ in ()).throw(AssertionError("trained again")))
    assert run(folder, tmp_path / "results", generation__few_shot=2).key == first.key
    assert run(folder, tmp_path / "results", data__test_rows=6).evaluation("last").num_items == 6  # type: ignore[union-attr]


def test_another_task_keeps_its_own_limits(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    change_task(folder, stop=["7"])
    own = loading.load(folder, overrides={"data.test_rows": 6})
    other = toy.write_task(tmp_path / "other")
    plain = json.loads(other.read_text()) | {"stop": ["9"]}
    del plain["max_new_tokens"]
    other.write_text(json.dumps(plain))
    changed = loading.with_evaluation(own, task=str(other), overrides={})
    bare = loading.bare(own.model.id, task=str(other))
    assert (own.generation.stop, own.generation.max_new_tokens) == (("7",), 5)
    assert changed.generation == bare.generation and changed.task.test == bare.task.test
    assert changed.generation.stop == ("9",)


def test_a_task_may_ask_in_the_chat_template_and_the_choice_is_in_the_key(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    plain = loading.load(folder)
    change_task(folder, chat_template=True)
    own = loading.load(folder)
    said = loading.load(folder, overrides={"generation.chat_template": False})
    assert (plain.generation.chat_template, own.generation.chat_template) == (False, True)
    assert own.train_key != plain.train_key == said.train_key  # training rows are written in the template too
    assert own.evaluation_key("test", {}) != plain.evaluation_key("test", {}) == said.evaluation_key("test", {})
    other = str(toy.write_task(tmp_path / "other"))
    assert not loading.with_evaluation(own, task=other, overrides={}).generation.chat_template
    asked = {"generation.chat_template": True}
    assert loading.with_evaluation(own, task=other, overrides=asked).generation.chat_template


def test_validation_follows_the_part_that_training_rows_are_taken_from(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    rows = str((tmp_path / "task-generate").resolve())
    drawn = {"dataset": rows, "split": "train", "sample": 4}
    change_task(folder, valid=drawn)
    follows = loading.load(folder, overrides={"data.train_split": "part[:9]"}).task
    assert follows.train is not None and follows.train.split == "part[:9]"
    assert follows.valid is not None and (follows.valid.split, follows.valid.sample) == ("part", 4)
    sliced = loading.load(folder, overrides={"data.train_split": "train[:9]"}).task
    assert sliced.valid is not None and sliced.valid.split == "train"
    change_task(folder, valid={**drawn, "split": "valid"})
    apart = loading.load(folder, overrides={"data.train_split": "part"}).task
    assert apart.valid is not None and apart.valid.split == "valid"


def test_a_run_is_not_scored_on_rows_it_was_trained_on(tmp_path: Path) -> None:
    """Neither by drawing the test anew from the same pool, nor through another task over the same rows."""
    rows = tmp_path / "all.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in toy.rows(60)) + "\n")
    source = {"dataset": str(rows), "split": "train"}
    folder = toy.write_experiment(tmp_path)
    change_task(folder, train=source, valid=None, test={**source, "sample": 10})
    record = run(folder, tmp_path / "results")
    store = RunStore(tmp_path / "results")
    with pytest.raises(UserError, match=r"data.test_rows"):
        list(evaluating.evaluate(record.key, store, overrides={"data.test_rows": 30}))
    other = toy.write_task(tmp_path / "other")
    other.write_text(json.dumps(json.loads(other.read_text()) | {"train": None, "valid": None, "test": source}))
    with pytest.raises(UserError, match=r"stand in the rows that this run was"):
        list(evaluating.evaluate(record.key, store, task=str(other)))


# ------------------------------------------------------------------------------------------------- what is on disk


def test_altered_weights_are_not_scored(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = toy.write_experiment(tmp_path, train={"evaluate": "none"})
    record = run(folder, tmp_path / "results")
    file = RunStore(tmp_path / "results").folder_of(record) / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="not those that the training wrote"):
        run(folder, tmp_path / "results", train__evaluate="all")


def test_validations_after_the_restored_checkpoint_are_made_again(tmp_path: Path) -> None:
    """Scores of a trajectory that was dropped must not choose the best checkpoint of the next one."""
    folder = toy.write_experiment(
        tmp_path, train={"eval_steps": 1, "load_best_model_at_end": True}, save={"save_steps": 50}
    )
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 4:
            break
    events.close()  # type: ignore[attr-defined]
    [payload] = (path for path in (tmp_path / "cancelled_results").iterdir() if path.is_dir())
    for file in payload.glob("evaluations/*/evaluation.json"):
        file.write_text(file.read_text().replace('"mean": 0.0', '"mean": 0.9'))
    run(folder, tmp_path / "results")
    run(folder, tmp_path / "whole")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_a_record_without_its_folder_is_still_a_result(tmp_path: Path) -> None:
    import shutil

    folder = toy.write_experiment(tmp_path)
    record = run(folder, tmp_path / "results")
    shutil.rmtree(RunStore(tmp_path / "results").folder_of(record))
    assert run(folder, tmp_path / "results") == record
    with pytest.raises(UserError, match=r"(?s)not its folder.*--rerun"):
        run(folder, tmp_path / "results", generation__max_new_tokens=2)


@pytest.mark.parametrize("mode", ["none", "valid"])
def test_less_evaluation_completed_later_equals_all(tmp_path: Path, mode: str) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 3})
    run(folder, tmp_path / "whole")
    record = run(folder, tmp_path / "later", train__evaluate=mode)
    finished = [e for e in evaluating.evaluate(record.key, RunStore(tmp_path / "later")) if isinstance(e, Finished)]
    assert finished
    assert outcome(tmp_path / "later")["record"] == outcome(tmp_path / "whole")["record"]


def test_seconds_of_steps_that_are_repeated_are_counted(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, save={"save_steps": 2})
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    record = run(folder, tmp_path / "results")
    assert record.cost.num_parts == 2 and record.cost.seconds["repeated"] > 0


# ------------------------------------------------------------------------------------------------------- numerics


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    original = torch.nn.utils.clip_grad_norm_
    calls = []

    def poisoned(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            parameters[0].grad.fill_(float("nan"))
        return original(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    with pytest.raises(UserError, match="gradient norm became nan at step 6"):
        run(folder, tmp_path / "results")


def test_memory_refused_while_adapting_is_not_a_config_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    folder = toy.write_experiment(tmp_path)
    resolved = loading.load(folder)
    base = models.load(resolved.model, "causal")
    monkeypatch.setattr(peft, "get_peft_model", full)
    with pytest.raises(torch.OutOfMemoryError):
        adapting.adapt(base, resolved)


def test_a_choice_that_does_not_fit_cannot_win(tmp_path: Path) -> None:
    resolved = loading.load(toy.write_experiment(tmp_path), overrides={"data.max_length": 12})
    built = models.bare(models.load(resolved.model, "causal"))
    rows = [Example(item="a", prompt="pick:", choices=(" a", " " + "z" * 30), reference=0)]
    [prediction], cut = toy.drained(choosing.choose(built, rows, resolved, ()))
    assert prediction.index is None and prediction.finish == "prompt_too_long" and cut == 1


def test_a_choice_without_a_likelihood_is_not_called_too_long(tmp_path: Path) -> None:
    """A model that computes NaN chooses nothing, and the sample says that it was not the prompt's length."""
    resolved = loading.load(toy.write_experiment(tmp_path))
    built = models.bare(models.load(resolved.model, "causal"))
    with torch.no_grad():
        built.model.get_output_embeddings().weight.fill_(float("nan"))
    rows = [Example(item="a", prompt="pick:", choices=(" a", " b"), reference=0)]
    [prediction], cut = toy.drained(choosing.choose(built, rows, resolved, ()))
    assert (prediction.index, prediction.finish, cut) == (None, "not_finite", 0)
    for mode in choice.MODES:
        grade = choice.grade(prediction, rows[0], mode)
        assert (grade.score, grade.valid) == (0.0, False)


def test_a_method_that_adds_nothing_to_a_row_without_labels(tmp_path: Path) -> None:
    """A micro-batch of cut rows has no labels: it decides nothing, and its mean loss of 0 / 0 enters nothing."""
    adapter = {
        "peft_type": "ADALORA",
        "init_r": 4,
        "target_r": 2,
        "tinit": 2,
        "tfinal": 2,
        "target_modules": ["q_proj"],
    }
    folder = toy.write_experiment(
        tmp_path,
        adapter=adapter,
        batch={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "order": "file"},
    )
    resolved = loading.load(folder)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    cut = TokenRow(item="cut", ids=(10, 11, 12), labels_from=3, has_eos=False, truncated=True)
    whole = TokenRow(item="whole", ids=(10, 11, 12, 13, 1), labels_from=3, has_eos=True, truncated=False)
    state = training.start(built, resolved)
    steps = training.steps(built, Stream([cut, whole] * 6, resolved.batch, 0), resolved, state)
    first = next(steps)
    assert state.own_objective is True and first.method_loss is not None and first.method_loss > 0
    assert all(step.loss > 0 for step in steps)


def test_saved_events_come_with_saves(tmp_path: Path) -> None:
    events = list(runs.events(loading.load(toy.write_experiment(tmp_path)), RunStore(tmp_path / "results")))
    assert [event.step for event in events if isinstance(event, Saved)] == [2, 4]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"generation.temperature": 0.5}, "change nothing without do_sample"),
        ({"generation.stop": [""]}, "empty string"),
        ({"optim.weight_decay": 0.5, "optim.optimizer_kwargs": {"weight_decay": 0.0}}, "give it once"),
        ({"train.evaluate": "valid"}, "eval_steps"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, overrides: dict[str, Any], match: str) -> None:
    folder = toy.write_experiment(tmp_path)
    with pytest.raises(UserError, match=match):
        runs.run(loading.load(folder, overrides=overrides), RunStore(tmp_path / "results"))


def test_model_code_needs_the_users_own_word(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, model={"trust_remote_code": True})
    with pytest.raises(UserError, match=r"say so yourself|asks to run code"):
        loading.load(folder)
    assert loading.load(folder, overrides={"model.trust_remote_code": True}).model.trust_remote_code
