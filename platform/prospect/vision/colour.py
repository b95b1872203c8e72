"""Colour of a decoded picture: its YUV matrix and range, and tone mapping from HDR to SDR."""

from functools import cache
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, ColorTrc

from prospect.errors import DataError

_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
"""Code points of ITU-T H.273 that swscale converts."""
_RGB, _UNSPECIFIED = 0, 2
_HD_HEIGHT, _HD_WIDTH = 576, 1280
"""Larger pictures without a named matrix are read as bt709, as players do."""

PEAK_NITS, WHITE_NITS = 1000.0, 203.0
"""Peak that HDR is mastered for, and its diffuse white (ITU-R BT.2408), which becomes SDR's white."""
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


class ColourSpace(NamedTuple):
    """How a picture's values encode colour."""

    matrix: str
    """swscale's name of the YUV matrix; `auto` for RGB, which has none."""
    full_range: bool
    transfer: int
    """Code point of the transfer function (H.273)."""

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


def read_colour(frame: VideoFrame) -> ColourSpace:
    """Read matrix, range and transfer function of a frame; guess as players do where the stream names none.

    Raises:
        DataError: a matrix that swscale does not convert (YCgCo, ICtCp).
    """
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.format.is_rgb:
        return ColourSpace("auto", True, frame.color_trc)
    if frame.colorspace in (_RGB, _UNSPECIFIED):
        large = frame.height > _HD_HEIGHT or frame.width >= _HD_WIDTH
        return ColourSpace("bt709" if large else "bt601", full, frame.color_trc)
    if frame.colorspace not in _MATRICES:
        raise DataError(f"pictures with colour matrix {frame.colorspace} (ITU-T H.273) cannot be converted to RGB")
    return ColourSpace(_MATRICES[frame.colorspace], full, frame.color_trc)


def tone_map(picture: np.ndarray, transfer: int) -> np.ndarray:
    """Map HDR in bt2020, uint16 [H, W, 3] full range, to SDR in bt709, uint8 [H, W, 3].

    ITU-R BT.2390's curve (EETF) from `PEAK_NITS` to `WHITE_NITS` on the largest of R, G and B: what lies below
    about half of diffuse white keeps its light, and highlights roll off instead of clipping.
    """
    light = _display_light(picture, transfer) @ _BT2020_TO_BT709.T
    light = np.maximum(light, 0)
    largest = light.max(-1, keepdims=True)
    light *= _compress(largest) / np.maximum(largest, 1e-6)
    encoded = (np.minimum(light / WHITE_NITS, 1)) ** (1 / 2.4)  # the inverse of a display's curve (BT.1886)
    return np.rint(encoded * 255).astype(np.uint8)


def _display_light(picture: np.ndarray, transfer: int) -> np.ndarray:
    """Convert coded values to nits on a display of `PEAK_NITS`, float32."""
    light: np.ndarray = _light_by_code(transfer)[picture]
    if transfer == ColorTrc.ARIB_STD_B67:  # HLG codes the scene's light; the display adds its own curve
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * (PEAK_NITS * luminance**0.2)[..., None]
    return light


@cache
def _light_by_code(transfer: int) -> np.ndarray:
    """Light of each 16-bit code: nits for PQ (SMPTE ST 2084), a share of the scene's peak for HLG."""
    code = np.linspace(0, 1, 65_536)
    if transfer == ColorTrc.SMPTE2084:
        return _pq_to_nits(code).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
"""Constants of SMPTE ST 2084."""


def _pq_to_nits(code: np.ndarray) -> np.ndarray:
    power = code ** (1 / _M2)
    return 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _nits_to_pq(nits: np.ndarray | float) -> np.ndarray:
    power = (np.asarray(nits) / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _compress(nits: np.ndarray) -> np.ndarray:
    """BT.2390 5.4.1 without black lift: identity up to the knee, then a Hermite spline that ends at the white."""
    peak, white = _nits_to_pq(PEAK_NITS), _nits_to_pq(WHITE_NITS) / _nits_to_pq(PEAK_NITS)
    knee = 1.5 * white - 0.5
    code = np.minimum(_nits_to_pq(nits) / peak, 1)
    t = np.maximum(code - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return _pq_to_nits(np.where(code < knee, code, spline) * peak)
