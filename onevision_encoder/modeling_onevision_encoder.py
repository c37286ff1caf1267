"""OneVision-Encoder: one vision transformer for images, documents and codec-selected video patches.

    model = OneVisionEncoderModel.from_pretrained(directory)                 # or AutoModel, with trust_remote_code
    image = model(pixel_values=torch.randn(1, 3, 448, 448))                  # 1024 tokens
    video = model(pixel_values=clip, patch_positions=positions)              # clip [B, 3, T, H, W]
    codec = model(pixel_values=clip64, visible_indices=kept)                 # a few patches of 64 frames

Names end in their shape: B batch, C channels, T frames, H W pixels, h w patch rows and columns, P = T*h*w patches
given, L tokens encoded, N heads, D hidden size, d channels of a head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .attention_onevision_encoder import OneVisionEncoderAttention
from .configuration_onevision_encoder import OneVisionEncoderConfig
from .positions_onevision_encoder import resolve_positions
from .rope_onevision_encoder import rope_cos_sin


def build_norm(config: OneVisionEncoderConfig) -> nn.Module:
    """The norm that `layer_norm_type` asks for."""
    norm = nn.RMSNorm if config.layer_norm_type == "rms_norm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.layer_norm_eps)


class OneVisionEncoderEmbeddings(nn.Module):
    """Cuts frames into patches and projects each; tokens come frame by frame, row by row."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )

    def forward(self, pixels_BCTHW: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, P, D]; pixels beyond the last whole patch are dropped."""
        batch = pixels_BCTHW.shape[0]
        frames_XCHW = pixels_BCTHW.transpose(1, 2).flatten(0, 1).to(self.patch_embedding.weight.dtype)
        patches_XDhw = self.patch_embedding(frames_XCHW)
        return patches_XDhw.flatten(2).transpose(1, 2).reshape(batch, -1, patches_XDhw.shape[1])


class OneVisionEncoderMLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(self.activation(self.fc1(x)))


class OneVisionEncoderLayer(GradientCheckpointingLayer):
    """One pre-norm block."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = build_norm(config)
        self.self_attn = OneVisionEncoderAttention(config)
        self.layer_norm2 = build_norm(config)
        self.mlp = OneVisionEncoderMLP(config)

    def forward(
        self, x_BLD: Tensor, cos_B1Ld: Tensor, sin_B1Ld: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] after the block, and its attention weights if asked for."""
        attended, weights = self.self_attn(self.layer_norm1(x_BLD), cos_B1Ld, sin_B1Ld)
        x_BLD = x_BLD + attended
        return x_BLD + self.mlp(self.layer_norm2(x_BLD)), weights if output_attentions else None


class OneVisionEncoderEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OneVisionEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, x_BLD: Tensor, cos_B1Ld: Tensor, sin_B1Ld: Tensor, output_hidden_states: bool, output_attentions: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Last tokens [B, L, D]; the input and every block's output, and every block's weights, if asked for."""
        hidden_states, attentions = [x_BLD], []
        for layer in self.layers:
            # Positional on purpose: re-entrant checkpointing carries gradients through positional arguments alone.
            x_BLD, weights = layer(x_BLD, cos_B1Ld, sin_B1Ld, output_attentions)
            if output_hidden_states:
                hidden_states.append(x_BLD)
            if output_attentions:
                attentions.append(weights)
        return (
            x_BLD,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


class OneVisionEncoderPoolingHead(nn.Module):
    """A learned probe attends to all tokens, without positions; a residual MLP follows."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = OneVisionEncoderMLP(config)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, D]."""
        probe = self.probe.expand(tokens_BLD.shape[0], -1, -1)
        pooled, _ = self.attention(probe, tokens_BLD, tokens_BLD, need_weights=False)
        return (pooled + self.mlp(self.norm(pooled))).squeeze(1)


class OneVisionEncoderPreTrainedModel(PreTrainedModel):
    """What loading, saving and initialising need to know."""

    config_class = OneVisionEncoderConfig
    base_model_prefix = "onevision_encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["OneVisionEncoderLayer", "OneVisionEncoderPoolingHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        # By torch.nn.init and no other way: transformers 5 swaps its functions for ones that skip loaded weights.
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, OneVisionEncoderPoolingHead):
            nn.init.normal_(module.probe)


class OneVisionEncoderModel(OneVisionEncoderPreTrainedModel):
    """The encoder, with its pooling head unless `use_head` is off."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        config.check()
        super().__init__(config)
        self.embeddings = OneVisionEncoderEmbeddings(config)
        self.layernorm_pre = build_norm(config)
        self.encoder = OneVisionEncoderEncoder(config)
        self.layernorm_post = build_norm(config) if config.use_head else None
        self.head = OneVisionEncoderPoolingHead(config) if config.use_head else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection: transformers hooks it to checkpoint blocks over frozen embeddings."""
        return self.embeddings.patch_embedding

    def forward(
        self,
        pixel_values: Tensor,
        visible_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[object, ...]:
        """Encode a batch of images or videos.

        Args:
            pixel_values: normalised floats, images [B, C, H, W] or videos [B, C, T, H, W]; P = T * h * w patches,
                ordered by frame, row, column.
            visible_indices: integers [B, L], places on the grid of `rope_temporal_size` frames (videos; one frame for
                images) of h * w patches. If L differs from P, the patches at these indices are kept. If L equals P,
                `pixel_values` is taken to hold exactly these patches already, repacked into fewer frames: nothing is
                reordered, the indices only say where each patch belongs.
            patch_positions: integers [B, L, 3] from 0 on, the [t, row, col] of each of the L encoded tokens, without
                upper limit; takes the place of the positions that follow from the indices.
            output_attentions: return each block's weights [B, N, L, L]; eager attention only.
            output_hidden_states: return the tokens before the first block and after each, without the final norm.
            return_dict: False for a plain tuple.

        Returns:
            last_hidden_state [B, L, D], pooler_output [B, D] (None without head), and hidden_states and attentions
            if asked for.

        Raises:
            ValueError: inputs of a wrong shape, type or range.
        """
        output_attentions = self._choose(output_attentions, "output_attentions")
        output_hidden_states = self._choose(output_hidden_states, "output_hidden_states")
        self.check_pixels(pixel_values)
        self._check_attentions(output_attentions)
        positions_BL3, kept_BL = resolve_positions(self.config, pixel_values, visible_indices, patch_positions)

        tokens_BLD = self.embeddings(pixel_values.unsqueeze(2) if pixel_values.ndim == 4 else pixel_values)
        if kept_BL is not None:
            tokens_BLD = tokens_BLD.gather(1, kept_BL[..., None].expand(-1, -1, self.config.hidden_size))
        cos, sin = rope_cos_sin(positions_BL3, self.config.head_dim, self.config.rope_theta, self.config.rope_type)
        last_BLD, hidden_states, attentions = self.encoder(
            self.layernorm_pre(tokens_BLD), cos.unsqueeze(1), sin.unsqueeze(1), output_hidden_states, output_attentions
        )
        pooled_BD = None
        if self.layernorm_post is not None and self.head is not None:
            last_BLD = self.layernorm_post(last_BLD)
            pooled_BD = self.head(last_BLD)

        if not self._choose(return_dict, "return_dict"):
            return (last_BLD, pooled_BD, *(extra for extra in (hidden_states, attentions) if extra is not None))
        return BaseModelOutputWithPooling(
            last_hidden_state=last_BLD, pooler_output=pooled_BD, hidden_states=hidden_states, attentions=attentions
        )

    def _choose(self, argument: bool | None, name: str) -> bool:
        return getattr(self.config, name) if argument is None else argument

    def _check_attentions(self, requested: bool) -> None:
        implementation = self.config._attn_implementation
        if requested and implementation != "eager":
            raise ValueError(
                f"output_attentions=True: {implementation} attention never forms the weights; load the model with"
                ' attn_implementation="eager", or call model.set_attn_implementation("eager").'
            )

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Raise a ValueError that says what is wrong with the shape or type of `pixel_values`."""
        shape, channels, patch = tuple(pixel_values.shape), self.config.num_channels, self.config.patch_size
        if len(shape) not in (4, 5) or shape[1] != channels:
            raise ValueError(
                f"pixel_values has shape {shape}; expected images [B, {channels}, H, W] or videos"
                f" [B, {channels}, T, H, W] (channels before frames)."
            )
        if min(shape[-2:]) < patch or 0 in shape[2:]:
            raise ValueError(f"pixel_values has shape {shape}: not even one patch of {patch} x {patch} pixels.")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values is {pixel_values.dtype}; expected normalised floats: run images through the image"
                " processor, or scale and normalise them by its image_mean and image_std."
            )
