"""Weights survive every conversion bit for bit, and what is no encoder is refused before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ovenc.config import ConfigError
from megatron_ovenc.train.weights import read_model, read_weights
from tools import import_model, pack_model


@pytest.fixture(scope="module")
def imported(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("imported")
    _, difference = import_model.import_model(golden / "tiny", output)
    assert difference <= 1e-5
    return output


def test_to_checkpoint_and_back(golden: Path, imported: Path, tmp_path: Path) -> None:
    assert pack_model.pack(imported, tmp_path / "packed", image_size=56) <= 1e-5
    before, after = (
        load_file(golden / "tiny" / "model.safetensors"),
        load_file(tmp_path / "packed" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    written = json.loads((tmp_path / "packed" / "config.json").read_text())
    published = json.loads((golden / "tiny" / "config.json").read_text())
    assert all(
        written[key] == published[key]
        for key in published
        if key not in ("dtype", "transformers_version", "architectures")
    )
    assert set(written["auto_map"]) >= {"AutoConfig", "AutoModel"}


def test_reference_pt_with_wrapper_prefixes(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(golden / "tiny" / "model.safetensors")
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "backbone.pt")
    arguments = ["--checkpoint", str(tmp_path / "backbone.pt"), "--output", str(tmp_path / "packed")]
    assert pack_model.main([*arguments, "--num-heads", "4"]) == 0
    assert read_model(tmp_path / "packed") == read_model(golden / "tiny")
    assert pack_model.main(arguments) == 0
    assert "does not record its attention heads; taking 64" in capsys.readouterr().err


def test_initial_weights_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run_dir: x\nmodel: {preset: tiny}\nheads: []\ntrain: {steps: 1}\n")
    assert pack_model.pack(tmp_path / "run.yaml", tmp_path / "packed") <= 1e-5


@pytest.mark.parametrize("damage", ["missing", "shape", "extra", "config", "truncated"])
def test_what_is_no_encoder_is_refused(golden: Path, tmp_path: Path, damage: str) -> None:
    source = Path(shutil.copytree(golden / "tiny", tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    if damage == "missing":
        del tensors["head.probe"]
    elif damage == "shape":
        tensors["layernorm_pre.weight"] = torch.ones(7)
    elif damage == "extra":
        tensors["encoder.layers.9.layer_norm1.weight"] = torch.ones(128)
    save_file(tensors, source / "model.safetensors")
    if damage == "config":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"use_head": False}))
    elif damage == "truncated":
        content = (source / "model.safetensors").read_bytes()
        (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="source"):
        import_model.import_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"module.x": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(ConfigError, match="cannot be read as a state dict"):
        read_weights(tmp_path / "attack.pt")
    assert not (tmp_path / "touched").exists()


def test_command_line_errors(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.pack_model",
        "--checkpoint",
        str(tmp_path / "none"),
        "--output",
        str(tmp_path / "o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 2
    assert "is neither a Hugging Face directory" in result.stderr
    assert "Traceback" not in result.stderr
