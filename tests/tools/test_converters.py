"""Weights survive every conversion bit for bit, and what is no encoder is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from megatron_ovenc.train.weights import read_model
from tests.forked import forked
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


def rewrite(source: Path, form: str) -> dict[str, torch.Tensor]:
    """The directory's weights in another form; returns them."""
    tensors = load_file(source / "model.safetensors")
    if form in ("bfloat16", "float16"):
        tensors = {name: tensor.to(getattr(torch, form)) for name, tensor in tensors.items()}
    elif form == "mixed":
        tensors = {name: tensor.bfloat16() if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
    if form == "sharded":
        save_torch_state_dict(tensors, source, max_shard_size="300KB")  # which deletes the single file
    else:
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("form", ["float32", "sharded", "bfloat16", "float16", "mixed"])
def test_packing_an_import_gives_the_same_bytes(golden: Path, tmp_path: Path, form: str) -> None:
    source, packed = Path(shutil.copytree(golden / "tiny", tmp_path / "source")), tmp_path / "packed"
    before = rewrite(source, form)
    imported, difference = import_model.import_model(source, tmp_path / "imported")
    assert difference <= 1e-5
    if form == "sharded":  # over files of an earlier export, which must not be read again
        pack_model.pack(imported, packed)
    assert pack_model.pack(imported, packed, max_shard_size="300KB" if form == "sharded" else "5GB") <= 1e-5
    files = sorted(packed.glob("*.safetensors"))
    assert (len(files) > 1) == (form == "sharded")
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


def damage_directory(source: Path, damage: str) -> None:
    """Make a sound Hugging Face directory unsound."""
    weights, config = source / "model.safetensors", source / "config.json"
    tensors = load_file(weights)
    if damage == "missing":
        del tensors["head.probe"], tensors["layernorm_pre.bias"]
    elif damage == "shape":
        tensors["layernorm_pre.weight"] = torch.ones(7)
    elif damage == "extra":
        tensors["encoder.layers.9.layer_norm1.weight"] = torch.ones(128)
    elif damage == "integers":
        tensors["head.probe"] = torch.ones(1, 1, 128, dtype=torch.int64)
    save_file(tensors, weights)
    content = weights.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(content[: len(content) // 2])
        case "empty":
            weights.write_bytes(b"")
        case "header":
            weights.write_bytes(b"\xff" * 8 + content[8:])
        case "lost shard":
            rewrite(source, "sharded")
            sorted(source.glob("model-*.safetensors"))[1].unlink()
        case "index":
            (source / "model.safetensors.index.json").write_text('{"weight_map": 3}')
        case "config":
            config.write_text(config.read_text()[:40])
        case "headless":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"use_head": False}))
        case "heads":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 3}))
        case "text for a number":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": "128"}))


DAMAGE = {
    "missing": "`head.probe` is missing; `layernorm_pre.bias` is missing",
    "shape": "`layernorm_pre.weight` has shape (7,) instead of (128,)",
    "extra": "`encoder.layers.9.layer_norm1.weight` is no tensor of it",
    "integers": "`head.probe` is torch.int64",
    "truncated": "model.safetensors cannot be read",
    "empty": "model.safetensors cannot be read",
    "header": "model.safetensors cannot be read",
    "lost shard": "model-00002-of-",
    "index": "model.safetensors.index.json cannot be read",
    "config": "config.json is not JSON",
    "headless": "use_head=False",
    "heads": "num_attention_heads=3",
    "text for a number": "hidden_size='128'",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_directories_are_named_in_one_sentence(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    source = Path(shutil.copytree(golden / "tiny", tmp_path / "source"))
    damage_directory(source, damage)
    for convert, option in ((import_model.main, "--input"), (pack_model.main, "--checkpoint")):
        assert convert([option, str(source), "--output", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1, message
        assert str(source) in message
        assert DAMAGE[damage] in message
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["code", "nested", "numbered", "unknown", "truncated", "text", "no layers"])
def test_damaged_pt_files_are_named_in_one_sentence(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    path, tensors = tmp_path / "backbone.pt", load_file(golden / "tiny" / "model.safetensors")
    contents = {
        "code": {"module.x": Attack()},
        "nested": {"state_dict": tensors},
        "numbered": dict(enumerate(tensors.values())),
        "unknown": tensors | {"encoder.layers.0.lora.weight": torch.ones(2), "logit_scale": torch.ones(1)},
        "no layers": {name: tensor for name, tensor in tensors.items() if "layers." not in name},
    }
    torch.save(contents.get(damage, tensors), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "text":
        path.write_text("no tensors here")
    expected = {
        "code": "cannot be read as a state dict of tensors: it names `",
        "nested": "does not hold a plain state dict",
        "numbered": "does not hold a plain state dict",
        "unknown": "does not make an encoder: `encoder.layers.0.lora.weight` is no tensor of it; `logit_scale` is no tensor of it",
        "truncated": "cannot be read as a state dict",
        "text": "cannot be read as a state dict",
        "no layers": "is not a state dict of the reference's encoder: it has no tensor 'encoder.layers.0.mlp.fc1.weight'",
    }
    for convert, option in ((import_model.main, "--input"), (pack_model.main, "--checkpoint")):
        assert convert([option, str(path), "--output", str(tmp_path / "out"), "--num-heads", "4"]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {path} {expected[damage]}")
        assert message.count("\n") == 1, message
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "touched").exists()


def test_wrong_options_are_named(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(golden / "tiny"), "--output", str(tmp_path / "out")]
    assert pack_model.main([*arguments, "--image-size", "0"]) == 2
    assert "image_size=0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        pack_model.main([*arguments, "--max-shard-size", "much"])
    assert "'much' is no size of a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_written_over(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other = Path(shutil.copytree(golden / "tiny", tmp_path / "source")), tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    content = {file: file.read_bytes() for folder in (source, other) for file in folder.iterdir()}
    for output, message in (
        (source, "is the directory that is read"),
        (other, "holds files, but no exported model"),
        (other / "README.md", "is a file"),
        (other / "README.md" / "below", "is no directory that can be written"),
    ):
        assert pack_model.main(["--checkpoint", str(source), "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert {file: file.read_bytes() for folder in (source, other) for file in folder.iterdir()} == content


def test_an_import_takes_no_directory_of_something_else(
    golden: Path, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the weights are read: they may be large."""
    monkeypatch.setattr(import_model, "read_weights", lambda source: pytest.fail("the weights were read"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    for output, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "run", "is not empty"),
        (imported, "is not empty"),
        (tmp_path / "file" / "below", "is no directory that can be written"),
    ):
        assert import_model.main(["--input", str(golden / "tiny"), "--output", str(output)]) == 2
        assert f"error: --output {output} " in (told := capsys.readouterr().err)
        assert message in told
    assert (tmp_path / "run" / "config.yaml").read_text() == "mine"


def test_command_line_errors(tmp_path: Path) -> None:
    result = forked("tools.pack_model", "--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "o"))
    assert result.returncode == 2
    assert "is neither a Hugging Face directory" in result.stderr
    assert "Traceback" not in result.stderr
