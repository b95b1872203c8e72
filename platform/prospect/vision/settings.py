"""The vision encoder as a user chooses it, and how the embedding job spreads. Imports no torch and no decoder."""

from typing import Final, Literal

from pydantic import Field

from prospect.settings import Settings

Crop = Literal["squash", "centre"]
"""`squash` ignores the aspect ratio, as SigLIP was trained; `centre` keeps the largest central square."""


RESIZE_KERNEL = "swscale-bicubic-0.5-antialias"
"""Part of the fingerprint. Bicubic with a = -0.5, widened where it shrinks, is the kernel of Pillow, and so of
open_clip and timm. FFmpeg's swscale applies it to the decoder's YUV planes, which spares the large RGB copy."""


SAMPLING_PHASE: Final = "last-before-end"
"""Part of the fingerprint: frame k's picture is the last source picture with pts < (k+1)/fps."""


class VisionSettings(Settings):
    """The vision encoder and what it is fed. All above `batch_size` make up the fingerprint."""

    backend: Literal["open_clip", "timm"] = "open_clip"
    """Which library builds the image tower."""
    model: str = "ViT-SO400M-14-SigLIP-384"
    """The backend's name of the model; `prospect-tiny` is ours."""
    weights: str = "webli"
    """A file or folder, an open_clip pretrained tag, `package:efficientnet_lite0`, or `random:SEED` for tests."""
    image_size: int = Field(384, ge=8)
    """Side of the square picture, pixels."""
    crop: Crop = "squash"
    """How a picture becomes a square: `squash` or `centre`."""
    tokens_per_frame: Literal[1, 5, 10] = 1
    """I: the pooled vector alone, with a 2x2 grid (5), or with a 3x3 grid (10)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixel values in [0, 1], by channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides them then, by channel."""
    phase: Literal["last-before-end", "start-of-interval"] = SAMPLING_PHASE
    """Which moment of its half second a frame shows. Videos are sampled as a live camera is seen, by the last picture
    before the end; ProAssist's frames files and features were taken at the start, and say so here."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the tower. bfloat16 has 8 bits of precision, so that its embeddings are other embeddings."""
    batch_size: int = Field(32, ge=1)
    """Pictures a forward pass; smaller batches are padded to it on a CPU or compiled, so that a batch changes no
    result and has one shape."""
    device: str = "auto"
    """`auto` (a GPU where there is one), or a torch device."""
    compile: bool = False
    """Whether torch.compile makes the tower faster, for minutes of start. It rounds differently in the last bits,
    as another machine does too, and belongs to no fingerprint."""
    equivalent_to: tuple[str, ...] = ()
    """Fingerprints of embeddings that you declare to be as good as this encoder's, such as those of imported
    features: training accepts a store of them, and serving a model that was trained on them. Nothing checks it."""


class EmbeddingSettings(Settings):
    """How the embedding job spreads over the machine or the cluster."""

    num_encoders: int | None = Field(None, ge=1)
    """Encoders at work at once; null: as many as the GPUs hold, or without GPUs one a CPU core."""
    encoder_gpus: float = Field(1.0, gt=0, le=1)
    """Share of a GPU that an encoder holds, where there are GPUs and `vision.device` is not `cpu`."""
    encoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that an encoder reserves. Halves let encoders and decoders share the cores of one machine."""
    encoder_threads: int = Field(1, ge=1)
    """Threads of an encoder's arithmetic on a CPU; another number may change the last bits of an embedding."""
    decoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that a decoder reserves; there are as many decoders as fit beside the encoders."""
    import_features: str | None = None
    """Name of a folder below `features/` in ProAssist's tree (data=proassist), such as
    google___siglip-so400m-patch14-384@-2: its features are imported, and no video is encoded."""
