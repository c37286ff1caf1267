"""Where each token sits: turns a call's pixel grid, `visible_indices` and `patch_positions` into positions, or says
what is wrong with them. Shape letters as in the modelling file."""

from __future__ import annotations

import torch
from torch import Tensor

from .configuration_onevision_encoder import OneVisionEncoderConfig


def resolve_positions(
    config: OneVisionEncoderConfig,
    pixel_values: Tensor,
    visible_indices: Tensor | None,
    patch_positions: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Positions of the tokens to encode, and which patches those are.

    Returns:
        Integer positions [B or 1, L, 3] and, where only some patches are kept, their indices [B, L].

    Raises:
        ValueError: wrong shape or type, or an index outside its grid.
    """
    batch, device = pixel_values.shape[0], pixel_values.device
    frames = 1 if pixel_values.ndim == 4 else pixel_values.shape[2]
    rows, columns = (side // config.patch_size for side in pixel_values.shape[-2:])
    patches = frames * rows * columns
    virtual_frames = 1 if pixel_values.ndim == 4 else config.rope_temporal_size or frames
    places = virtual_frames * rows * columns

    kept = None
    if visible_indices is not None:
        _check_integers("visible_indices", visible_indices, (batch, None))
        visible_indices = visible_indices.to(device=device, dtype=torch.int64)
        if visible_indices.shape[1] != patches:
            kept = visible_indices
            _check_indices(kept, patches, f"pixel_values has {patches} patches ({frames} x {rows} x {columns})")
    tokens = patches if kept is None else kept.shape[1]

    if patch_positions is not None:
        _check_integers("patch_positions", patch_positions, (batch, tokens, 3))
        if int(patch_positions.min()) < 0:
            raise ValueError(
                f"patch_positions holds {int(patch_positions.min())}; frames, rows and columns count from 0. Padding is"
                " not skipped: batch samples of one length."
            )
        return patch_positions.to(device), kept

    if visible_indices is None:
        if patches > places:
            raise ValueError(
                f"pixel_values has {frames} frames, more than config.rope_temporal_size={virtual_frames}: pass"
                " patch_positions [B, L, 3], or set rope_temporal_size=None in the config to count real frames."
            )
        visible_indices = torch.arange(patches, device=device).unsqueeze(0)
    else:
        _check_indices(visible_indices, places, f"the position grid is {virtual_frames} x {rows} x {columns}")
    return torch.stack(torch.unravel_index(visible_indices, (virtual_frames, rows, columns)), dim=-1), kept


def _check_integers(name: str, given: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = given.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, given.shape, strict=True))
    if not fits or given.shape[1] == 0:
        wanted = ", ".join("L" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; expected [{wanted}]: one row a sample, one entry an encoded token."
        )
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name} is {given.dtype}; expected integers: convert with .long() (a mask with .nonzero()).")


def _check_indices(indices: Tensor, limit: int, why: str) -> None:
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= limit:
        raise ValueError(
            f"visible_indices spans {low} .. {high}, but {why}, so indices must lie in 0 .. {limit - 1}; a video whose"
            " frames lie elsewhere in time takes patch_positions instead."
        )
