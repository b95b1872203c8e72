"""The bare encoder on pictures in memory. Needs neither Ray nor a video decoder."""

import time
from collections.abc import Iterator

import numpy as np

from prospect.vision.encoder import FrameEncoder
from prospect.vision.settings import VisionSettings

SIGLIP_ON_A_GPU = VisionSettings(weights="random:0", batch_size=128, dtype="bfloat16", compile=True)
"""SigLIP-SO400M at 384 pixels; random weights are as fast as trained ones."""


def images_per_second(encoder: FrameEncoder, seconds: float, warm_up: int = 0) -> float:
    """Images/s of whole batches, after `warm_up` batches and one more."""
    settings = encoder.settings
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for _ in range(warm_up):
        encoder.encode(pictures)
    return rate(iter(lambda: len(encoder.encode(pictures)), 0), seconds)


def rate(counts: Iterator[int], seconds: float) -> float:
    """Frames/s after the first batch, over whole batches."""
    next(counts)
    began, frames = time.perf_counter(), 0
    for count in counts:
        frames += count
        if (spent := time.perf_counter() - began) >= seconds:
            return frames / spent
    return frames / (time.perf_counter() - began)
