"""Attention implementations, dropout, and gradient checkpointing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from onevision_encoder import OneVisionEncoderModel
from tests.onevision_encoder.conftest import largest_difference

Build = Callable[..., OneVisionEncoderModel]


def test_sdpa_is_the_default(build: Build) -> None:
    assert OneVisionEncoderModel(build().config).config._attn_implementation == "sdpa"


def test_eager_and_sdpa_agree_and_eager_shows_its_weights(build: Build) -> None:
    eager, sdpa, pixels = build("eager"), build("sdpa"), torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        shown = eager(pixels, output_attentions=True)
        assert largest_difference(shown.last_hidden_state, sdpa(pixels).last_hidden_state) < 1e-5
    assert [tuple(weights.shape) for weights in shown.attentions] == [(2, 2, 6, 6)] * 2
    for weights in shown.attentions:
        assert largest_difference(weights.sum(-1), torch.ones(2, 2, 6)) < 1e-5
        # Every token sees every other, later ones too.
        assert float(weights.min()) > 0


def test_sdpa_cannot_show_weights(build: Build) -> None:
    model = build("sdpa")
    with pytest.raises(ValueError, match=r"sdpa.*set_attn_implementation"):
        model(torch.randn(1, 3, 8, 8), output_attentions=True)
    model.set_attn_implementation("eager")
    assert len(model(torch.randn(1, 3, 8, 8), output_attentions=True).attentions) == 2


def test_flash_attention_is_called_through_transformers(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the flash function's interface: heads before tokens in, tokens before heads out."""
    calls = []

    def stand_in(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: float
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        assert not module.is_causal
        calls.append((tuple(query.shape), options["scaling"], options["dropout"]))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=options["scaling"])
        return mixed.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", stand_in)
    model, pixels = build("sdpa"), torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        expected = model(pixels).pooler_output
        model.config._attn_implementation = "flash_attention_2"
        assert largest_difference(model(pixels).pooler_output, expected) < 1e-5
    assert calls == [((2, 2, 6, 32), 32**-0.5, 0.0)] * 2


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_missing_flash_attention_is_named(build: Build) -> None:
    with pytest.raises(ImportError, match=r"(?i)flash"):
        build("flash_attention_2")


@pytest.mark.skipif(
    not (torch.cuda.is_available() and importlib.util.find_spec("flash_attn")), reason="needs a GPU and flash-attn"
)
def test_flash_agrees_with_sdpa(build: Build) -> None:
    sdpa, flash = (build(name).to("cuda", torch.bfloat16) for name in ("sdpa", "flash_attention_2"))
    pixels = torch.randn(2, 3, 8, 12, device="cuda")
    with torch.no_grad():
        assert largest_difference(flash(pixels).last_hidden_state, sdpa(pixels).last_hidden_state) < 5e-2


def test_eager_and_sdpa_agree_in_bfloat16(build: Build) -> None:
    eager, sdpa, pixels = build("eager").bfloat16(), build("sdpa").bfloat16(), torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        assert largest_difference(eager(pixels).last_hidden_state, sdpa(pixels).last_hidden_state) < 5e-2


def test_compiled_model_agrees(build: Build) -> None:
    """Traced by dynamo, run as traced: what a backend makes of the graph is that backend's affair."""
    model, pixels, visible = build(), torch.randn(1, 3, 2, 8, 8), torch.tensor([[0, 2, 3, 5, 7]])
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        output, expected = compiled(pixels, visible), model(pixels, visible)
        assert largest_difference(output.last_hidden_state, expected.last_hidden_state) < 1e-5
        with pytest.raises(ValueError, match=r"visible_indices spans 0 \.\. 9"):
            compiled(pixels, torch.tensor([[0, 2, 3, 5, 9]]))


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_dropout_acts_in_training_alone(build: Build, attn_implementation: str) -> None:
    model, pixels = build(attn_implementation, attention_dropout=0.5), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(pixels).last_hidden_state, model(pixels).last_hidden_state)
        model.train()
        assert largest_difference(model(pixels).last_hidden_state, model(pixels).last_hidden_state) > 1e-3


def gradients(model: OneVisionEncoderModel, pixels: Tensor) -> tuple[dict[str, Tensor], int]:
    """Gradients by name, and how often a block's MLP ran."""
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    mlps = [module for name, module in model.encoder.named_modules() if name.endswith("mlp.fc1")]
    hooks = [mlp.register_forward_hook(count) for mlp in mlps]
    model.zero_grad()
    output = model(pixels, visible_indices=torch.tensor([[0, 2, 3, 5, 7]]))
    (output.pooler_output.square().sum() + output.last_hidden_state[:, 1].sum()).backward()
    for hook in hooks:
        hook.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, runs


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_recomputes_and_leaves_gradients_alone(build: Build, use_reentrant: bool) -> None:
    model, pixels = build().train(), torch.randn(1, 3, 2, 8, 8)
    plain, plain_runs = gradients(model, pixels)
    assert plain.keys() == dict(model.named_parameters()).keys()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    saved, saved_runs = gradients(model, pixels)
    assert (plain_runs, saved_runs) == (2, 4)
    assert plain.keys() == saved.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, saved[name]), name


def test_checkpointing_over_frozen_embeddings(build: Build) -> None:
    model = build().train()
    model.embeddings.requires_grad_(False)
    model.layernorm_pre.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    found, _ = gradients(model, torch.randn(1, 3, 2, 8, 8))
    assert float(found["encoder.layers.0.self_attn.q_proj.weight"].abs().sum()) > 0
