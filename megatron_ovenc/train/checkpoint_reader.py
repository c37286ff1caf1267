"""Reading a checkpoint's table of contents without letting the file run code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message says which and why."""


_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "bfloat16", "float16", "float64", "int64", "int32"),
    "pathlib": ("PosixPath", "Path"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """DCP pickles its table of contents. Only what such a table is made of may come out of the file."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise CheckpointError(
                f"the checkpoint's .metadata names {module}.{name}, which has no place in it; not reading on"
            )
        return super().find_class(module, name)


class SafeReader(dcp.FileSystemReader):
    """DCP's reader, minus the ability of a file to run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        except CheckpointError:
            raise
        except Exception as error:  # the unpickler meets damage with whatever comes first
            raise CheckpointError(f"{file} is damaged or missing: {type(error).__name__}: {error}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{file} holds {type(metadata).__name__} instead of a table of contents")
        metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
        return metadata
