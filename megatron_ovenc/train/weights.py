"""Encoder weights wherever they lie: a Hugging Face directory, a reference `.pt` file, or a checkpoint of ours.

All three are read into the same currency: a `model` section and a published state dict (see model/published.py).
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_ovenc.config import ConfigError, ModelConfig, load
from megatron_ovenc.model.published import from_published_config, to_published
from megatron_ovenc.train.checkpoint import MANIFEST, checkpoint_path, checkpoint_steps, damage
from megatron_ovenc.train.checkpoint_reader import SafeReader

RELEASED_HEAD_DIM = 64
"""Channels of a head in every released size; what a `.pt` file is taken to have."""
_ENCODER = "encoder."


def read_model(path: Path) -> ModelConfig:
    """The `model` section of the weights at `path`, without reading the weights of a directory.

    Raises:
        ConfigError: there are no weights there that we know how to read.
    """
    if path.is_file():
        return _model_of_state(_read_pt(path), path)
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        return load(checkpoint / "config.yaml").model
    file = path / "config.json"
    try:
        published = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path} is neither a Hugging Face directory, a checkpoint, a run directory nor a .pt file: {error}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(published, dict):
        raise ConfigError(f"{file} holds a {type(published).__name__}, not the keys of a configuration")
    return from_published_config(published, str(path))


def read_weights(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Model section and published state dict of the weights at `path`; a run directory means its newest checkpoint.

    Raises:
        ConfigError: there are no such weights, or they are damaged.
    """
    model = read_model(path)
    if path.is_file():
        return model, _read_pt(path)
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return model, _read_safetensors(path)
    if problems := damage(checkpoint):
        raise ConfigError("; ".join(problems))
    reader = SafeReader(checkpoint)
    contents = reader.read_metadata().state_dict_metadata
    # In the type each was stored in: an import keeps that of its source.
    tensors: dict[str, Any] = {
        key: torch.empty(held.size, dtype=held.properties.dtype)
        for key, held in contents.items()
        if key.startswith(_ENCODER) and isinstance(held, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=SafeReader(checkpoint), no_dist=True)
    return model, to_published({key.removeprefix(_ENCODER): tensor for key, tensor in tensors.items()}, model)


def find_checkpoint(path: Path) -> Path | None:
    """`path` if it is a checkpoint, or the newest one of a run directory or its checkpoints directory."""
    if (path / MANIFEST).is_file():
        return path
    for directory in (path, path / "checkpoints"):
        if steps := checkpoint_steps(directory):
            return checkpoint_path(directory, steps[-1])
    return None


def _read_safetensors(directory: Path) -> dict[str, torch.Tensor]:
    index = directory / "model.safetensors.index.json"
    try:
        names = json.loads(index.read_text())["weight_map"].values() if index.is_file() else ["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} cannot be read: {error!r}") from error
    tensors = {}
    for path in sorted({directory / Path(name).name for name in names}):
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
    return tensors


def _read_pt(path: Path) -> dict[str, torch.Tensor]:
    """A training checkpoint of the reference: a plain state dict, with the prefixes that wrappers left on its names."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is a page that ends by advising to run the file's code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names `{found[1]}`" if found else "its pickle is damaged"
        raise ConfigError(f"{path} cannot be read as a state dict of tensors: {what}; nothing of it was run") from error
    except Exception as error:  # torch.load raises whatever its unpickler meets
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{path} cannot be read as a state dict of tensors: the file is damaged, cut off or of another kind ({reason})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise ConfigError(f"{path} does not hold a plain state dict of tensors")
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def _model_of_state(state: dict[str, torch.Tensor], path: Path) -> ModelConfig:
    """Sizes, read off the shapes. Heads leave no trace in them, so they are taken to be the released family's."""
    try:
        hidden, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        ffn = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
        layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    except KeyError as error:
        raise ConfigError(f"{path} is not a state dict of the reference's encoder: it has no tensor {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a state dict of the reference's encoder: {error}") from error
    return ModelConfig(
        hidden_size=hidden,
        ffn_size=ffn,
        num_layers=layers,
        num_heads=max(hidden // RELEASED_HEAD_DIM, 1),
        patch_size=patch,
        norm="layer_norm" if "layernorm_pre.bias" in state else "rms_norm",
    )
