"""Configuration of the OneVision-Encoder vision transformer.

    from onevision_encoder import OneVisionEncoderConfig
    large = OneVisionEncoderConfig()
    base = OneVisionEncoderConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)

Also used as remote code, so it imports nothing but transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

LAYER_NORM_TYPES = ("layer_norm", "rms_norm")
ROPE_TYPES = ("reference", "rotation")


class OneVisionEncoderConfig(PretrainedConfig):
    """Shape and numerics of one encoder; every field is checked on construction.

    Args:
        hidden_size: token width D; a multiple of 32 * num_attention_heads (the rotary split needs it).
        intermediate_size: width of the MLPs, of the blocks and of the pooling head alike.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads of the blocks and of the pooling head alike.
        num_channels: channels of a pixel.
        image_size: pixels per side the model was tuned for; informative, any size is accepted.
        patch_size: pixels per side of a patch; rows and columns that fill no patch are dropped.
        hidden_act: MLP activation; "gelu" is the exact, erf-based one.
        layer_norm_eps: epsilon of every norm.
        layer_norm_type: "layer_norm" or "rms_norm"; the norm inside the pooling head is always an RMSNorm.
        attention_dropout: dropout probability in the blocks' attention, in [0, 1).
        initializer_range: standard deviation of freshly drawn linear and convolution weights.
        rope_theta: base of the rotary frequencies.
        rope_type: "reference" reproduces the released weights (interleaved channel pairs, half-split angles: the two
            members of a pair turn by different angles, so it is no rotation); "rotation" gives each pair one angle,
            so that attention depends on relative positions alone. For new models only.
        rope_temporal_size: number of virtual frames that `visible_indices` of a video address; None: as many as
            the video has.
        use_head: whether the model ends with its final norm and pooling head (both or neither).

    Raises:
        ValueError: a field is out of range, or fields do not fit together; the message names the field.
    """

    model_type = "onevision_encoder"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 448,
        patch_size: int = 14,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        layer_norm_type: str = "layer_norm",
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        rope_theta: float = 10000.0,
        rope_type: str = "reference",
        rope_temporal_size: int | None = 64,
        use_head: bool = True,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.layer_norm_type = layer_norm_type
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta
        self.rope_type = rope_type
        self.rope_temporal_size = rope_temporal_size
        self.use_head = use_head
        self.check()
        super().__init__(**kwargs)

    def check(self) -> None:
        """Raise a ValueError that names the field if any is out of range.

        The model calls this too: `from_pretrained(directory, rope_type=...)` sets fields after construction.
        """
        self._check_ranges()
        self._check_heads()

    def _check_ranges(self) -> None:
        sizes = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"]
        sizes += ["image_size", "patch_size"]
        if self.rope_temporal_size is not None:
            sizes.append("rope_temporal_size")
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be an integer of at least 1.")
        for name in ("layer_norm_eps", "rope_theta", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be greater than 0.")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout={self.attention_dropout!r}: must be in [0, 1).")
        choices = {"layer_norm_type": LAYER_NORM_TYPES, "rope_type": ROPE_TYPES, "hidden_act": tuple(ACT2FN)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}.")

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide into num_attention_heads={self.num_attention_heads}"
                " heads of one width; change either."
            )
        if self.head_dim % 32:
            raise ValueError(
                f"hidden_size={self.hidden_size} / num_attention_heads={self.num_attention_heads} gives heads of"
                f" {self.head_dim} channels; the rotary split of 4:6:6 (time, row, column) needs a multiple of 32."
            )

    @property
    def head_dim(self) -> int:
        """Channels d of one attention head."""
        return self.hidden_size // self.num_attention_heads
