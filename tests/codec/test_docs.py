"""The ten lines of docs/codec_input.md, run as they stand on a clip that was really encoded."""

import re
from pathlib import Path

import numpy as np
import pytest

import codec
from tests.codec.clips import encode, moving_square

PAGE = Path(__file__).parents[2] / "docs" / "codec_input.md"


@pytest.mark.parametrize("count", [70, 9])
def test_the_pages_lines_give_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    torch = pytest.importorskip("torch")
    onevision_encoder = pytest.importorskip("onevision_encoder")
    torch.manual_seed(0)
    config = onevision_encoder.OneVisionEncoderConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    onevision_encoder.OneVisionEncoderModel(config).save_pretrained(tmp_path / "encoder")
    frames, _ = moving_square(count, (128, 160), (1, 1), side=24, start=(8, 8))
    (tmp_path / "clip.mp4").write_bytes(encode(frames, options={"x264-params": "keyint=32"}))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(block, str(PAGE), "exec"), names)
    sampled = min(count, 64)
    tokens = min(2048, sampled * 256)
    assert names["features"].shape == (1, tokens, 64)
    assert torch.isfinite(names["features"]).all()
    assert names["positions"].shape == (tokens, 3)
    # What the model kept is what selection chose, with the positions it chose them at.
    model, clip, visible = names["model"], names["clip"], names["visible"]
    positions = torch.from_numpy(names["positions"])[None]
    with torch.no_grad():
        explicit = model(pixel_values=clip, visible_indices=visible, patch_positions=positions).last_hidden_state
    torch.testing.assert_close(explicit, names["features"])
    # The pixels of t are those of frame indices[t].
    last = codec.frame_indices(count, 64)[-1]
    assert np.array_equal(names["pixels"][last], list(names["pixels"])[-1])
