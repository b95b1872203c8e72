"""Projector, decision heads and state head. H is the language model's width."""

import numpy as np
import torch
from torch import Tensor, nn

from prospect.errors import ConfigError

NUM_STEP_STATES = 3


class FrameProjector(nn.Module):
    """From embeddings [*, D] to the model's width [*, H], after an optional fixed whitening.

    Args:
        vision_dim: D.
        hidden_size: H.
        kind: `mlp`: Linear-GELU-Linear; `linear`: one, without a bias; `none`: D is H already.
        whiten: whether there is a whitening.
        noise: deviation of the Gaussian noise that training adds after the whitening.

    Raises:
        ConfigError: `none`, and D is not H.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, vision_dim: int, hidden_size: int, kind: str, whiten: bool, noise: float) -> None:
        super().__init__()
        if kind == "none" and vision_dim != hidden_size:
            raise ConfigError(
                f"`model.projector` (none) needs embeddings as wide as the model, {hidden_size}, and these have "
                f"{vision_dim}: embed with the vision tower and connector of the same base, or choose mlp.",
                field="model.projector",
            )
        self.kind = kind
        self.whitens = whiten
        self.noise = noise
        self.vision_dim = vision_dim
        if kind == "mlp":
            self.up = nn.Linear(vision_dim, hidden_size)
            self.down = nn.Linear(hidden_size, hidden_size)
        elif kind == "linear":
            self.projection = nn.Linear(vision_dim, hidden_size, bias=False)
        if whiten:
            self.register_buffer("mean", torch.zeros(vision_dim, dtype=torch.float32))
            self.register_buffer("whitening", torch.eye(vision_dim, dtype=torch.float32))

    def fix_whitening(self, mean: Tensor, whitening: Tensor) -> None:
        """Set the fixed whitening (frame - mean) @ whitening, with mean [D] and whitening [D, D], in float32."""
        self.mean = mean.to(self.mean.device, torch.float32)
        self.whitening = whitening.to(self.whitening.device, torch.float32)

    def mean_frame(self) -> np.ndarray:
        """An uninformative frame [D]: the training mean, or zeros without whitening."""
        mean = self.mean if self.whitens else torch.zeros(self.vision_dim)
        return mean.float().cpu().numpy()

    def forward(self, frames: Tensor) -> Tensor:
        if self.whitens:
            with torch.autocast(frames.device.type, enabled=False):
                frames = (frames.float() - self.mean.float()) @ self.whitening.float()
        if self.training and self.noise:
            frames = frames + self.noise * torch.randn_like(frames)
        if self.kind == "none":
            return frames
        if self.kind == "linear":
            return self.projection(frames.to(self.projection.weight.dtype))
        return self.down(nn.functional.gelu(self.up(frames.to(self.up.weight.dtype))))


class BinaryHead(nn.Module):
    """One logit from a hidden state [*, H] -> [*], in float32.

    `two_way` is the earlier project's head of two classes, no and yes: the difference of its outputs is the logit, with
    the same probability, cross-entropy and focal loss.
    """

    def __init__(self, hidden_size: int, kind: str) -> None:
        super().__init__()
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(hidden_size, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, 1)
            )
        else:
            self.layers = nn.Sequential(nn.Linear(hidden_size, 2 if kind == "two_way" else 1))

    def forward(self, hidden: Tensor) -> Tensor:
        outputs = self.layers(hidden).float()
        return outputs[..., 1] - outputs[..., 0] if outputs.shape[-1] == 2 else outputs.squeeze(-1)


class StateHead(nn.Module):
    """Three classes for a frame and a step: `not_started`, `in_progress`, `completed`.

    The step's vector comes from the last token of its line in the context and belongs to the session;
    a frame's hidden state is compared with all of them at once.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.frame = nn.Linear(hidden_size, width)
        self.step = nn.Linear(hidden_size, width)
        self.output = nn.Linear(width, NUM_STEP_STATES)

    def step_vectors(self, hidden: Tensor) -> Tensor:
        """Hidden states at the steps' lines [K, H] -> [K, W]."""
        return self.step(hidden)

    def frame_vectors(self, hidden: Tensor) -> Tensor:
        """Hidden states of frames [*, H] -> [*, W]."""
        return self.frame(hidden)

    def compare(self, frames: Tensor, steps: Tensor) -> Tensor:
        """Vectors [*, W] of frames and of steps, broadcast against each other -> [*, 3] in float32."""
        return self.output(nn.functional.gelu(frames + steps + frames * steps)).float()

    def forward(self, frame_hidden: Tensor, step_vectors: Tensor) -> Tensor:
        """[*, H] and [*, W], broadcast against each other -> [*, 3] in float32."""
        return self.compare(self.frame_vectors(frame_hidden), step_vectors)


class FrameStateHead(nn.Module):
    """The earlier project's: three classes on a frame, the state of the first step that is not completed.

    It has the calls of `StateHead`, and says the same for every step. A frame at which one step is completed and the
    next begun shows it no change.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.width = NUM_STEP_STATES
        self.frame = nn.Linear(hidden_size, NUM_STEP_STATES)

    def step_vectors(self, hidden: Tensor) -> Tensor:
        """[K, H] -> zeros [K, 3]."""
        return hidden.new_zeros(len(hidden), NUM_STEP_STATES)

    def frame_vectors(self, hidden: Tensor) -> Tensor:
        """[*, H] -> [*, 3]."""
        return self.frame(hidden)

    def compare(self, frames: Tensor, steps: Tensor) -> Tensor:
        """Of frames and of steps [*, 3], broadcast against each other -> [*, 3] in float32."""
        return (frames + steps).float()
