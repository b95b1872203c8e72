"""Predict the memory of a training job from its configuration: `plan=true`."""

from collections.abc import Iterable

from prospect.config.schema import Config
from prospect.terminal import console
from prospect.training.checks import GIB, card_bytes
from prospect.training.memory_plan import MemoryPlan, largest_micro_batch, plan_zero
from prospect.training.preflight import describe_device, join_savings, savings, trained_parameters
from prospect.vision.towers import tower_width

USUAL_CARD = "24GB"


def show_plan(config: Config) -> None:
    """Print the trainable parameters and the memory of a run; needs neither data nor weights.

    Raises:
        ConfigError: `card` is not a size, or see `plan`.
        CheckpointError: the base's geometry is unknown.
    """
    name, room = _planned_card(config.card)
    planned = plan(config)
    out = console(100)
    out.print(trained_parameters(config.model, tower_width(config.vision)))
    out.print()
    out.print(planned.table())
    peak = f"{planned.peak / GIB:.2f} of its {room / GIB:.1f} GiB, computing {planned.tokens:,} tokens at once"
    if planned.fits(room / GIB):
        out.print(f"\nThe run fits {name}: {peak}.", soft_wrap=True)
        return
    change = join_savings(savings(config.model, config.training, planned))
    out.print(f"\nThe run does not fit {name}: {peak}. To save memory, {change}.", soft_wrap=True)


def _planned_card(card: str | None) -> tuple[str, int]:
    """Name and bytes of the GPU to plan for: `card`, this machine's, or `USUAL_CARD`."""
    own = describe_device()
    if card is None and own.gpu:
        return own.name, own.num_bytes
    return f"a card of {card or USUAL_CARD}", card_bytes(card or USUAL_CARD)


def plan(config: Config, lengths: Iterable[int] | None = None, vision_dim: int | None = None) -> MemoryPlan:
    """Predict the memory of a training job's step.

    Args:
        config: sections vision, model, training and context.
        lengths: tokens of each clip; default: all as long as `context.max_seq_len` allows.
        vision_dim: D of the embeddings; default: the vision encoder's.

    Raises:
        CheckpointError: the base's geometry is unknown.
        ConfigError: an unknown vision encoder.
    """
    training, longest = config.training, config.context.max_seq_len
    clips = [longest] * max(training.batch_size, 1) if lengths is None else list(lengths)
    if vision_dim is None:
        vision_dim = tower_width(config.vision)
    return plan_zero(config.model, training, largest_micro_batch(clips, training), vision_dim)
