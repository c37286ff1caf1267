"""Load an exported encoder as a stranger would: AutoModel with remote code, nothing of this project importable.

    python -I tools/reload_exported.py EXPORTED_DIR inputs.safetensors outputs.safetensors

Every `<case>.pixels` and `<case>.positions` of the inputs goes through the model; `<case>.tokens` and `<case>.pooled` come out.
`-I` keeps this repository off the import path; an editable install is refused below.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel


class _NotHere:
    """An import hook that knows the project's packages and says that they do not exist."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in ("onevision_encoder", "megatron_ovenc", "codec"):
            raise ModuleNotFoundError(f"{name} is hidden on purpose", name=name)


def main(exported: str, inputs: str, outputs: str) -> None:
    """Run all cases of `inputs`."""
    sys.meta_path.insert(0, _NotHere())
    model = AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    tensors, results = load_file(inputs), {}
    with torch.no_grad():
        for case in sorted({name.split(".")[0] for name in tensors}):
            output = model(tensors[f"{case}.pixels"], patch_positions=tensors[f"{case}.positions"])
            results[f"{case}.tokens"] = output.last_hidden_state.contiguous()
            results[f"{case}.pooled"] = output.pooler_output.contiguous()
    save_file(results, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
