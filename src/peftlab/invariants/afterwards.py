"""After training: saved and loaded again, loaded by plain peft, merged, disabled, beside a second adapter."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from peftlab import own
from peftlab.errors import UserError
from peftlab.invariants.findings import Finding, compared, reason_of, said, stated
from peftlab.invariants.starting import difference
from peftlab.invariants.trial import Trial
from peftlab.modelling import merging, models, randomness, weights
from peftlab.modelling.adapting import quiet_peft

REFUSALS = (*models.LOADING_ERRORS, NameError, AssertionError, NotImplementedError, UserError)
"""What the libraries raise for something that they do not offer."""
_TELLS = 0.5
"""Share of the adapter's own part above which a difference does not say whether the adapter is there."""
_NOT_PEFT = "the method is peftlab's own, not peft's"


def reload(trial: Trial) -> Finding:
    """Saved, and loaded onto a fresh base as the job does it: the logits of the model that was trained."""
    tolerance = stated(trial.spec, "reload_tolerance") or {}
    share = tolerance.get(trial.spec.model.dtype, 0.0)
    found = compared(
        "reload",
        difference(trial.logits(trial.reloaded), trial.course.logits),
        share * float(trial.base_logits.abs().max()),
        what="saved and loaded onto a fresh base",
        fix="do not trust a score of this method: what is evaluated is the adapter as it was saved",
    )
    return _weighed(found, difference(trial.course.logits, trial.base_logits))


def plain_peft(trial: Trial) -> Finding:
    """The saved folder, loaded by peft alone."""
    import peft

    name = "plain peft"
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning has no adapter")
    if trial.reloaded.method.config is not None:
        return said(name, "exempt", _NOT_PEFT)
    folder, shared = trial.saved, trial.folder / "shared"
    converted = weights.share(trial.spec, folder, shared)
    folder = shared if converted else folder
    own = trial.reloaded.method.load is not None
    asked = trial.exact if converted else trial
    base = asked.base()
    try:
        with quiet_peft(), randomness.seeded(trial.spec.seed + 1, "adapter"):
            model = peft.PeftModel.from_pretrained(
                base.model, str(folder), autocast_adapter_dtype=trial.spec.model.autocast_adapter_dtype
            )
    except REFUSALS as error:
        reason = reason_of(error)
        if converted:
            text = f"peft alone cannot load the converted form: {reason}"
            return said(name, "broken", text, fix="report it with the config")
        return said(name, "refused", f"peft alone cannot load it: {reason}")
    built = models.built_on(base, model, model.peft_config["default"], trial.reloaded.method, frozenset(), {})
    logits = asked.logits(built)
    if converted:  # another sum of the same parts
        what = f"the converted form, loaded by peft alone in {asked.spec.model.dtype}"
        native = trial.course.logits if asked is trial else asked.logits(asked.load())
        found = compared(name, difference(logits, native), asked.allowed, what=what, fix="share the native form")
        return _weighed(found, difference(native, asked.base_logits))
    figure = difference(logits, trial.course.logits)
    share = (stated(trial.spec, "reload_tolerance") or {}).get(trial.spec.model.dtype, 0.0)
    allowed = share * float(trial.base_logits.abs().max())
    reason = stated(trial.spec, "plain_peft")
    if figure > allowed and reason is None and own:
        reason = "peft loads it wrong, which is why peftlab saves and loads it itself"
    found = compared(name, figure, allowed, what="loaded by peft alone", fix="load it with peftlab", stated=reason)
    return _weighed(found, difference(trial.course.logits, trial.base_logits))


def merge(trial: Trial) -> Finding:
    """Merged into the base's weights in float32: the logits of the adapter on that base, or a refusal."""
    name = "merge"
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning has no adapter")
    exact = trial.exact
    built = exact.load()
    before = trial.course.logits if exact is trial else exact.logits(built)
    try:
        merged = merging.merge(built)
    except UserError as error:
        return said(name, "refused", error.message)
    logits = exact.logits(models.built_on(exact.pristine, merged, None, built.method, frozenset(), {}))
    found = compared(
        name,
        difference(logits, before),
        exact.allowed,
        what=f"merged in {exact.spec.model.dtype}",
        fix="keep the adapter apart from the base",
    )
    return _weighed(found, difference(before, exact.base_logits))


def _weighed(found: Finding, moved: float) -> Finding:
    """A difference that rounding could make, but that is half of what the adapter moves logits by, is a lost adapter's.

    What is allowed is a share of the largest logit, and a small adapter that was lost altogether lies within it.
    """
    if found.verdict != "within" or found.figure is None or found.figure < _TELLS * moved:
        return found
    text = f"{found.text}, but the adapter itself moves logits by {moved:.1e}: it may be lost"
    fix = "train it longer, so that it moves more than rounding does, and ask again"
    return dataclasses.replace(found, verdict="broken", text=text, fix=fix)


def disable(trial: Trial) -> Finding:
    """With the adapter switched off the output is the base's, or that is refused."""
    name = "disable"
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning has no adapter")
    built = trial.reloaded
    ours = built.method.config is not None
    try:
        with quiet_peft(), own.disabled(built.model) if ours else built.model.disable_adapter():
            logits = trial.logits(models.built_on(trial.pristine, built.model, None, built.method, frozenset(), {}))
    except REFUSALS as error:
        return said(name, "refused", f"peft cannot switch it off: {reason_of(error)}; score the base by itself")
    reason = stated(trial.spec, "disable")
    if reason is None and trial.course.freed:
        reason = f"tensors of the base itself are trained, such as {trial.course.freed[0]}, and stay as they are"
    return compared(
        name,
        difference(logits, trial.base_logits),
        0.0,
        what="switched off, against the base",
        fix="score the base by itself, not the adapted model with its adapter off",
        stated=reason,
    )


def second(trial: Trial) -> Finding:
    """A second adapter on the same model leaves the first alone, or is refused; asked last, as it uses the model up."""
    name = "second"
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning has no adapter")
    built = trial.reloaded  # nobody asks it after this
    if built.method.config is not None:
        return said(name, "exempt", _NOT_PEFT)
    before = trial.logits(built)
    try:
        with quiet_peft(), randomness.seeded(trial.spec.seed + 1, "adapter"):
            config: Any = copy.deepcopy(built.model.peft_config["default"])
            config.inference_mode = False
            built.model.add_adapter("second", config)
            built.model.set_adapter("default")
        logits = trial.logits(built)
    except REFUSALS as error:
        return said(name, "refused", f"peft takes no second one: {reason_of(error)}")
    figure = difference(logits, before)
    if figure > 0:
        text = f"one adapter a model: peft lets a second one in, and it changes the first by {figure:.2g}"
        return said(name, "refused", f"{text}; peftlab never puts two on one base")
    return said(name, "exact", "a second adapter on the same model leaves the first alone")
