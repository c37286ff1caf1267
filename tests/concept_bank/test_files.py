"""Banks on disk: every form gives every rank its own rows, what is no bank is refused by name, and resharding loses nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_ovenc.concept_bank import row_range
from megatron_ovenc.concept_bank.centres import check_centres, stored_centres
from megatron_ovenc.concept_bank.files import DTYPES, INDEX, open_bank, part_range
from megatron_ovenc.config import CheckpointConfig
from megatron_ovenc.parallel.rectangle import Rectangle
from megatron_ovenc.parallel.topology import Topology
from megatron_ovenc.train.checkpoint import Checkpointer
from tools import reshard_bank
from tools.bank import bank_writer

WEIGHT = torch.arange(35, dtype=torch.float32).reshape(7, 5)
FORMS = (
    "bank.npy",
    "bank.safetensors",
    "bank.pt",
    "tensor.pt",
    "p_%03d.npy",
    "q_%d.pt",
    "r_%02d.safetensors",
    "folder",
)


def reference_split(weight: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """Written down apart from the code under test: deal out the rows one by one."""
    counts = [0] * parts
    for row in range(len(weight)):
        counts[row % parts] += 1
    return list(weight.split(counts))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """WEIGHT in every form; nothing but the directory is written by the code under test."""
    np.save(tmp_path / "bank.npy", WEIGHT.numpy())
    save_file({"weight": WEIGHT}, tmp_path / "bank.safetensors")
    torch.save({"weight": WEIGHT}, tmp_path / "bank.pt")
    torch.save(WEIGHT, tmp_path / "tensor.pt")
    for number, part in enumerate(reference_split(WEIGHT, 3)):
        np.save(tmp_path / f"p_{number:03d}.npy", part.numpy())
    for number, part in enumerate(reference_split(WEIGHT, 11)):
        torch.save({"weight": part.clone()}, tmp_path / f"q_{number}.pt")
        save_file({"weight": part.clone()}, tmp_path / f"r_{number:02d}.safetensors")
    assert reshard(tmp_path / "bank.npy", tmp_path / "folder", "--shards", "4") == 0
    return tmp_path


def reshard(source: Path | str, output: Path | str, *more: str) -> int:
    return reshard_bank.main(["--input", str(source), "--output", str(output), *more])


@pytest.mark.parametrize("name", FORMS)
def test_every_rank_reads_its_rows(folder: Path, name: str) -> None:
    for world in (1, 2, 4, 9):
        for rank in range(world):
            lo, hi = row_range(7, world, rank)
            rows = stored_centres(str(folder / name), 7, 5, "h", lo, hi)
            assert torch.equal(rows, WEIGHT[lo:hi])
            rows.mul_(0)
    assert torch.equal(stored_centres(str(folder / name), 7, 5, "h", 0, 7), WEIGHT)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: str) -> None:
    weight = (WEIGHT / 3).to(DTYPES[dtype])
    save_file({"weight": weight}, tmp_path / "bank.safetensors")
    torch.save(weight, tmp_path / "bank.pt")
    np.save(tmp_path / "bank.npy", (WEIGHT / 3).half().numpy().astype(">f2"))
    for name in ("bank.safetensors", "bank.pt", *(["bank.npy"] if dtype == "float16" else [])):
        rows = stored_centres(str(tmp_path / name), 7, 5, "h", 2, 7)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, weight[2:].float())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shape", [(8, 5), (7, 4)])
def test_another_shape(folder: Path, name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"heads\.image\.bank\.init=.*holds float32 \[7, 5\].*needs \[") as error:
        check_centres(str(folder / name), *shape, "image")
    assert "heads.image.bank.num_classes, model.hidden_size" in str(error.value)


class Attack:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("touched"),))


def damage(folder: Path) -> None:
    """Files that are no bank, and parts that make none."""
    np.save(folder / "integers.npy", np.arange(35).reshape(7, 5))
    np.save(folder / "double.npy", WEIGHT.double().numpy())
    np.save(folder / "three.npy", WEIGHT[None].numpy())
    save_file({"weight": WEIGHT.int()}, folder / "integers.safetensors")
    save_file({"centres": WEIGHT}, folder / "named.safetensors")
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save({"centres": WEIGHT}, folder / "named.pt")
    torch.save(Attack(), folder / "attack.pt")
    torch.save(WEIGHT, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "bank.bin").write_bytes(b"x")
    for name in ("bank.npy", "bank.safetensors", "bank.pt"):
        content = (folder / name).read_bytes()
        (folder / f"header.{name}").write_bytes(content[:30])
        (folder / f"cut.{name}").write_bytes(content[:-8])
        (folder / f"empty.{name}").write_bytes(b"")
    for name, sizes in {"gap": (3, None, 2), "uneven": (2, 3, 2), "first": (None, 4, 3), "tail": (3, 2)}.items():
        for number, size in enumerate(sizes):
            if size is not None:
                np.save(folder / f"{name}_{number:03d}.npy", WEIGHT[:size].numpy())
    np.save(folder / "mixed_0.npy", WEIGHT[:4].numpy())
    np.save(folder / "mixed_1.npy", WEIGHT[:3].half().numpy())
    (folder / "nothing").mkdir()


REASONS = {
    "integers.npy": r"integers.npy holds int64 \[7, 5\]",
    "double.npy": "holds float64",
    "three.npy": r"holds float32 \[1, 7, 5\]",
    "integers.safetensors": "holds I32",
    "named.safetensors": "no tensor `weight`",
    "objects.npy": "not a readable .npy",
    "named.pt": r"nor holds one named `weight`, only \['centres'\]",
    "attack.pt": "not a readable .pt",
    "old.pt": "not a readable .pt file of tensors, as torch.save has written them since",
    "bank.bin": "neither a .safetensors, a .npy nor a .pt",
    "absent.npy": "no such file",
    **{f"{how}.bank.npy": "not a readable .npy" for how in ("header", "cut", "empty")},
    **{f"{how}.bank.safetensors": "not a readable .safetensors" for how in ("header", "cut", "empty")},
    **{f"{how}.bank.pt": "not a readable .pt" for how in ("header", "cut", "empty")},
    "gap_%03d.npy": "gap_001.npy is missing, but there is gap_002.npy",
    "first_%03d.npy": "first_000.npy is missing",
    "uneven_%03d.npy": "uneven_000.npy has 2 rows, but in 3 parts of 7 rows it would have 3",
    "tail_%03d.npy": r"holds float32 \[5, 5\], but this run needs \[7, 5\]",
    "absent_%03d.npy": "there is no absent_000.npy",
    "p_%03d_%d.npy": "one place for the number",
    "mixed_%d.npy": "mixed_1.npy holds float16 of width 5, but mixed_0.npy float32",
    "nothing": "has no bank.index.json",
}


def test_what_is_no_bank_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    damage(folder)
    for name, reason in REASONS.items():
        with pytest.raises(ValueError, match=rf"^heads\.ocr\.bank\.init=.*{reason}") as error:
            check_centres(str(folder / name), 7, 5, "ocr")
        assert "\n" not in str(error.value), name
    assert not (folder / "touched").exists()


def test_a_damaged_directory_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = folder / "folder"
    part, text = bank / "bank-00001-of-00004.safetensors", (bank / INDEX).read_text()
    content = part.read_bytes()
    part.write_bytes(content[:-4] + b"\0\0\0\1")
    assert reshard(bank, folder / "copy") == 2
    assert "has other content than was written" in capsys.readouterr().err
    assert not (folder / "copy").exists()
    save_file({"weight": WEIGHT[:1]}, part)
    with pytest.raises(ValueError, match=r"has 1 rows in .* says 2 in"):
        open_bank(str(bank))
    part.unlink()
    with pytest.raises(ValueError, match=r"00001.* is missing, which bank\.index\.json names"):
        open_bank(str(bank))
    part.write_bytes(content)
    for wrong, reason in [
        (text[:50], "is not the index"),
        ("[]", "is not the index"),
        (json.dumps(json.loads(text) | {"files": []}), "names no file"),
        (json.dumps(json.loads(text) | {"width": 6}), r"but bank.index.json says float32 \[7, 6\]"),
        (json.dumps(json.loads(text) | {"format": 2}), "has format 2"),
    ]:
        (bank / INDEX).write_text(wrong)
        with pytest.raises(ValueError, match=reason):
            open_bank(str(bank))


def bits(weight: torch.Tensor) -> bytes:
    return weight.contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    classes=st.integers(1, 23),
    counts=st.tuples(st.integers(1, 9), st.integers(1, 30)),
    forms=st.tuples(*[st.sampled_from(("safetensors", "npy", "pt", "folder"))] * 3),
    dtype=st.sampled_from(("float32", "float16", "bfloat16")),
    block=st.sampled_from((1, 64, 1 << 20)),
)
def test_resharding_there_and_back_is_the_identity(
    classes: int, counts: tuple[int, int], forms: tuple[str, str, str], dtype: str, block: int
) -> None:
    generator = torch.Generator().manual_seed(classes)
    # Any bits: infinities and not-a-numbers among them.
    words = torch.randint(-(2**15), 2**15, (classes, 8), dtype=torch.int16, generator=generator)
    weight = words.view(DTYPES[dtype])
    if dtype == "bfloat16":
        forms = tuple(form.replace("npy", "pt") for form in forms)  # type: ignore[assignment]
    before, bank_writer.BLOCK_BYTES = bank_writer.BLOCK_BYTES, block
    try:
        with tempfile.TemporaryDirectory() as name:
            here = Path(name)
            torch.save(weight, here / "bank.pt")
            source: Path = here / "bank.pt"
            for place, (form, shards) in enumerate(zip(forms, (counts[0], counts[1], counts[0]), strict=True)):
                suffix = "" if form == "folder" else f"_%03d.{form}"
                target = here / f"{place}{suffix}"
                kind = form.replace("folder", "safetensors")
                assert reshard(source, target, "--shards", str(shards), "--format", kind) == 0
                bank = open_bank(str(target))
                assert [part.rows for part in bank.parts] == [len(rows) for rows in reference_split(weight, shards)]
                assert bank.dtype == dtype
                assert bits(bank.read(0, classes)) == bits(weight)
                source = target
            assert not list(here.glob("*.tmp*")) + list(here.glob("*.rows"))
    finally:
        bank_writer.BLOCK_BYTES = before


@given(classes=st.integers(0, 10_000), parts=st.integers(1, 300))
def test_part_ranges_tile_the_rows(classes: int, parts: int) -> None:
    ranges = [part_range(classes, parts, part) for part in range(parts)]
    assert [lo for lo, _ in ranges] == [0, *(hi for _, hi in ranges[:-1])]
    assert ranges[-1][1] == classes
    sizes = [hi - lo for lo, hi in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_files_are_readable_by_others(folder: Path) -> None:
    assert reshard(folder / "folder", folder / "one.npy", "--format", "npy") == 0
    assert np.array_equal(np.load(folder / "one.npy"), WEIGHT.numpy())
    assert reshard(folder / "folder", folder / "one.pt", "--format", "pt", "--dtype", "bfloat16") == 0
    assert torch.equal(torch.load(folder / "one.pt", weights_only=True)["weight"], WEIGHT.bfloat16())
    parts = sorted((folder / "folder").glob("*.safetensors"))
    assert torch.equal(torch.cat([load_file(path)["weight"] for path in parts]), WEIGHT)
    index = json.loads((folder / "folder" / INDEX).read_text())
    assert [entry["rows"] for entry in index["files"]] == [2, 2, 2, 1]
    assert index["provenance"][0]["input"] == str(folder / "bank.npy")
    assert reshard(folder / "folder", folder / "again") == 0
    assert len(json.loads((folder / "again" / INDEX).read_text())["provenance"]) == 2


@pytest.mark.parametrize(
    ("output", "more", "message"),
    [
        ("new.npy", ("--format", "safetensors"), "must have the suffix .safetensors or no suffix"),
        ("new.npy", ("--format", "npy", "--shards", "2"), "give a pattern such as new_%03d.npy"),
        ("bank.safetensors", (), "is there already"),
        ("p_%03d.npy", ("--format", "npy", "--shards", "2"), "p_000.npy is there already"),
        ("new.npy", ("--format", "npy", "--dtype", "bfloat16"), "bfloat16, for which .npy has no type"),
        ("new", ("--head", "image"), "--head chooses a bank of a checkpoint"),
    ],
)
def test_what_resharding_refuses(
    folder: Path, output: str, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert reshard(folder / "folder", folder / output, *more) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_interrupted_write_leaves_no_bank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_writer, "BLOCK_BYTES", 1)
    outputs = {"safetensors": "new", "npy": "new_%03d.npy", "pt": "new_%03d.pt"}
    for form, name in outputs.items():
        left = [4]

        def fail(rows: int, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bank_writer.write_bank(
                open_bank(str(folder / "bank.npy")),
                folder / name,
                shards=2,
                form=form,  # type: ignore[arg-type]
                dtype="float32",
                provenance=(),
                on_rows=fail,
            )
        with pytest.raises(ValueError, match="there is no"):
            open_bank(str(folder / name))
        assert reshard(folder / "bank.npy", folder / name, "--shards", "2", "--format", form) == 0
        assert torch.equal(open_bank(str(folder / name)).read(0, 7), WEIGHT)


def test_an_interrupted_renaming_leaves_no_bank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three parts of 2 rows, the first or last two would look like a whole bank of 4."""
    save_file({"weight": WEIGHT[:6]}, folder / "six.safetensors")
    done: list[object] = []

    def replace_once(*paths: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(paths)
        Path(str(paths[0])).rename(Path(str(paths[1])))

    monkeypatch.setattr(bank_writer.os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        reshard(folder / "six.safetensors", folder / "new_%03d.npy", "--shards", "3", "--format", "npy")
    assert len(list(folder.glob("new_???.npy"))) == 2
    with pytest.raises(ValueError, match=r"new_000\.npy is missing"):
        open_bank(str(folder / "new_%03d.npy"))


def save_on_rank(topology: Topology, directory: Path) -> None:
    """Two banks as a run's checkpoint holds them."""
    checkpointer = Checkpointer(directory, CheckpointConfig(keep_last=0, asynchronous=False), "")
    lo, hi = row_range(7, topology.world, topology.rank)
    tensors = {
        f"banks.{head}.weight": Rectangle.of(WEIGHT[lo:hi] + number, (7, 5), (lo, 0))
        for number, head in enumerate(("image", "ocr"))
    }
    checkpointer.save(tensors, {"step": 3})
    checkpointer.close()


def test_the_bank_of_a_checkpoint(rank_pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    rank_pool.run(save_on_rank, world=4, args=(run / "checkpoints",))
    for source in (run, run / "checkpoints" / "step_00000003"):
        target = tmp_path / f"{source.name}_%03d.npy"
        assert reshard(source, target, "--head", "ocr", "--shards", "3", "--format", "npy") == 0
        assert torch.equal(stored_centres(str(target), 7, 5, "h", 0, 7), WEIGHT + 1)
    capsys.readouterr()
    assert reshard(run, tmp_path / "new") == 2
    assert "holds the banks of ['image', 'ocr']; add --head" in capsys.readouterr().err
    assert reshard(run, tmp_path / "new", "--head", "video") == 2
    assert "none of --head video" in capsys.readouterr().err
    assert reshard(tmp_path, tmp_path / "new") == 2
    assert "neither a bank nor holds a checkpoint" in capsys.readouterr().err
    file = next((run / "checkpoints" / "step_00000003").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    assert reshard(run, tmp_path / "new", "--head", "ocr") == 2
    assert f"{file.name} has" in capsys.readouterr().err
