"""Grades free text (a summary, a reply) by the words it shares with one or several reference texts.

The formulas are those of the field's own libraries, rouge-score and sacrebleu (extra `nlg`), imported when the first
answer is graded. It judges overlap of words, not whether a text is true, and knows no other language's words: ROUGE's
tokens are the runs of ASCII letters and digits, in lower case and stemmed (Porter), so a text without any scores 0.

Modes, each a mean of item scores between 0 and 1 (Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries):
    rouge_l (the metric `rouge`): F1 of the longest common subsequence, the text taken as one sentence.
    rouge_1, rouge_2: F1 of single words and of pairs of words.

With several references the best one counts, for each item and mode, as in `rouge_score`'s `score_multi`. White space
around an answer says nothing; an empty answer is invalid and scores 0.

Over all items:
    bleu: sacrebleu's corpus BLEU (Papineni et al. 2002; Post 2018), with its defaults: 13a tokens, case kept, smoothing
        `exp`, every reference of an item, as a share of 1 and not of 100. It is no mean of item scores: it is computed
        from counts summed over the items, and the numbers an item gets are jackknife pseudo-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from peftlab.errors import UserError, unknown_name
from peftlab.graders._jackknife import pseudo_values
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("rouge_l", "rouge_1", "rouge_2")
_ORIGINAL = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """The F1 under a mode, of the best reference; `answer` is the text without the white space around it."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    references = _references(example)
    answer = (prediction.text or "").strip()
    if not answer:
        return Grade(score=0.0, answer=None, valid=False)
    best = _scorer(mode).score_multi(references, answer)[_ORIGINAL[mode]]
    return Grade(score=float(best.fmeasure), answer=answer, valid=True)


def _references(example: Example) -> list[str]:
    found = example.reference if isinstance(example.reference, (list, tuple)) else [example.reference]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError(
            f"item {example.item}: the reference {str(example.reference)[:80]!r} is no text and no list of texts",
            fix="mend 'reference' in the task file, or the row",
        )
    return list(found)


@cache
def _scorer(mode: str) -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise _extra("rouge-score") from None
    return rouge_scorer.RougeScorer([_ORIGINAL[mode]], use_stemmer=True)


def _extra(library: str) -> UserError:
    return UserError(f"grader 'rouge' needs the library {library}", fix="pip install 'peftlab[nlg]'")


# ----------------------------------------------------------------------------------------------------------- BLEU


def corpus(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, Sequence[float]]:
    """`bleu`, as one number an item whose mean is the corpus BLEU."""
    if not grades:
        return {}
    counted = [
        _counts(grade.answer or "", _references(example)) for grade, example in zip(grades, examples, strict=True)
    ]
    total = [sum(column) for column in zip(*counted, strict=True)]
    without = [_bleu([all_ - own for all_, own in zip(total, one, strict=True)]) for one in counted]
    return {"bleu": pseudo_values(_bleu(total), without)}


def _counts(answer: str, references: Sequence[str]) -> list[int]:
    """What BLEU is computed from: matched and all n-grams of four lengths, the answer's and the reference's length."""
    found = _metric().corpus_score([answer], [[text] for text in references])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _bleu(counts: Sequence[int]) -> float:
    orders = (len(counts) - 2) // 2
    matched, every = list(counts[:orders]), list(counts[orders : 2 * orders])
    found = _metric().compute_bleu(matched, every, counts[-2], counts[-1], smooth_method="exp")
    return float(found.score) / 100


@cache
def _metric() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise _extra("sacrebleu") from None
    return BLEU()


PLUGIN = Grader(version=1, metric="rouge", modes=MODES, grade=grade, corpus=corpus, corpus_metrics=("bleu",))
