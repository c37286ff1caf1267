"""The matrix of x265 streams is what it says: FFmpeg decodes each, and each option took effect."""

from dataclasses import replace
from functools import cache

import pytest

from tests.codec.hevc_streams.judge import decode
from tests.codec.hevc_streams.matrix import Configuration, configurations, encode, encoder_options

CONFIGURATIONS = configurations()

cached = cache(encode)


def test_matrix_is_large_and_its_streams_differ() -> None:
    assert len(CONFIGURATIONS) >= 60
    assert len({cached(configuration) for configuration in CONFIGURATIONS.values()}) == len(CONFIGURATIONS)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ffmpeg_decodes_the_stream(name: str) -> None:
    configuration = CONFIGURATIONS[name]
    planes, complaints = decode(cached(configuration), configuration.container)
    assert not complaints
    assert len(planes) == configuration.frames
    assert {plane.shape[::-1] for plane in planes} == {configuration.size}
    assert planes[0].dtype.itemsize == (1 if configuration.bit_depth == 8 else 2)


@pytest.mark.parametrize("name", [name for name, made in CONFIGURATIONS.items() if made.expect])
def test_x265_says_that_it_used_the_option(name: str) -> None:
    configuration = CONFIGURATIONS[name]
    options = encoder_options(cached(configuration)) + " "
    assert [word for word in configuration.expect if word not in options] == []


@pytest.mark.parametrize("name", [name for name, made in CONFIGURATIONS.items() if made.params and not made.expect])
def test_an_option_without_a_word_changes_the_code(name: str) -> None:
    """Where x265's account does not name the option, or the container hides it."""
    configuration = CONFIGURATIONS[name]
    plain = replace(configuration, params="", container="hevc")
    assert without_user_data(cached(replace(configuration, container="hevc"))) != without_user_data(cached(plain))


def without_user_data(stream: bytes) -> list[bytes]:
    """NAL units but for x265's account of its options, which differs always."""
    units = stream.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return [unit for unit in units if b"options: " not in unit]


def test_encoding_is_reproducible() -> None:
    configuration = Configuration("wpp=1:ctu=16:slices=2", "pan")
    assert encode(configuration) == encode(configuration)
