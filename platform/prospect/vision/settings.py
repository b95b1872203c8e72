"""Settings of the vision encoder and of the embedding job. Imports neither torch nor a decoder."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from prospect.settings import Settings

Crop = Literal["squash", "centre"]
"""`squash` ignores the aspect ratio, as SigLIP was trained; `centre` keeps the largest central square."""


RESIZE_KERNEL = "swscale-bicubic-0.5-antialias"
"""Part of the fingerprint. Bicubic with a = -0.5 and antialiasing is the kernel of Pillow, open_clip and timm.
FFmpeg's swscale applies it to the decoder's YUV planes, which saves the large RGB copy."""


SAMPLING_PHASE: Final = "last-before-end"
"""Part of the fingerprint: frame k's picture is the last source picture with pts < (k+1)/fps."""


DECODER_VERSION: Final = 2
"""Version of decoding and sampling, in the header of each stored video. Raise it when a video gives other pictures than
before, and let `changes.decodes_otherwise` tell which videos do."""


class VisionSettings(Settings):
    """The vision encoder and its input. The fingerprint covers the settings above `batch_size`."""

    backend: Literal["open_clip", "timm", "smolvlm"] = "open_clip"
    """Which library builds the image tower; `smolvlm`: transformers, from SmolVLM2's tower and connector."""
    model: str = "ViT-SO400M-14-SigLIP-384"
    """The backend's name of the model; `prospect-tiny` and `smolvlm-tiny` are ours."""
    weights: str = "webli"
    """A file or folder, an open_clip pretrained tag, `package:efficientnet_lite0`, `hub` for SmolVLM2, or `random:SEED`
    for tests."""
    image_size: int = Field(384, ge=8)
    """Side of the square picture, pixels."""
    crop: Crop = "squash"
    """How a picture becomes a square: `squash` ignores the aspect ratio, `centre` crops the sides."""
    tokens_per_frame: int = Field(1, ge=1)
    """I: the pooled vector alone, with a 2x2 grid (5), or with a 3x3 grid (10). SmolVLM2: 1 (pooled), a picture's
    tokens (81), or those of 16 crops and the picture (1377, at four times the `image_size`, for 17 times the work)."""
    pooling: Literal["mean", "first"] = "mean"
    """How SmolVLM2's tokens of a picture become one: their mean, or the first, its top left corner."""
    connector: bool = True
    """Whether SmolVLM2's embeddings are behind its connector; before it, `model.projector=linear` trains it."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixel values in [0, 1], by channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides them then, by channel."""
    phase: Literal["last-before-end", "start-of-interval"] = SAMPLING_PHASE
    """Which moment of its half second a frame shows. Videos are sampled as a live camera is, by the last picture
    before the end; ProAssist's frames files and features were taken at the start."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the tower. bfloat16 has 8 bits of precision and gives other embeddings."""
    batch_size: int = Field(32, ge=1)
    """Pictures that are encoded together: in one forward pass on a GPU, padded to it if compiled; on a CPU in passes of
    4, so that an embedding does not depend on its batch."""
    compile: bool = False
    """Compile the tower with torch.compile: faster, after minutes of start. The last bits differ, as they do between
    machines, so it is not part of the fingerprint."""
    equivalent_to: tuple[str, ...] = ()
    """Fingerprints that you declare equivalent to this encoder's, such as those of imported features: training accepts
    a store of them, and serving a model trained on them. Nothing checks it."""

    @model_validator(mode="after")
    def _suit_the_backend(self) -> Self:
        if self.backend == "smolvlm":
            return self
        if self.tokens_per_frame not in (1, 5, 10):
            raise ValueError(f"tokens_per_frame ({self.tokens_per_frame}) must be 1, 5 or 10 with this backend")
        if self.pooling != "mean" or not self.connector:
            raise ValueError("pooling and connector are settings of backend=smolvlm")
        return self


class EmbeddingSettings(Settings):
    """How the embedding job uses the machine or the cluster."""

    num_encoders: int | None = Field(None, ge=1)
    """Encoders that run at once; null: as many as the GPUs hold, or one a CPU core without GPUs."""
    encoder_gpus: float = Field(1.0, gt=0, le=1)
    """Share of a GPU that an encoder reserves where the job uses GPUs."""
    encoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that an encoder reserves. Halves let encoders and decoders share the cores of one machine."""
    encoder_threads: int = Field(1, ge=1)
    """Threads of an encoder on a CPU; another number may change the last bits of an embedding."""
    decoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that a decoder reserves; as many decoders run as fit beside the encoders."""
    import_features: str | None = None
    """Folder below `features/` in ProAssist's tree (data=proassist), such as google___siglip-so400m-patch14-384@-2:
    import its features instead of encoding videos."""
