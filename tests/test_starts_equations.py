"""What adapters begin as, against the equations of the starts' papers, written here in float64 with numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftlab.config.spec import RunSpec
from peftlab.loop import preparation
from peftlab.modelling.models import Built
from peftlab.rows import calibration, data, tokenise
from peftlab.scores import scoring
from starts_material import spec_of

SCALING = 6 / 2.0  # alpha / sqrt(r), as the material's adapter asks for rsLoRA
RANK = 4
Matrix = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))


def begun(spec: RunSpec) -> tuple[dict[str, Matrix], dict[str, Matrix], Built]:
    """The base's weights before, after, and the model as it begins."""
    base = scoring.load_base(spec)
    before = {name: tensor.detach().double().numpy().copy() for name, tensor in base.model.named_parameters()}
    built = preparation.prepare(spec, data.load(spec), base).built
    after = {}
    for name, tensor in built.model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in before:
            after[plain] = tensor.detach().double().numpy()
    return before, after, built


def factors(built: Built) -> Iterator[tuple[str, Matrix, Matrix]]:
    """Each layer's A and B."""
    found = {name: tensor.detach().double().numpy() for name, tensor in built.model.named_parameters()}
    for name, a in found.items():
        if ".lora_A." in name:
            plain = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
            yield plain, a, found[name.replace("lora_A", "lora_B")]


def inputs(spec: RunSpec, count: int) -> dict[str, list[Matrix]]:
    """What each linear layer sees of the first training rows, one row at a time, without padding."""
    base = scoring.load_base(spec)
    rows, _ = tokenise.tokenise(
        data.load(spec).train[:count], base.tokenizer, kind="causal", max_length=64, loss_mask="answer"
    )
    seen: dict[str, list[Matrix]] = {}
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda module, given, output, name=name: seen.setdefault(name, []).append(given[0][0].double().numpy())
            )
    base.model.eval()
    with torch.no_grad():
        for row in rows:
            base.model(input_ids=torch.tensor([row.ids]))
    return seen


def same_up_to_signs(a: Matrix, b: Matrix, expected_a: Matrix, expected_b: Matrix) -> None:
    """Singular vectors are known up to a sign, which A's row and B's column have in common."""
    signs = np.sign(np.sum(a * expected_a, axis=1))
    for found, expected in ((a, signs[:, None] * expected_a), (b, expected_b * signs)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_pissa(tmp_path: Path) -> None:
    """Meng et al. 2024, equations 2 to 4: A = sqrt(S) V^T, B = U sqrt(S) of the r largest; the rest is the base."""
    before, after, built = begun(spec_of(tmp_path, "pissa"))
    found = list(factors(built))
    assert len(found) == 4
    for name, a, b in found:
        weight = before[f"{name}.weight"]
        u, s, vt = np.linalg.svd(weight)
        root = np.sqrt(s[:RANK] / SCALING)
        same_up_to_signs(a, b, root[:, None] * vt[:RANK], u[:, :RANK] * root)
        rest = (u[:, RANK : len(s)] * s[RANK:]) @ vt[RANK : len(s)]
        np.testing.assert_allclose(after[f"{name}.weight"], rest, atol=1e-4 * np.abs(weight).max())


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda(tmp_path: Path, mode: str) -> None:
    """Yang et al. 2024, equations 1 to 5: C = X X^T, SVD(W C) = U S V^T, W = U S (V^T C^-1).

    The first r triplets in the instruction-previewed mode, the last in the knowledge-preserved one. As in the authors'
    code, each row is divided by its largest value, C is averaged over the rows, its diagonal is raised by a hundredth
    of its mean, twice as much again until it can be inverted (error below 0.05).
    """
    rows = {"rows": 40, "selection": "first"}
    adapter = {"corda_config": {"corda_method": mode}, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    spec = spec_of(tmp_path, "corda", calibration=rows, adapter=adapter)
    before, after, built = begun(spec)
    seen = inputs(spec, 40)
    found = list(factors(built))
    assert len(found) == 6
    for name, a, b in found:
        covariance = np.mean([(x / abs(x.max())).T @ (x / abs(x.max())) for x in seen[name]], axis=0)
        size, damp = len(covariance), 0.01
        while True:
            raised = covariance + damp * np.diag(covariance).mean() * np.eye(size)
            inverse = np.linalg.inv(raised)
            if np.linalg.norm(raised @ inverse - np.eye(size)) < 0.05:
                break
            damp *= 2
        weight = before[f"{name}.weight"]
        u, s, vt = np.linalg.svd(weight @ raised, full_matrices=False)
        kept = slice(0, RANK) if mode == "ipm" else slice(len(s) - RANK, len(s))
        root = np.sqrt(s[kept] / SCALING)
        same_up_to_signs(a, b, root[:, None] * (vt[kept] @ inverse), u[:, kept] * root)
        rest = weight - (u[:, kept] * s[kept]) @ vt[kept] @ inverse
        np.testing.assert_allclose(after[f"{name}.weight"], rest, atol=1e-4 * np.abs(weight).max())


def test_olora(tmp_path: Path) -> None:
    """Buyukakyuz 2024, algorithm 1: W = Q R; B = Q[:, :r], A = R[:r], the base W - s B A."""
    before, after, built = begun(spec_of(tmp_path, "olora"))
    for name, a, b in factors(built):
        weight = before[f"{name}.weight"]
        q, r = np.linalg.qr(weight)
        same_up_to_signs(a, b, r[:RANK], q[:, :RANK])
        rest = weight - SCALING * q[:, :RANK] @ r[:RANK]
        np.testing.assert_allclose(after[f"{name}.weight"], rest, atol=1e-4 * np.abs(weight).max())


def test_lora_ga(tmp_path: Path) -> None:
    """Wang et al. 2024, theorem 3.1: of the gradient's SVD, A takes the first r right vectors, B the next r left ones.

    peft scales B by the singular values and d_out^(1/4) / gamma^(1/2) (`lora_ga_config.scale: stable`). The gradient is
    the mean over batches of the library's own loss, taken here with a plain backward pass.
    """
    rows = {"rows": 12, "selection": "first", "batch_size": 4}
    spec = spec_of(tmp_path, "lora_ga", calibration=rows, adapter={"lora_ga_config": {"stable_gamma": 16}})
    before, after, built = begun(spec)
    base = scoring.load_base(spec)
    chosen = calibration.choose(spec, _start("lora_ga"), data.load(spec), base.tokenizer)
    assert [row.item for row in chosen.rows] == [row.item for row in data.load(spec).train[:12]]
    base.model.train()
    for batch in calibration.Batches(chosen, pad_id=0, device=torch.device("cpu")):
        assert batch["input_ids"].shape[0] == 4
        (base.model(**batch).loss / 3).backward()
    gradients = {name: tensor.grad.double().numpy() for name, tensor in base.model.named_parameters()}
    for name, a, b in factors(built):
        gradient = gradients[f"{name}.weight"]
        u, s, vt = np.linalg.svd(gradient)
        scale = gradient.shape[0] ** 0.25 / 16**0.5
        expected_a, expected_b = vt[:RANK], u[:, RANK : 2 * RANK] * s[RANK : 2 * RANK] * scale
        # the vectors of A and those of B have signs of their own
        signs_a, signs_b = np.sign(np.sum(a * expected_a, axis=1)), np.sign(np.sum(b * expected_b, axis=0))
        np.testing.assert_allclose(a, signs_a[:, None] * expected_a, atol=2e-3)
        np.testing.assert_allclose(b, expected_b * signs_b, atol=2e-3 * np.abs(expected_b).max())
        weight = before[f"{name}.weight"]
        np.testing.assert_allclose(after[f"{name}.weight"], weight - SCALING * b @ a, atol=1e-6 * np.abs(weight).max())


def test_eva(tmp_path: Path) -> None:
    """Paischer et al. 2024, section 3.2: A's rows are the right singular vectors of what the layer sees; B is zero.

    Here without moving ranks (rho = 1), over all tokens of a single batch, whose components are those of its SVD.
    """
    options = {"rho": 1.0, "use_label_mask": False, "tau": 0.99}
    rows = {"rows": 16, "selection": "first", "batch_size": 16}
    spec = spec_of(tmp_path, "eva", calibration=rows, adapter={"eva_config": options, "target_modules": ["down_proj"]})
    before, after, built = begun(spec)
    seen = inputs(spec, 16)
    for name, a, b in factors(built):
        everything = np.concatenate(seen[name])
        _, _, vt = np.linalg.svd(everything - everything.mean(axis=0), full_matrices=False)
        assert np.abs(np.sum(a * vt[:RANK], axis=1)).min() > 0.99
        assert not b.any()
    assert all(np.array_equal(before[name], after[name]) for name in after)


def _start(name: str) -> Any:
    from peftlab.protocols import find

    return find("starts", name)
