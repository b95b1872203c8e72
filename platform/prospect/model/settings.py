"""Settings of models and losses. Imports no torch, because every job's configuration imports this."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prospect.settings import Place, Settings

DecisionBackend = Literal["heads", "token"]


HEADS = ("speaking", "dst_update", "dst_state")
"""The heads whose training is counted; with the token back-end the first two are rows of `lm_head`."""


class TinyGeometry(Settings):
    """A text trunk trained from scratch, with a byte-level tokenizer fitted to the training text."""

    hidden_size: int = Field(default=192, ge=8)
    """Width of a hidden state; a multiple of twice `num_heads`."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width inside a feed-forward layer."""
    num_layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads of a layer."""
    vocab_size: int = Field(default=1024, ge=300)
    """Tokens of the tokenizer; more make texts shorter in tokens and the embedding larger."""

    @model_validator(mode="after")
    def _heads_are_even(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads} of even width"
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters on the seven projections."""

    r: int = Field(default=128, ge=1)
    """Rank of an adapter: raise it where the base has to change more, for memory and time."""
    alpha: int = Field(default=256, ge=1)
    """Scale: an adapter's output counts `alpha / r` times. Change it with `r`."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of an adapter's inputs that training drops; raise it where few clips are learned by heart."""


class ModelSettings(Settings):
    """Which language model, how it is adapted, and how it decides."""

    name: str = "prospect-dst"
    """Name under which finished models are registered."""
    base: Place = Field(default="tiny", min_length=1)
    """`tiny` (a Llama), `tiny:smolvlm`, `package:smollm2_135m`, or a name or path that transformers loads."""
    tiny: TinyGeometry = TinyGeometry()
    adaptation: Literal["full", "lora", "qlora"] = "lora"
    """What trains besides projector, heads and new token rows: all weights, adapters of a frozen base, or adapters
    of one whose projections are frozen in 4 bits (NF4, needs bitsandbytes)."""
    lora: LoraSettings = LoraSettings()
    decision_backend: DecisionBackend = "heads"
    """`heads`: two small heads decide whether to speak and to update; `token`: three rows of `lm_head` do."""
    projector: Literal["mlp", "linear", "none"] = "mlp"
    """From a frame's embedding to the model's width: two layers, one (SmolVLM2's begins as its own connector), or
    nothing where embeddings come from SmolVLM2's own tower and connector."""
    decision_head: Literal["linear", "mlp", "two_way"] = "linear"
    """`linear`, `mlp` with one hidden layer, for decisions that one layer cannot part, or `two_way`, the earlier
    project's with an output for no and one for yes."""
    state_head: Literal["steps", "frame"] = "steps"
    """`steps`: the state of every step, read off a frame; `frame`: the earlier project's, which reads that of the first
    step that is not completed, and cannot tell it from the next one."""
    state_head_size: int = Field(default=256, ge=1)
    """Width in which a frame and a step are compared."""
    whiten_frames: bool = False
    """Decorrelate the embedding's dimensions over the training frames: for untrained encoders, whose few
    informative directions are a hundred times weaker than the others."""
    frame_noise: float = Field(default=0.0, ge=0)
    """Deviation of the Gaussian noise on frames in training, against learning single pictures by heart."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model. `bfloat16` halves memory; choose it on a GPU."""

    @property
    def tiny_type(self) -> str | None:
        """The `model_type` of a base that is trained from scratch; None: the base has weights."""
        kind, _, model_type = self.base.partition(":")
        return (model_type or "llama") if kind == "tiny" else None


LOSS_PARTS = ("speaking_text", "dst_text", "summary_text", "speak", "update", "state", "lookup")
"""Parts of the weighted loss, by the names of their weights in `LossSettings`."""


class LossSettings(Settings):
    """Kinds and weights of the losses."""

    decision: Literal["balanced", "focal"] = "focal"
    """`balanced`: the mean over events and the mean over silence; `focal`: the same of the focal loss."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Of `focal`: 0 weighs all decisions alike, and a larger one counts those less that are right already."""
    focal_alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of an event in the mean over all decisions, silence having the rest of 1, as the focal loss was published
    (0.25 there and in the earlier project); null: half of the loss is of events and half of silence."""
    speaking_text: float = Field(default=1.0, ge=0)
    """Weight of the tokens of utterances; 0 trains without them."""
    dst_text: float = Field(default=1.0, ge=0)
    """Weight of the tokens of deltas."""
    summary_text: float = Field(default=1.0, ge=0)
    """Weight of the tokens of summaries, which only `clips.summaries` asks for."""
    speak: float = Field(default=1.0, ge=0)
    """Weight of the decisions to speak."""
    update: float = Field(default=1.0, ge=0)
    """Weight of the decisions to update the state."""
    state: float = Field(default=1.0, ge=0)
    """Weight of the state head over all frames; 0 leaves it untrained."""
    lookup: float = Field(default=0.0, ge=0)
    """Weight of looking up what a step is called: where an utterance names a step, a head of the last layer learns to
    attend to the same word in the step's line, or to the frame where no line has it, and to say it. For a model that
    is trained from scratch, once it can watch (`training.reading`); a pretrained one can copy."""
