"""The sequence grammar (docs/architecture.md#sequence-grammar), forwards and backwards.

    context | { {[USER] text <stop>}* I x <image> [ [DST] delta <stop> ] [ [ASST] utterance <stop> ] }*
            [ [USER] request <stop> I x <image> [ASST] summary <stop> ]

The second line, if it is there, ends a context with a summary of the progress. `request` is `SUMMARY_REQUEST`; the
image shows the last frame once more, is not decided and has no label.

`user_block`, `delta_block`, `utterance_block` and `SequenceBuilder` are the only places that spell a block out; the
training sequence and the streaming engine both use them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from prospect.dialogue.prompt import SUMMARY_REQUEST, Context, ContextSettings, build_context
from prospect.dialogue.state import Delta, TaskState, format_delta, parse_delta
from prospect.dialogue.timeline import NOTHING, FrameEvents
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import DataError


class TextTask(IntEnum):
    """Which language-model loss a token belongs to."""

    NONE = 0
    SPEAKING = 1
    DST = 2
    SUMMARY = 3


def user_block(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.user, *vocabulary.encode(text), vocabulary.stop]


def delta_block(vocabulary: Vocabulary, delta: Delta) -> list[int]:
    return [vocabulary.dst, *vocabulary.encode(format_delta(delta)), vocabulary.stop]


def utterance_block(vocabulary: Vocabulary, utterance: str) -> list[int]:
    return [vocabulary.asst, *vocabulary.encode(utterance), vocabulary.stop]


@dataclass
class FrameSequence:
    """A context and decided frames as tokens, with where everything stands. F decided frames.

    Attributes:
        ids: all tokens.
        text_tasks: one a token: the loss that predicting this token belongs to. Stop tokens carry loss; the
            prefixes [DST] and [ASST] carry none.
        image_positions: every image token, in the order of the feature rows: the tail's first, a summary's last.
        decision_positions: [F] position of each decided frame's last image token.
        after_delta_positions: [F] position of the delta's stop token, or -1.
        step_positions: [K] position in the context of each step's line, or -1.
    """

    ids: list[int]
    text_tasks: list[TextTask]
    step_positions: tuple[int, ...]
    image_positions: list[int] = field(default_factory=list)
    decision_positions: list[int] = field(default_factory=list)
    after_delta_positions: list[int] = field(default_factory=list)

    def extend(self, ids: Sequence[int], task: TextTask = TextTask.NONE) -> None:
        """Appends tokens; a block's first token is its prefix and carries no loss."""
        self.ids += ids
        self.text_tasks += [TextTask.NONE, *[task] * (len(ids) - 1)]

    def add_image(self, ids: Sequence[int]) -> None:
        """Appends an `image_block`."""
        self.image_positions += range(len(self.ids), len(self.ids) + len(ids))
        self.extend(ids)


@dataclass(frozen=True)
class SequenceBuilder:
    """Writes contexts and frames as the tokens of one model, and reads them back.

    Attributes:
        vocabulary: the model's tokens.
        settings: the context that the model was trained with.
        tokens_per_frame: I.
    """

    vocabulary: Vocabulary
    settings: ContextSettings
    tokens_per_frame: int

    def context(
        self,
        *,
        goal: str,
        steps: Sequence[str],
        state: TaskState,
        knowledge: str = "",
        summary: str | None = None,
        utterances: Sequence[tuple[str, str]] = (),
        tail_frames: int = 0,
        room: int | None = None,
    ) -> Context:
        """A context of `build_context`, whose text and tail take at most `room` tokens together.

        Raises:
            DataError: see `build_context`.
        """
        limit = self.settings.max_context_tokens
        if room is not None:
            limit = min(limit, room - tail_frames * self.tokens_per_frame)
        text = build_context(
            self.vocabulary,
            goal=goal,
            steps=steps,
            state=state,
            knowledge=knowledge,
            summary=summary,
            utterances=utterances,
            max_tokens=limit,
            recipe=self.settings.recipe,
            layout=self.settings.layout,
        )
        return replace(text, ids=text.ids + tuple(self.image_block()) * tail_frames, tail_frames=tail_frames)

    def image_block(self) -> list[int]:
        return [self.vocabulary.image] * self.tokens_per_frame

    def summary_request(self) -> list[int]:
        """What asks for a summary, fed before [ASST] and the summary, which are an `utterance_block`."""
        return [*user_block(self.vocabulary, SUMMARY_REQUEST), *self.image_block()]

    def summary_length(self, summary: str) -> int:
        """Tokens that the request and `summary` take."""
        return len(self.summary_request()) + len(utterance_block(self.vocabulary, summary))

    def frame_length(self, events: FrameEvents) -> int:
        """Tokens that one frame takes with its events."""
        length = self.tokens_per_frame + sum(len(user_block(self.vocabulary, text)) for text in events.user)
        if events.delta:
            length += len(delta_block(self.vocabulary, events.delta))
        if events.utterance is not None:
            length += len(utterance_block(self.vocabulary, events.utterance))
        return length

    def sequence(self, context: Context, frames: Iterable[FrameEvents], summary: str | None = None) -> FrameSequence:
        """The tokens of `context` followed by `frames`, each decided once, and by the request for `summary`.

        Args:
            context: from `context`.
            frames: the events of each decided frame, in order.
            summary: of the progress after the last frame; None: nobody asks.
        """
        vocabulary = self.vocabulary
        sequence = FrameSequence(list(context.ids), [TextTask.NONE] * len(context.ids), context.step_positions)
        sequence.image_positions = list(range(context.num_text, len(context.ids)))
        for events in frames:
            for text in events.user:
                sequence.extend(user_block(vocabulary, text))
            sequence.add_image(self.image_block())
            sequence.decision_positions.append(len(sequence.ids) - 1)
            if events.delta:
                sequence.extend(delta_block(vocabulary, events.delta), TextTask.DST)
            sequence.after_delta_positions.append(len(sequence.ids) - 1 if events.delta else -1)
            if events.utterance is not None:
                sequence.extend(utterance_block(vocabulary, events.utterance), TextTask.SPEAKING)
        if summary is not None:
            sequence.extend(user_block(vocabulary, SUMMARY_REQUEST))
            sequence.add_image(self.image_block())
            sequence.extend(utterance_block(vocabulary, summary), TextTask.SUMMARY)
        return sequence

    def split_summary(self, ids: Sequence[int]) -> tuple[Sequence[int], str | None]:
        """Tokens that follow the context as those of the decided frames, and the summary behind them, if any.

        The request decides: a user who says it word for word before the last frame is answered by a summary too.
        """
        vocabulary = self.vocabulary
        request = [*self.summary_request(), vocabulary.asst]
        last = max((position for position, token in enumerate(ids) if token == vocabulary.asst), default=-1)
        start, answer = last + 1 - len(request), ids[last + 1 :]
        if start < 0 or list(ids[start : last + 1]) != request or answer.index(vocabulary.stop) != len(answer) - 1:
            return ids, None
        return ids[:start], vocabulary.decode(answer[:-1])

    def parse(self, ids: Sequence[int]) -> dict[int, FrameEvents]:
        """The inverse of `sequence` for what follows the context: events by frame, from 0.

        A summary at the end belongs to no decided frame: `split_summary` reads it.

        Raises:
            DataError: `ids` are not of the grammar; the sentence names the position.
        """
        ids, _ = self.split_summary(ids)
        return _parse(self.vocabulary, ids, self.tokens_per_frame)


def _parse(vocabulary: Vocabulary, ids: Sequence[int], tokens_per_frame: int) -> dict[int, FrameEvents]:
    events: dict[int, FrameEvents] = {}
    position, frame, user = 0, -1, []

    def text_until_stop(start: int) -> tuple[str, int]:
        for stop in range(start, len(ids)):
            if ids[stop] == vocabulary.stop:
                return vocabulary.decode(ids[start:stop]), stop + 1
        raise DataError(f"sequence: the block at token {start} has no stop token")

    while position < len(ids):
        token = ids[position]
        if token == vocabulary.user:
            text, position = text_until_stop(position + 1)
            user.append(text)
        elif token == vocabulary.image:
            if list(ids[position : position + tokens_per_frame]) != [vocabulary.image] * tokens_per_frame:
                raise DataError(f"sequence: fewer than {tokens_per_frame} image tokens at token {position}")
            frame, position = frame + 1, position + tokens_per_frame
            if user:
                events[frame], user = FrameEvents(tuple(user)), []
        elif token in (vocabulary.dst, vocabulary.asst) and frame >= 0 and not user:
            text, position = text_until_stop(position + 1)
            events[frame] = _with_block(events.get(frame, NOTHING), token == vocabulary.dst, text, position)
        else:
            raise DataError(f"sequence: token {token} cannot stand at {position}")
    if user:
        raise DataError("sequence: ends with user turns that no frame follows")
    return events


def _with_block(events: FrameEvents, is_delta: bool, text: str, position: int) -> FrameEvents:
    if events.utterance is not None or (is_delta and events.delta):
        raise DataError(
            f"sequence: a second block of its kind, or a delta after the utterance, before token {position}"
        )
    if is_delta:
        return FrameEvents(events.user, parse_delta(text))
    return FrameEvents(events.user, events.delta, text)


def shifted(events: Mapping[int, FrameEvents], offset: int) -> dict[int, FrameEvents]:
    """Events counted from another first frame: absolute = relative + offset."""
    return {frame + offset: event for frame, event in events.items()}
