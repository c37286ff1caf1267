"""The encoder: patch embedding, rotary positions, megatron-core blocks, pooling, and its parameters' names and values."""

from megatron_ovenc.model.encoder import Encoder, EncoderOutput

__all__ = ["Encoder", "EncoderOutput"]
