"""Profile, video usability and hypothetical decoder syntax that a reader must step over (H.265 7.3.3, E.2)."""

from tests.codec.hevc_streams.bits import BitWriter


def write_profile_tier_level(bits: BitWriter, profile: int, layers: int, detailed: bool = False) -> None:
    """profile_tier_level(); `detailed` gives every sub-layer a profile and a level of its own."""
    _write_profile(bits, profile)
    bits.u(93, 8)  # level 3.1
    if layers == 1:
        return
    for layer in range(8):
        bits.u(0b11 if detailed and layer < layers - 1 else 0, 2)
    if detailed:
        for _ in range(layers - 1):
            _write_profile(bits, profile)
            bits.u(90, 8)


def _write_profile(bits: BitWriter, profile: int) -> None:
    bits.u(0, 3)  # profile space, main tier
    bits.u(profile, 5)
    compatible = {1: (1, 2), 2: (2,), 3: (1, 2, 3)}[profile]
    for flag in range(32):
        bits.u(int(flag in compatible))
    bits.u(0b1001, 4)  # progressive, not interlaced, not packed, frames only
    bits.u(0, 32)
    bits.u(0, 12)


def write_usability(bits: BitWriter, layers: int) -> None:
    """vui_parameters() with every part present but the default display window."""
    bits.u(1)
    bits.u(255, 8)
    bits.u(4, 16)
    bits.u(3, 16)
    bits.u(0b11, 2)  # overscan information: appropriate
    bits.u(1)
    bits.u(5, 3)
    bits.u(0)
    bits.u(1)
    for code in (1, 1, 1):
        bits.u(code, 8)
    bits.u(1)  # chroma sample location
    bits.ue(0)
    bits.ue(0)
    bits.u(0, 3)  # neutral chroma, fields, frame field information
    bits.u(0)
    bits.u(1)  # timing
    bits.u(1001, 32)
    bits.u(30000, 32)
    bits.u(1)
    bits.ue(0)
    bits.u(1)
    _write_hrd(bits, layers)
    bits.u(1)  # bitstream restriction
    bits.u(0b010, 3)
    for value in (0, 2, 1, 15, 15):
        bits.ue(value)


def _write_hrd(bits: BitWriter, layers: int) -> None:
    """hrd_parameters() with NAL and VCL parts, sub-pictures, and a different form for each sub-layer."""
    bits.u(0b111, 3)
    bits.u(98, 8)
    bits.u(15, 5)
    bits.u(0)
    bits.u(11, 5)
    bits.u(0, 4)
    bits.u(2, 4)
    bits.u(1, 4)
    for length in (23, 15, 5):
        bits.u(length, 5)
    for layer in range(layers):
        count = 1
        if layer == 0:
            bits.u(1)  # fixed_pic_rate_general_flag
            bits.ue(0)
            count = 2
            bits.ue(count - 1)
        else:
            bits.u(0)
            bits.u(0)
            bits.u(1)  # low_delay_hrd_flag: no cpb_cnt_minus1
        for _ in range(2 * count):
            for value in (1000, 2000, 500, 700):
                bits.ue(value)
            bits.u(0)
