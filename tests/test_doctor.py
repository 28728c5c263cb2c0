"""The invariants see what is wrong, and the doctor says it: each fault here is made on purpose."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab.cli import main
from peftlab.config import loading
from peftlab.errors import UserError
from peftlab.invariants import abilities, afterwards, batches, examination, learning, starting
from peftlab.invariants.findings import Finding, compared, stated
from peftlab.invariants.trial import Course, Trial
from peftlab.modelling import merging, models, weights
from peftlab.starts import _residual


def trial_of(root: Path, **more: Any) -> Trial:
    return examination.trial_of(loading.load(toy.write_experiment(root, **more)), root / "trial")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return trial_of(tmp_path_factory.mktemp("lora"))


def with_course(trial: Trial, **changes: Any) -> Trial:
    """The same trial as if its training had gone otherwise."""
    other = dataclasses.replace(trial)
    other.__dict__["course"] = dataclasses.replace(trial.course, **changes)
    for name in ("base_logits", "reloaded", "resumed", "allowed"):
        other.__dict__[name] = getattr(trial, name)
    return other


def test_all_is_well_with_a_plain_adapter(lora: Trial) -> None:
    findings = [answer.finding for answer in examination.examine(trial_like(lora))]
    assert [one for one in findings if one.verdict == "broken"] == []
    assert {one.name for one in findings} == set(examination.EVERYTHING)
    by_name = {one.name: one for one in findings}
    for name in ("start", "reload", "plain peft", "disable", "resume", "seed", "frozen", "second"):
        assert by_name[name].verdict == "exact", by_name[name]
    assert by_name["merge"].verdict in ("exact", "within")


def trial_like(trial: Trial) -> Trial:
    return dataclasses.replace(trial, folder=trial.folder.with_name("again"))


def some(course: Course) -> str:
    return next(iter(course.start))


FAULTS: dict[str, tuple[Callable[[Trial], Finding], Callable[[Course], dict[str, Any]]]] = {
    "in no group": (learning.gradients, lambda c: {"grouped": {**c.grouped, some(c): 0}}),
    "in two groups": (learning.gradients, lambda c: {"grouped": {**c.grouped, some(c): 2}}),
    "no gradient": (learning.gradients, lambda c: {"gradients": {**c.gradients, some(c): (set(), set())}}),
    "gradient of zero": (learning.gradients, lambda c: {"gradients": {**c.gradients, some(c): ({1, 2, 3}, {4})}}),
    "none after an evaluation": (
        learning.gradients,
        lambda c: {"gradients": {**c.gradients, some(c): ({1, 2, 3, 4}, {1, 2, 3})}},
    ),
    "unchanged": (learning.gradients, lambda c: {"middle": {**c.middle, some(c): c.start[some(c)]}}),
    "the loss rises": (learning.falls, lambda c: {"losses": (1.0, 1.0)}),
    "a frozen weight moved": (learning.frozen, lambda c: {"moved": ("layers.0.weight",)}),
    "the adapter does nothing": (learning.differs, lambda c: {"logits": c.start_logits}),
    "another end after a stop": (learning.resume, lambda c: {"end": {**c.end, some(c): c.end[some(c)] + 1e-6}}),
    "another start": (starting.output, lambda c: {"start_logits": c.start_logits + 1}),
    "not a number": (starting.output, lambda c: {"start_logits": c.start_logits * torch.nan}),
    "another reload": (afterwards.reload, lambda c: {"logits": c.logits + 1e-5}),
    "the same seed, another start": (starting.seed, lambda c: {"start": {**c.start, some(c): c.start[some(c)] + 1}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(lora: Trial, fault: str) -> None:
    ask, changes = FAULTS[fault]
    assert ask(lora).verdict != "broken"
    finding = ask(with_course(lora, **changes(lora.course)))
    assert finding.verdict == "broken" and finding.fix, finding


def test_a_tensor_that_is_not_saved_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft loads an adapter with tensors missing; the logits tell."""
    from safetensors.torch import load_file, save_file

    save = weights.save

    def forgetful(built: Any, folder: Path) -> None:
        save(built, folder)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(str(path))
        save_file({name: value for name, value in tensors.items() if "lora_B" not in name}, str(path))

    monkeypatch.setattr(weights, "save", forgetful)
    trial = trial_of(tmp_path)
    assert afterwards.reload(trial).verdict == "broken"


def test_rows_that_see_each_other_are_found(lora: Trial) -> None:
    """A model whose output depends on the mean over its batch."""
    other = dataclasses.replace(lora, folder=lora.folder)
    for name in ("course", "base_logits", "allowed"):
        other.__dict__[name] = getattr(lora, name)
    built = lora.load()
    head = built.model.get_base_model().lm_head
    handle = head.register_forward_hook(lambda module, inputs, output: output + output.mean(dim=0, keepdim=True))
    other.__dict__["reloaded"] = built
    assert batches.neighbours(other).verdict == "broken"
    handle.remove()
    assert batches.neighbours(other).verdict in ("exact", "within")


def test_no_number_hides_behind_another(lora: Trial) -> None:
    """`max` passes over NaN that does not come first; equal numbers of another precision are no equal bytes."""
    assert math.isnan(starting.worst([0.1, math.nan, 0.2])) and starting.worst([]) == 0
    key = some(lora.course)
    other = with_course(lora, end={**lora.course.end, key: lora.course.end[key].double()})
    assert learning.resume(other).verdict == "broken"


def test_a_gradient_that_is_lost_is_found_beside_larger_ones(lora: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor whose gradients are a millionth of another's, and come out as zero when activations are made again."""
    answers = [{"head": torch.ones(2), "lora": torch.full((2,), 1e-6)}, {"head": torch.ones(2), "lora": torch.zeros(2)}]
    monkeypatch.setattr(abilities, "_gradients", lambda trial: answers.pop(0))
    assert abilities.checkpointing(lora).verdict == "broken"


def test_a_difference_as_large_as_the_adapter_is_a_lost_adapters(lora: Trial) -> None:
    """What merged into nothing would be this far off, too, whatever is allowed."""
    other = with_course(lora, logits=lora.base_logits + 2e-5)
    other.__dict__["allowed"] = 10.0
    finding = afterwards.merge(other)
    assert finding.verdict == "broken" and "may be lost" in finding.text
    assert afterwards.merge(lora).verdict in ("exact", "within")


def test_a_merge_that_loses_the_adapter_is_found_on_a_base_of_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that this adapter does would lie within what rounding explains there, so it is asked in float32."""
    trial = trial_of(tmp_path, model={"dtype": "bfloat16"}, optim={"learning_rate": 1e-3, "warmup_steps": 0})
    finding = afterwards.merge(trial)
    assert finding.verdict in ("exact", "within") and "merged in float32" in finding.text
    moved = starting.difference(trial.course.logits, trial.base_logits)
    assert (finding.figure or 0) < 1e-2 * moved < moved < trial.allowed
    with pytest.raises(UserError, match="16 bits rounds the adapter away"):
        merging.merge(trial.load())
    monkeypatch.setattr(merging, "merge", lambda built: built.model.unload())
    assert afterwards.merge(trial).verdict == "broken"


def test_a_converted_form_that_loses_the_adapter_is_found_on_a_base_of_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = {"learning_rate": 1e-4, "warmup_steps": 0}
    adapter = {**toy.LORA, "init_lora_weights": "pissa"}
    trial = trial_of(tmp_path, adapter=adapter, model={"dtype": "bfloat16"}, optim=optim)
    assert starting.difference(trial.course.logits, trial.base_logits) < trial.allowed
    finding = afterwards.plain_peft(trial)
    assert finding.verdict == "within" and "in float32" in finding.text
    assert afterwards.merge(trial).verdict == "within"
    doubled = _residual._doubled
    monkeypatch.setattr(_residual, "_doubled", lambda *parts: tuple(0 * part for part in doubled(*parts)))
    assert afterwards.plain_peft(trial).verdict == "broken"


def test_a_reload_that_loses_the_adapter_is_not_within_what_is_stated(
    lora: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(afterwards, "stated", lambda spec, what: {"float32": 10.0})
    other = dataclasses.replace(lora)
    other.course = lora.course
    assert afterwards.reload(other).verdict == "exact"
    other.reloaded = models.bare(other.base())
    assert afterwards.reload(other).verdict == "broken"


def test_what_gets_no_gradient_by_the_mathematics_is_in_a_group_all_the_same(
    lora: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"zero_gradient": [".*"], "zero_gradient_because": "by the mathematics"}
    monkeypatch.setattr(learning, "stated", lambda spec, what: said.get(what))
    key = some(lora.course)
    assert learning.gradients(with_course(lora, grouped={**lora.course.grouped, key: 0})).verdict == "broken"


def test_a_start_of_a_task_of_few_rows_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what is left beside the rows that are trained on, however few."""
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    adapter = {**toy.LORA, "init_lora_weights": "corda", "corda_config": {}}
    trial = trial_of(tmp_path, adapter=adapter, task=toy.write_task(tmp_path / "few", train=20))
    assert trial.first.facts["calibration"]["rows"] == 16


def test_padding_of_prompt_methods_keeps_to_their_rule(tmp_path: Path) -> None:
    trial = trial_of(tmp_path, adapter={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})
    finding = batches.neighbours(trial)
    assert finding.verdict in ("exact", "within") and "rows of one length" in finding.text
    assert starting.output(trial).verdict == "stated"
    assert afterwards.merge(trial).verdict == "refused"
    assert abilities.generation(trial).verdict == "exact"


def test_full_fine_tuning_is_asked_what_applies(tmp_path: Path) -> None:
    found = {a.finding.name: a.finding.verdict for a in examination.examine(trial_of(tmp_path, adapter=None))}
    assert "broken" not in found.values()
    assert {name for name, verdict in found.items() if verdict == "exempt"} >= {"merge", "disable", "second", "frozen"}
    assert found["reload"] == found["resume"] == "exact"


def test_compared_by_hand() -> None:
    def ask(figure: float, allowed: float, reason: str | None = None) -> str:
        return compared("x", figure, allowed, what="it", fix="do", stated=reason).verdict

    assert [ask(0.0, 0.0), ask(1e-6, 1e-5), ask(1e-4, 1e-5), ask(1e-4, 1e-5, "so")] == [
        "exact",
        "within",
        "broken",
        "stated",
    ]
    assert ask(float("nan"), 1.0, "so") == "broken"


def test_what_is_stated_is_found_by_the_longest_name(lora: Trial) -> None:
    def disable(**adapter: Any) -> str | None:
        spec = lora.spec.model_copy(update={"adapter": {**toy.LORA, **adapter}})
        found: str | None = stated(spec, "disable")
        return found

    assert "PiSSA" in str(disable(init_lora_weights="pissa_niter_4"))
    assert "layers" in str(disable(layer_replication=[[0, 2]]))
    assert disable() is None and disable(layer_replication=None) is None


# -------------------------------------------------------------------------------------------------- command line


def test_doctor_says_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = toy.write_experiment(tmp_path)
    assert main(["doctor", str(folder)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == len(examination.EVERYTHING) and "nothing is broken" in err
    assert any(line.startswith("ok") and "reload" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiments", "model-llama", "task-generate"]


def test_doctor_ends_with_one_when_something_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At this rate the loss rises; the JSON says which invariant, and how the steps went."""
    folder = toy.write_experiment(tmp_path)
    assert main(["doctor", str(folder), "optim.learning_rate=30", "optim.max_grad_norm=0", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "loss" in found["broken"] and len(found["steps"]) == 6
    assert next(one for one in found["findings"] if one["name"] == "loss")["fix"].startswith("lower optim")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere"),
        (["a", "b"], "one experiment at a time"),
        (["seed=1"], "none is named"),
        (["{experiment}", "optim.learning_rat=1"], "optim"),
        (["{experiment}", "model.id=./nothing"], "nothing"),
    ],
)
def test_bad_input_is_no_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    folder = toy.write_experiment(tmp_path)
    assert main(["doctor", *(word.format(experiment=folder) for word in words)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


def test_too_few_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = toy.write_experiment(tmp_path, task=toy.write_task(tmp_path / "few", train=3))
    assert main(["doctor", str(folder)]) == 2
    assert "3 training rows" in capsys.readouterr().err


def test_doctor_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["verdict"] == "ok" and "45" in found["methods"]["text"]
    layers = [found[name]["verdict"] for name in ("bubblewrap", "namespaces", "user", "Landlock", "seccomp", "limits")]
    assert set(layers) <= {"ok", "-"} and ("programs" in found) == ("ok" not in layers[:2])


def test_adalora_shows_its_own_loss_term(tmp_path: Path) -> None:
    adapter = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "total_step": 6}
    trial = trial_of(tmp_path, adapter={**adapter, "target_modules": ["q_proj", "v_proj"]})
    assert abilities.own_loss(trial).verdict == "stated"
    assert learning.resume(trial).verdict == "exact"
