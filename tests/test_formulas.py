"""Forward passes of methods against their papers' equations, written out in numpy and float64.

One linear layer stands for all: weight W [out, in], bias b, input x [rows, in]; trained tensors hold random numbers.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
from torch import nn

from peftlab import own
from peftlab.methods import hadamard, knowhira

IN, OUT, RANK, ROWS = 12, 8, 3, 5


class One(nn.Module):
    """A model of one layer, with what peft asks a model for."""

    base_model_prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(IN, OUT)
        self.config = {"model_type": "one"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.layer(x))


def plain(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1))


def adapted(config: Any) -> tuple[Any, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The model under peft with random numbers in all that is trained; W, b and the trained tensors by last name."""
    torch.manual_seed(0)
    model = One()
    weight, bias = plain(model.layer.weight), plain(model.layer.bias)
    wrapped = peft.get_peft_model(cast(Any, model), config)
    found = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            nn.init.uniform_(parameter, -0.7, 1.3)
            found[name.split("layer.")[-1].split(".")[0]] = plain(parameter)
    return wrapped, weight, bias, found


def agrees(output: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(plain(output) - expected).max() < 1e-5


def test_hira_is_the_weight_times_a_low_rank_product(x: torch.Tensor) -> None:
    """Huang et al. 2025, HiRA, eq. 3: W = W0 + W0 o (B A)."""
    model, weight, bias, found = adapted(peft.HiraConfig(r=RANK, target_modules=["layer"]))
    low = found["hira_B"] @ found["hira_A"]
    agrees(model(x), plain(x) @ (weight + weight * low).T + bias)
    assert np.linalg.matrix_rank(weight * low) > RANK, "what the method is for"


def test_ia3_scales_what_leaves_an_attention_layer(x: torch.Tensor) -> None:
    """Liu et al. 2022, (IA)^3, section 3.3: l_k o K and l_v o V."""
    model, weight, bias, found = adapted(peft.IA3Config(target_modules=["layer"], feedforward_modules=[]))
    scale = found["ia3_l"].reshape(-1)
    assert scale.shape == (OUT,)
    agrees(model(x), scale * (plain(x) @ weight.T + bias))


def test_ia3_scales_what_enters_a_feed_forward_layer(x: torch.Tensor) -> None:
    """Liu et al. 2022, (IA)^3, section 3.3: (l_ff o gamma(W1 x)) W2."""
    model, weight, bias, found = adapted(peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"]))
    scale = found["ia3_l"].reshape(-1)
    assert scale.shape == (IN,)
    agrees(model(x), (scale * plain(x)) @ weight.T + bias)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4 / RANK), (True, 4 / RANK**0.5)])
def test_dora_learns_length_and_direction_apart(x: torch.Tensor, rslora: bool, scale: float) -> None:
    """Liu et al. 2024, DoRA, eq. 5: W' = m (W0 + B A) / |W0 + B A|, the length taken of what makes one output."""
    config = peft.LoraConfig(r=RANK, lora_alpha=4, use_dora=True, use_rslora=rslora, target_modules=["layer"])
    model, weight, bias, found = adapted(config)
    direction = weight + scale * found["lora_B"] @ found["lora_A"]
    length = np.linalg.norm(direction, axis=1)
    magnitude = found["lora_magnitude_vector"].reshape(-1)
    agrees(model(x), plain(x) @ (magnitude[:, None] * direction / length[:, None]).T + bias)


def test_dora_starts_from_the_weights_own_lengths(x: torch.Tensor) -> None:
    torch.manual_seed(0)
    bare = One()
    before = bare(x)
    lengths = np.linalg.norm(plain(bare.layer.weight), axis=1)
    model = peft.get_peft_model(cast(Any, bare), peft.LoraConfig(r=RANK, use_dora=True, target_modules=["layer"]))
    [magnitude] = [one for name, one in model.named_parameters() if "magnitude" in name]
    assert np.abs(plain(magnitude).reshape(-1) - lengths).max() < 1e-6
    agrees(model(x), plain(before))


# ------------------------------------------------------------------------------------------------------ our own


def know_hira(model: One, **changes: Any) -> tuple[One, knowhira.KnowHiraLinear]:
    config = knowhira.KnowHiraConfig(
        peft_type="KNOWHIRA", task_type="CAUSAL_LM", target_modules=["layer"], **{"r": RANK, **changes}
    )
    knowhira.wrap(model, config)
    [layer] = own.layers(model)
    assert isinstance(layer, knowhira.KnowHiraLinear)
    return model, layer


def singular_values(weight: np.ndarray) -> np.ndarray:
    """From the eigenvalues of W W^T, not from the decomposition that the method uses."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(weight @ weight.T)[::-1], 0))


@pytest.mark.parametrize("adaptive", [True, False])
def test_knowhira_gates_the_product_by_the_singular_values(x: torch.Tensor, adaptive: bool) -> None:
    """Cui et al. 2025, eq. 1 and 2: dW = W0 o (A G B), G = diag(sigma o sigmoid(g)); and the factor of its code."""
    torch.manual_seed(0)
    model, layer = know_hira(One(), knowledge_alpha=0.6, adaptive_gating=adaptive)
    weight, bias = plain(layer.base_layer.weight), plain(layer.base_layer.bias)
    for parameter in (layer.A, layer.B, layer.gate):
        if parameter is not None:
            nn.init.uniform_(parameter, -0.7, 1.3)
    found = singular_values(weight)
    gates = found[:RANK] / found[0]
    if layer.gate is not None:
        gates = gates / (1 + np.exp(-plain(layer.gate)))
    update = 0.6 * weight * (plain(layer.A) @ np.diag(gates) @ plain(layer.B))
    assert layer.A.shape == (OUT, RANK) and layer.B.shape == (RANK, IN) and (layer.gate is not None) is adaptive
    agrees(model(x), plain(x) @ (weight + update).T + bias)
    with own.disabled(model):
        agrees(model(x), plain(x) @ weight.T + bias)
    agrees(own.merge(model)(x), plain(x) @ (weight + update).T + bias)
    assert not list(own.layers(model))


def test_knowhira_starts_at_the_base_from_a_scaled_kaiming(x: torch.Tensor) -> None:
    """Section 3.5: B at zero, A as Kaiming's numbers scaled by the spectrum; the scales are those of its code."""
    torch.manual_seed(0)
    bare = One()
    before, weight = plain(bare(x)), plain(bare.layer.weight)
    torch.manual_seed(5)
    model, layer = know_hira(bare, spectrum_init_scale=0.05)
    agrees(model(x), before)
    assert not layer.B.any() and layer.gate is not None and not layer.gate.any()
    found = singular_values(weight)
    torch.manual_seed(5)
    uniform = plain(nn.init.kaiming_uniform_(torch.empty(RANK, OUT), a=5**0.5))
    scale = 0.05 * (0.1 + 0.9 * found[:RANK] / found[0])
    assert np.abs(plain(layer.A) - uniform.T * scale).max() < 1e-6


def test_knowhira_penalises_what_is_not_orthogonal() -> None:
    """Eq. 3 and 4: lambda (|A^T A - I|^2 + |B B^T - I|^2), summed over layers; zero for orthonormal A and B."""
    model, layer = know_hira(One(), ortho_lambda=0.5)
    nn.init.normal_(layer.B)
    a, b = plain(layer.A), plain(layer.B)
    both = np.sum((a.T @ a - np.eye(RANK)) ** 2) + np.sum((b @ b.T - np.eye(RANK)) ** 2)
    assert float(knowhira.extra_loss(model, 1).detach()) == pytest.approx(0.5 * both, rel=1e-5)
    with torch.no_grad():
        layer.A.copy_(torch.linalg.qr(torch.randn(OUT, RANK)).Q)
        layer.B.copy_(torch.linalg.qr(torch.randn(IN, RANK)).Q.T)
    assert float(knowhira.extra_loss(model, 1).detach()) == pytest.approx(0.0, abs=1e-9)


def test_knowhira_counts_a_share_of_the_singular_values() -> None:
    """Beyond `svd_rank_ratio` of them a gate is one, as its code pads them."""
    _, layer = know_hira(One(), r=OUT, svd_rank_ratio=0.5, adaptive_gating=False)
    values = singular_values(plain(layer.base_layer.weight))
    assert np.abs(plain(layer.sigma) - [*(values[:4] / values[0]), 1, 1, 1, 1]).max() < 1e-5


@pytest.mark.parametrize("random", [False, True])
def test_hadamard_is_hira_with_what_it_multiplies_and_trains_chosen(x: torch.Tensor, random: bool) -> None:
    """HiRA's eq. 3, W = W0 + W0 o (B A), and its ablation: random numbers in the place of W0."""
    torch.manual_seed(0)
    model = One()
    weight, bias = plain(model.layer.weight), plain(model.layer.bias)
    config = hadamard.HadamardConfig(
        peft_type="HADAMARD", task_type="CAUSAL_LM", r=RANK, target_modules=["layer"], init_b="kaiming", train_a=False
    )
    hadamard.wrap(model, config.model_copy(update={"rand_R": random}))
    [layer] = own.layers(model)
    assert isinstance(layer, hadamard.HadamardLinear)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["layer.B"]
    multiplied = weight if layer.R is None else plain(layer.R)
    assert (layer.R is None) is not random and layer.A.any() and layer.B.any()
    agrees(model(x), plain(x) @ (weight + multiplied * (plain(layer.B) @ plain(layer.A))).T + bias)
    assert set(own.tensors(model)) == {"layer.A", "layer.B", *(["layer.R"] if random else [])}


def test_hadamard_with_s3s_defaults_starts_at_the_base_as_hira_does(x: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = One()
    before = plain(model(x))
    config = hadamard.HadamardConfig(peft_type="HADAMARD", task_type="CAUSAL_LM", target_modules=["layer"], r=RANK)
    hadamard.wrap(model, config)
    agrees(model(x), before)
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == RANK * (IN + OUT)
