"""docs/moving.md: every command, flag and key of five systems is in it, and what stands beside each exists here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, get_args

import peft
import pytest
import torch

import documents
from peftlab.config.groups import GROUPS
from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.config.task import Task
from peftlab.dialects import _s1_sections, s0
from peftlab.protocols import find, names
from peftlab.records.record import Status
from peftlab.records.store import RunStore

ROOT = documents.ROOT
PAGE = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
SYSTEMS = ("S0", "S1", "S2", "S3", "S4")
WORDS = ("not yet", "left out, because ")

THERE = {
    "S0": """
        --verbose -v --clean --bucket_name run.py app.py default_training_params.json
        training_parameters.json training_params.json UPLOAD_BUCKET make success failed canceled results
        temporary_results cancelled_results app_embed.py highlight[type] gallery shop train_config peft_config
    """,
    "S1": """
        --config --resume_from_checkpoint --local_rank --model_path --input_text --input_file --output_file
        --max_new_tokens --adapter_path --output_path --push_to_hub --hub_model_id train.py inference.py
        merge_adapter.py validate_config.py quick_start.py train_glue.sh train_metamath.sh
        train_multi_gpu.sh run_inference.sh configs/glue_mrpc.yaml configs/gsm8k.yaml
        configs/code_feedback.yaml configs/metamath_qa.yaml configs/accelerate_config.yaml
    """,
    "S2": """
        --eval_tasks --low_rank_adaptations --lora_r --lora_alpha --lora_dropout --num_epochs
        --learning_rate --batch_size --max_length --seed --model_name --model_max_length --dataset_split
        --optim --dataset_field --weight_decay --warmup_ratio --gradient_accumulation_steps --lr_scheduler
        --lora_model_path --pissa_model_path --corda_model_path --dora_model_path --output_file
        --bigcode_eval_path GLUE_evaluation.py math_train.py code_train.py math_evaluation.py
        code_evaluation.py
    """,
    "S3": """
        --peft_type --model_name --dataset --r_ab --target_modules --batch --grad_acc --lr --epoch --warmup
        --weight_decay --load_bit --enable_grad_ckpt --seed --eval_strategy --eval_steps --beam_size
        --max_new_tokens --ckpt --output_folder --num_workers --dataset_ratio --local_rank --ds_config
        --virtual_tokens --load_order --init_ab --train_ab --do_sample --rand_R --exp_name --decoding
        --save_total_limit --early_stop_patience --exclude_modules --modules_to_save --adapter_size
        --compute_rank --compute_norm --dataset_analysis train_hira.py download_all_eval_datasets.py
        hira_all_dataset.sh lora_all_dataset.sh fft_all_dataset.sh ia3_all_dataset.sh analyze_all_methods.sh
        env.yml output.jsonl trainer_state.json training_args.bin evaluation_summary.json
    """,
    "S4": """
        --config dataset batch_size acc_steps seed data_seed iterations max_duration lr warmup_percent
        scheduler opt weight_decay beta1 beta2 grad_clip eval_freq save_checkpoint_freq use_pretrained dtype
        compile dropout multiple_of rmsnorm_eps n_layer n_head n_embd sequence_length vocab_size peft_type
        lora_r lora_alpha lora_dropout init_lora_weights wandb noam_wide4.yaml second_stage_full.yaml
        req.txt summary.json save_jit.py
    """,
}
"""Commands, flags, files and words of the five systems, from their own documents and option parsers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: what is written there, and what is written here."""

    system: str
    there: str
    here: str


def table_rows() -> Iterator[Row]:
    system = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            system = line[3:5]
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if len(cells) == 2 and system in SYSTEMS and cells[1] != "here" and not cells[0].startswith("--"):
            yield Row(system=system, there=cells[0], here=cells[1].rstrip(" |"))


ROWS = list(table_rows())
FORMS = list(dict.fromkeys(form for row in ROWS for form in re.findall(r"`([^`]+)`", row.here)))


def keys_of_s1() -> list[str]:
    """Dotted names of the keys of its sections."""
    found = []
    for name, field in _s1_sections.File.model_fields.items():
        section = next((part for part in (field.annotation, *get_args(field.annotation)) if _is_section(part)), None)
        found += [f"{name}.{key}" for key in section.model_fields] if section else [name]
    return found


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, _s1_sections.Section)


@pytest.mark.parametrize(
    ("system", "keys"),
    [("S0", s0.HOMES), ("S1", keys_of_s1()), ("S2", ()), ("S3", ()), ("S4", ())],
    ids=SYSTEMS,
)
def test_nothing_of_a_system_is_forgotten(system: str, keys: Iterable[str]) -> None:
    expected = [*THERE[system].split(), *keys]
    section = PAGE.split(f"\n## {system}")[1].split("\n## ")[0]
    text = "\n".join(
        [line for line in section.splitlines() if not line.startswith("|")]
        + [row.there for row in ROWS if row.system == system]
    )
    missing = [name for name in expected if not re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", text)]
    assert missing == []


def test_every_line_says_what_or_why() -> None:
    assert len(ROWS) > 150
    empty = [row.there for row in ROWS if not re.search(r"`", row.here) and not _says(row.here)]
    assert empty == []
    reasons = [
        row.there for row in ROWS if "left out" in row.here and not re.search(r"left out, because \w+", row.here)
    ]
    assert reasons == []


PLAIN = (
    *("the same", "as above", "any path", "the path itself", "a run", "the name of", "a button", "the record"),
    *("the page's", "a table below the page's plot", "the menu above the page's plot"),
)


def _says(here: str) -> bool:
    return here.startswith((*WORDS, *PLAIN))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_exists(form: str) -> None:
    if "peftlab " in form:
        [command] = documents.commands(f"`{form}`")
        settings = documents.settings_of(documents.take_apart(command))
        assert documents.unknown_settings(settings) == []
        assert all(documents.own_path(word, PAGE) for word in command.words)
        return
    if form.startswith("?"):
        assert f'get("{form[1:].partition("=")[0]}")' in (ROOT / "src/peftlab/report/sections/cost.js").read_text()
        return
    key, equals, value = form.partition("=")
    if documents.is_setting(key):
        assert not equals or _takes(key, value)
    elif key in ("task", "seed"):
        assert value.isdigit() if key == "seed" else (ROOT / "src" / "peftlab" / "tasks" / f"{value}.yaml").is_file()
    else:
        assert form in known_names() or (ROOT / form).exists() or _make_target(form), form


def _takes(key: str, value: str) -> bool:
    """Whether a setting can have that value; the others of its group are such that they do not mind."""
    group, _, name = key.partition(".")
    around: dict[str, Any] = {"id": "x"} if group == "model" else {}
    around |= {"do_sample": True} if group == "generation" else {}
    around |= {"method": "bnb-nf4"} if group == "quant" else {}
    try:
        parsed: Any = json.loads(value)
    except ValueError:
        parsed = value
    return getattr(validated(GROUPS[group], {**around, name: parsed}, where=key), name) is not Ellipsis


def _make_target(form: str) -> bool:
    verb, _, target = form.partition(" ")
    return verb == "make" and f"\n{target}:" in (ROOT / "Makefile").read_text()


@cache
def known_names() -> frozenset[str]:
    """What a form may be besides commands, settings and files of the repository."""
    flags = json.loads((ROOT / "tests" / "golden" / "flags.json").read_text())
    adapters = {
        f"adapter_config.json: {field.name}"
        for config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.values()
        for field in dataclasses.fields(config)
    }
    own = [find("methods", name).config for name in names("methods")]
    adapters |= {f"adapter_config.json: {name}" for config in own if config is not None for name in config.model_fields}
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "peftlab").rglob("*.py"))
    files = set(re.findall(r'"([a-z_]+\.jsonl?)"', source))
    folders = {name for name in ("adapter", "checkpoints", "evaluations") if f'"{name}"' in source}
    places = RunStore("results").places
    optimizers = {*dir(torch.optim), *_s1_optimizers(), *s0.PEFT_OPTIMIZERS}
    grader = find("graders", "numeric")
    kinds = get_args(Task.model_fields["kind"].annotation)
    return frozenset(
        {flag for of_verb in flags.values() for flag in of_verb}
        | adapters
        | files
        | folders
        | {path.name for path in places.all()}
        | optimizers
        | {*grader.modes, *names("graders"), *names("engines"), *names("dialects"), *names("trackers"), *kinds}
        | {*Task.model_fields, *Source.model_fields, *get_args(Status)}
        | set(peft.TaskType.__members__)
    )


def _s1_optimizers() -> set[str]:
    return set(_s1_sections.OPTIMIZERS.values())


def test_settings_and_links_in_the_text_exist() -> None:
    text = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    dotted = re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`]*)?`", text)
    assert dotted and all(documents.is_setting(name) for name in dotted if name.partition(".")[0] in GROUPS)
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
