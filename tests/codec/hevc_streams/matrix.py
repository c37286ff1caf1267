"""Real encoder streams: x265, through PyAV, over the options that change what a reader must parse."""

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from tests.codec.hevc_streams.scenes import render

# One thread, no rate control's whims, and B frames where they are asked for: streams are the same on every machine.
COMMON = "pools=1:wpp=0:frame-threads=1:log-level=none:rc-lookahead=10:bframes=3:b-adapt=0:scenecut=0:qp=30:aq-mode=0"
COMMON += ":no-deblock=1:no-sao=1"


@dataclass(frozen=True)
class Configuration:
    """One stream: x265's parameters over `COMMON`, and what it encodes.

    `expect` are words of x265's own account of its options in the stream that must be present.
    """

    params: str = ""
    scene: str = "objects"
    size: tuple[int, int] = (208, 120)  # width, height
    frames: int = 7
    preset: str = "fast"
    bit_depth: int = 8
    container: str = "hevc"
    expect: tuple[str, ...] = ()


def encode(configuration: Configuration) -> bytes:
    """The file of a configuration."""
    width, height = configuration.size
    frames = render(configuration.scene, width, height, configuration.frames, configuration.bit_depth)
    pixel_format = "yuv420p" if configuration.bit_depth == 8 else "yuv420p10le"
    params = ":".join(part for part in (COMMON, configuration.params) if part)
    # Moving an MP4's index to the front reads the file again, which a buffer in memory does not allow.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=configuration.container) as output:
            options = {"x265-params": params, "preset": configuration.preset}
            stream = output.add_stream("libx265", rate=25, options=options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.time_base = Fraction(1, 25)
            for pts, plane in enumerate(frames):
                frame = _frame(plane, pixel_format)
                frame.pts = pts
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()


def _frame(plane: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """A frame with the plane as luma; chroma is luma, smaller, so that it has something to code."""
    half = plane[: plane.shape[0] // 2 * 2 : 2, : plane.shape[1] // 2 * 2 : 2]
    packed = np.concatenate([plane.ravel(), half.ravel(), half[:, ::-1].ravel()])
    height, width = plane.shape
    return av.VideoFrame.from_ndarray(packed.reshape(height * 3 // 2, width), format=pixel_format)


def encoder_options(data: bytes) -> str:
    """x265's account of its options, from the user data of an Annex B stream."""
    start = data.index(b"options: ")
    return data[start : data.index(b"\x80", start)].decode("ascii", "replace")


def configurations() -> dict[str, Configuration]:
    """All configurations by name."""
    return {**_partitions(), **_pictures(), **_tools(), **_rates(), **_files(), **_presets()}


def _partitions() -> dict[str, Configuration]:
    """Block sizes, transform trees, slices and wavefronts."""
    made = {}
    for ctu in (16, 32, 64):
        for smallest in (8, 16, 32):
            if smallest <= ctu:
                params = f"ctu={ctu}:min-cu-size={smallest}"
                made[f"ctu{ctu}_min{smallest}"] = Configuration(
                    params, "pan", expect=(f"ctu={ctu}", f"min-cu-size={smallest}")
                )
    for depth in (1, 2, 3, 4):
        params = f"ctu=32:tu-intra-depth={depth}:tu-inter-depth={depth}:limit-tu=0:qp=22"
        made[f"tu_depth_{depth}"] = Configuration(params, "noisy", expect=(f"tu-inter-depth={depth}",))
    for size in (4, 8, 16):
        made[f"max_tu_{size}"] = Configuration(f"ctu=32:max-tu-size={size}", "noisy", expect=(f"max-tu-size={size}",))
    made["rect"] = Configuration("rect=1:amp=0:rd=4", "pan", preset="medium", expect=(" rect ", " no-amp "))
    made["amp"] = Configuration("rect=1:amp=1:rd=4", "pan", preset="medium", expect=(" rect ", " amp "))
    made["amp_ctu16"] = Configuration("ctu=16:rect=1:amp=1:limit-modes=0", "objects", preset="medium")
    made["wpp"] = Configuration("wpp=1:ctu=16", "pan", expect=(" wpp ",))
    made["wpp_ctu64"] = Configuration("wpp=1:ctu=64", "pan", (328, 200), 4, expect=(" wpp ",))
    made["slices_2"] = Configuration("slices=2:wpp=1:ctu=32", "pan", (208, 200), expect=("slices=2",))
    made["slices_4_wpp"] = Configuration("slices=4:wpp=1:ctu=16", "objects", (208, 200), expect=("slices=4",))
    return made


def _pictures() -> dict[str, Configuration]:
    """Picture types, references and motion."""
    made = {
        "intra_only": Configuration("keyint=1", frames=3, expect=("keyint=1 ",)),
        "p_only": Configuration("bframes=0:ref=1", "pan", expect=("bframes=0", "ref=1 ")),
        "b_flat": Configuration("bframes=3:b-pyramid=0", expect=("bframes=3", " no-b-pyramid ")),
        "b_pyramid": Configuration("bframes=4:b-pyramid=1:ref=4", frames=10, expect=(" b-pyramid ",)),
        "b_pyramid_deep": Configuration("bframes=8:b-pyramid=1:ref=5", "pan", frames=12, expect=("bframes=8",)),
        "b_intra_off": Configuration("b-intra=0", "noisy", preset="slow", expect=(" no-b-intra ",)),
        "weightb_fade": Configuration("bframes=2:weightb=1:weightp=1", "fade", expect=(" weightb ",)),
        "weightp_fade": Configuration("bframes=0:weightp=1:ref=3", "fade", expect=(" weightp ",)),
        "weightp_off": Configuration("weightp=0:weightb=0", "fade", expect=(" no-weightp ",)),
        "open_gop": Configuration("keyint=4:min-keyint=4:open-gop=1:bframes=3", frames=10, expect=(" open-gop ",)),
        "closed_gop": Configuration("keyint=4:min-keyint=4:open-gop=0:bframes=2", frames=10, expect=(" no-open-gop ",)),
        "radl": Configuration("keyint=5:min-keyint=5:open-gop=0:radl=2:bframes=3", frames=12, expect=("radl=2",)),
        "intra_refresh": Configuration("intra-refresh=1:keyint=6:bframes=0", frames=10, expect=(" intra-refresh ",)),
        "scene_cut": Configuration("scenecut=40:bframes=2", "cut", frames=10, expect=("scenecut=40",)),
        "long_group": Configuration("keyint=250:bframes=3:log2-max-poc-lsb=4", "pan", (96, 64), 40),
        "temporal_layers": Configuration("temporal-layers=3:bframes=3:b-pyramid=1", frames=10),
        "no_temporal_mvp": Configuration("temporal-mvp=0", "pan", expect=(" no-temporal-mvp ",)),
        "low_delay_still": Configuration("bframes=0:ref=2", "still", expect=("bframes=0",)),
    }
    for refs in range(1, 6):
        params = f"ref={refs}:bframes=3:b-pyramid=1"
        made[f"refs_{refs}"] = Configuration(params, frames=10, expect=(f"ref={refs} ",))
    for limit in (0, 3):
        params = f"limit-refs={limit}:ref=4:rect=1"
        made[f"limit_refs_{limit}"] = Configuration(params, preset="medium", expect=(f"limit-refs={limit}",))
    for count in range(1, 6):
        made[f"max_merge_{count}"] = Configuration(f"max-merge={count}", "noisy", expect=(f"max-merge={count}",))
    return made


def _tools() -> dict[str, Configuration]:
    """Coding tools and the bit depth."""
    return {
        "ten_bit": Configuration("bframes=2", bit_depth=10, expect=("bitdepth=10",)),
        "ten_bit_lossless": Configuration("lossless=1", bit_depth=10, frames=3, expect=(" lossless ",)),
        "ten_bit_filters": Configuration("no-deblock=0:no-sao=0:qp=38", "noisy", bit_depth=10, expect=(" sao ",)),
        "lossless": Configuration("lossless=1:bframes=2", frames=4, expect=(" lossless ",)),
        "lossless_ctu16": Configuration("lossless=1:ctu=16:rect=1", "noisy", frames=3, expect=(" lossless ", " rect ")),
        "motion_star": Configuration("me=star:subme=7:merange=92", "cut", expect=("me=3", "subme=7")),
        "noise_reduction": Configuration("nr-inter=500:nr-intra=500:qp=22", "noisy", expect=("nr-inter=500",)),
        "cu_lossless": Configuration("cu-lossless=1:qp=8:rd=4", frames=4, preset="medium", expect=(" cu-lossless ",)),
        "scaling_default": Configuration("scaling-list=default:qp=24", "noisy"),
        "constrained_intra": Configuration("constrained-intra=1:bframes=2", "noisy", expect=(" constrained-intra ",)),
        "strong_intra_off": Configuration("strong-intra-smoothing=0", expect=(" no-strong-intra-smoothing ",)),
        "tskip": Configuration("tskip=1:qp=20:rd=4", "noisy", preset="medium", expect=(" tskip ",)),
        "signhide_off": Configuration("signhide=0:qp=20", "noisy", expect=(" no-signhide ",)),
        "signhide": Configuration("signhide=1:qp=16", "noisy", expect=(" signhide ",)),
        "deblock_sao": Configuration("no-deblock=0:no-sao=0:qp=36", "noisy", expect=(" sao ",)),
        "sao_non_deblock": Configuration("no-deblock=0:no-sao=0:sao-non-deblock=1:qp=36", "noisy"),
        "deblock_only": Configuration("deblock=2,-3:no-sao=1:qp=34", expect=("deblock=2:-3",)),
        "fast_intra": Configuration("fast-intra=1:keyint=1", "noisy", frames=3, expect=(" fast-intra ",)),
        "rd_1": Configuration("rd=1:bframes=2", "pan", expect=("rd=1 ",)),
        "rd_3": Configuration("rd=3:bframes=2", "pan", expect=("rd=3 ",)),
        "rd_6": Configuration("rd=6:rect=1:amp=1", "pan", (112, 64), preset="slow", expect=("rd=6 ",)),
        "rdoq_psy": Configuration("rdoq-level=2:psy-rdoq=4:psy-rd=3:rd=4", "noisy", expect=("rdoq-level=2",)),
    }


def _rates() -> dict[str, Configuration]:
    """Quantisation."""
    return {
        "qp_0": Configuration("qp=0:ipratio=1:pbratio=1", "noisy", (112, 64), 4, expect=("qp=0 ",)),
        "qp_4": Configuration("qp=4", "noisy", (112, 64), 4, expect=("qp=4 ",)),
        "qp_51": Configuration("qp=51", expect=("qp=51 ",)),
        "aq_1": Configuration("crf=28:aq-mode=1:aq-strength=2.5:qg-size=16", "noisy", expect=("aq-mode=1",)),
        "aq_3_qg8": Configuration("crf=26:aq-mode=3:aq-strength=3:qg-size=8:ctu=32", "noisy", expect=("qg-size=8",)),
        "aq_2_cutree": Configuration("crf=30:aq-mode=2:cutree=1:qg-size=32:bframes=3", expect=("aq-mode=2",)),
        "chroma_qp_offsets": Configuration("cbqpoffs=-5:crqpoffs=4", expect=("cbqpoffs=-5",)),
        "bitrate": Configuration("bitrate=150:aq-mode=1", "noisy", expect=("bitrate=150",)),
        "vbv": Configuration("bitrate=120:vbv-maxrate=120:vbv-bufsize=60", "noisy", expect=("vbv-maxrate=120",)),
        "optimised_pps": Configuration("opt-qp-pps=1:opt-ref-list-length-pps=1", frames=10, expect=(" opt-qp-pps ",)),
        "cu_delta_qp_optimised": Configuration("opt-cu-delta-qp=1:crf=28:aq-mode=1", "noisy"),
    }


def _presets() -> dict[str, Configuration]:
    """x265's presets as they are, loop filters and adaptive quantisation on: what users' files look like."""
    usual = "no-deblock=0:no-sao=0:aq-mode=2:crf=28"
    expect = (" sao ", "aq-mode=2")
    names = ("ultrafast", "superfast", "veryfast", "medium", "slow", "slower", "veryslow")
    return {f"preset_{name}": Configuration(usual, "noisy", frames=8, preset=name, expect=expect) for name in names}


def _files() -> dict[str, Configuration]:
    """Sizes, headers and containers."""
    made = {
        "width_odd_ctu": Configuration(size=(202, 114), scene="pan"),
        "width_2_over": Configuration("ctu=64", "pan", (130, 66), expect=("ctu=64",)),
        "one_ctu": Configuration("ctu=64", size=(64, 64), expect=("ctu=64",)),
        "tall": Configuration(size=(72, 176), scene="pan"),
        "one_picture": Configuration("keyint=1", "still", frames=1, expect=("keyint=1 ",)),
        "repeat_headers": Configuration("repeat-headers=1:keyint=3:min-keyint=3:aud=1", expect=(" repeat-headers ",)),
        "decoder_model": Configuration(
            "hrd=1:bitrate=150:vbv-maxrate=200:vbv-bufsize=200:aud=1", "noisy", expect=(" hrd ", " aud ")
        ),
        "hash_sei": Configuration("hash=1", expect=("hash=1",)),
    }
    for container in ("mp4", "matroska", "mpegts"):
        made[f"in_{container}"] = Configuration("bframes=3:keyint=5", frames=10, container=container)
        made[f"in_{container}_wpp"] = Configuration("wpp=1:ctu=16:slices=2", "pan", container=container)
    return made
