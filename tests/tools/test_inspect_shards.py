"""inspect_shards: counts what the test packed, names what it damaged, and shows it in one file."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import codec
from tests.data.samples import clip_bytes, coded_frames, image_bytes, overwrite, write_shard
from tools.inspect_shards.__main__ import EXIT_DAMAGED, EXIT_WRONG_ARGUMENTS, main


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of 16, 9 and 5 frames, the first with a sidecar."""
    contents = [clip_bytes(coded_frames(count), gop=6) for count in (16, 9, 5)]
    sidecar = codec.dumps(codec.analyse(contents[0], (2, 2), virtual_frames=16, name="clip"))
    members = [{"mp4": contents[0], "saliency": sidecar}, {"mp4": contents[1]}, {"mp4": contents[2]}]
    write_shard(tmp_path / "clips.tar", members, np.array([[3, 3], [3, 1], [-1, -1]]))
    return tmp_path / "clips.tar"


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_clips_are_counted_by_their_packets(clips, capsys):
    found = facts(capsys, str(clips))
    assert found["samples"] == 3
    assert found["formats"] == {"h264": 3}
    assert found["frames"] == [5, 9, 16]
    assert found["seconds"] == [0.167, 0.3, 0.533]
    assert (found["height"], found["width"]) == ([28, 28, 28], [28, 28, 28])
    assert found["gops"] == {"3": 1, "4": 1, "5": 1, "6": 3}
    assert (found["sidecars"], found["unlabelled"], found["classes"]) == (1, 1, 2)
    assert found["most_frequent"] == [[3, 2], [1, 1]]
    assert found["damaged"] == []


def test_damaged_samples_are_named_and_the_rest_is_counted(clips, capsys):
    overwrite(clips, 1, "mp4", b"damage")
    assert main([str(clips)]) == EXIT_DAMAGED
    told = capsys.readouterr()
    assert "clips.tar#clips-001: its .mp4 is damaged" in told.err
    assert facts(capsys, str(clips))["samples"] == 2


def test_pictures_of_any_size_and_what_is_none(tmp_path, capsys):
    pictures = [image_bytes(np.zeros((height, 20, 3), np.uint8), kind) for height, kind in ((1, "png"), (500, "jpeg"))]
    members = [{"png": pictures[0]}, {"jpg": pictures[1]}, {"jpg": b"none"}]
    write_shard(tmp_path / "images.tar", members, np.zeros((3, 1), np.int64))
    found = facts(capsys, str(tmp_path / "*.tar"))
    assert found["formats"] == {"PNG": 1, "JPEG": 1}
    assert found["height"] == [1, 250.5, 500]
    assert len(found["damaged"]) == 1


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_sheet_shows_clips_and_damage_and_loads_nothing(clips, tmp_path):
    overwrite(clips, 2, "mp4", b"damage")
    arguments = ["--size", "28", "--clip-frames", "16", "--tokens", "7", "--samples", "9"]
    assert main([str(clips), "--html", str(tmp_path / "sheet.html"), *arguments]) == EXIT_DAMAGED
    text = (tmp_path / "sheet.html").read_text()
    links = Links()
    links.feed(text)
    assert len(links.sources) == 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in links.sources)
    assert text.count("its .mp4 is damaged") == 2  # in the statistics, and in its place
    assert "labels: 3, 3" in text


def test_wrong_calls(tmp_path, capsys):
    assert main([str(tmp_path / "*.tar")]) == EXIT_WRONG_ARGUMENTS
    assert "no shard matches" in capsys.readouterr().err
    assert main(["x.tar", "--size", "30"]) == EXIT_WRONG_ARGUMENTS
