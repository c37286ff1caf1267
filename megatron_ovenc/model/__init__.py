"""The encoder: patch embedding, rotary positions, megatron-core blocks, pooling, and its parameters' names and values.

Nothing is imported here: `published` (names and configuration keys) is wanted where megatron-core's four seconds are not.
"""
