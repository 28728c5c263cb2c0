"""Answers by a search with several beams, as LLM-Adapters (4) and the HiRA baselines (8) score their tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.modelling import models
from peftlab.rows import data
from peftlab.scores import evaluation


@pytest.mark.parametrize("beams", [4, 8])
def test_a_generated_task_is_answered_as_by_transformers_own_search(tmp_path: Path, beams: int) -> None:
    """Prompts of several lengths share batches here, and are searched one by one there."""
    folder = toy.write_experiment(tmp_path, generation={"max_new_tokens": 6})
    greedy = loading.load(folder)
    spec = loading.load(folder, overrides={"generation.num_beams": beams})
    built = models.bare(models.load(spec.model, "causal"))
    rows = data.load(spec).test
    scored = toy.drained(evaluation.score(built, rows, spec))
    assert len({len(row.prompt) for row in rows}) > 1
    expected = []
    for row in rows:
        ids = torch.tensor([built.tokenizer(row.prompt)["input_ids"]])
        with torch.no_grad():
            found = built.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=6,
                eos_token_id=list(built.stop_ids),
                pad_token_id=built.pad_id,
            )
        expected.append(built.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    for sample, text in zip(scored.samples, expected, strict=True):
        cut = min([text.find(stop) for stop in spec.task.stop if stop in text] or [len(text)])
        assert sample["prediction"]["text"] == text[:cut]
    alone = toy.drained(evaluation.score(built, rows, greedy))
    assert [one["prediction"]["text"] for one in alone.samples] != [one["prediction"]["text"] for one in scored.samples]
    source = spec.base_identity()
    assert spec.evaluation_key("test", source) != greedy.evaluation_key("test", source)
