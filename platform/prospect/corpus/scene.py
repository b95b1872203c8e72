"""Draws the table.

A picture depends on where objects lie, what was done to them, and what the hand is working on; never on the time
or on a step's number. A place is two squares, each of whole 16-px patches of a 64-px (128-px) encoder input. One
shows the object and its condition, the other a tool or trace, so that even the pooled features of a frozen random
encoder tell objects apart under unseen actions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prospect.corpus.tasks import Action

Picture = NDArray[np.uint8]
"""[height, width, 3], RGB."""
Colour = tuple[int, int, int]

ROWS, COLUMNS = 4, 2
_UNIT = 96
"""Side of the squares on which sprites are drawn before they are reduced, which smooths their edges."""
_TABLE: Colour = (128, 128, 128)
"""Mid-grey is zero after the usual normalisation, so the table adds little to what an encoder sees."""
_SKIN: Colour = (190, 110, 70)
_OBJECT_COLOURS: dict[str, tuple[Colour, Colour]] = {
    "ball": ((230, 0, 0), (255, 255, 255)),
    "box": ((0, 40, 230), (255, 230, 0)),
    "cone": ((255, 120, 0), (0, 0, 60)),
    "star": ((255, 240, 0), (90, 0, 90)),
    "leaf": ((0, 150, 20), (190, 255, 120)),
    "moon": ((120, 0, 200), (255, 190, 255)),
    "ring": ((0, 0, 0), (255, 255, 255)),
    "kite": ((0, 200, 210), (220, 0, 120)),
}
"""The two colours of each."""


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows."""

    lying: tuple[tuple[str, int, str | None], ...]
    """(object, place, completed action or None) of everything on the table."""
    hand: Action | None
    """The object and the action that the hand is working on."""
    nudge: tuple[int, int] = (0, 0)
    """Offset of the hand in its small movement, px right and down."""


def draw_scene(scene: Scene, size: int) -> Picture:
    """The picture of `scene`, [size, size, 3]: each object, and right of it the tool at work or what it left."""
    side = size // ROWS
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = _TABLE
    for name, place, done in scene.lying:
        top, left = place // COLUMNS * side, place % COLUMNS * 2 * side
        action = scene.hand.action if scene.hand is not None and scene.hand.object == name else None
        picture[top : top + side, left : left + 2 * side] = _place_sprite(name, done, action, side)
        if action is not None:
            tool = picture[top : top + side, left + side : left + 2 * side]
            tool[:] = np.roll(tool, scene.nudge[::-1], axis=(0, 1))
    return picture


@lru_cache(maxsize=256)
def _place_sprite(name: str, done: str | None, action: str | None, side: int) -> Picture:
    """One place, [side, 2 * side, 3]: untouched, being worked on (`action`), or with an action completed."""
    first, second = _OBJECT_COLOURS[name]
    under = _TABLE if done is None else _inverse(first)
    left, right = (Image.new("RGB", (_UNIT, _UNIT), colour) for colour in (under, _TABLE))
    if action is not None:
        left.paste(_SKIN, (0, 0, _UNIT, _UNIT))
    _SHAPES[name](ImageDraw.Draw(left), first, second)
    if action is not None:
        _fingers(ImageDraw.Draw(left))
        _TOOL_SHAPES[action](ImageDraw.Draw(right))
    if done is not None:
        # An object that is done lies in four parts on a plate of its inverse colour: nothing like it did before.
        left = Image.fromarray(np.roll(np.asarray(left), (_UNIT // 2, _UNIT // 2), axis=(0, 1)))
        _TRACES[done](ImageDraw.Draw(right))
    halves = [np.asarray(half.resize((side, side), Image.Resampling.BOX)) for half in (left, right)]
    return np.concatenate(halves, axis=1)


def _inverse(colour: Colour) -> Colour:
    red, green, blue = colour
    return 255 - red, 255 - green, 255 - blue


def _fingers(draw: ImageDraw.ImageDraw) -> None:
    for y in (10, 40, 70):
        draw.rounded_rectangle((30, y, 100, y + 18), 9, fill=_SKIN, outline=(60, 30, 10), width=3)


Shape = Callable[[ImageDraw.ImageDraw, Colour, Colour], None]


def _ball(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.ellipse((4, 4, 92, 92), fill=first)
    draw.rectangle((4, 36, 92, 60), fill=second)


def _box(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.rectangle((6, 6, 90, 90), fill=first)
    draw.line((6, 6, 90, 90), fill=second, width=18)
    draw.line((6, 90, 90, 6), fill=second, width=18)


def _cone(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.polygon(((48, 2), (94, 92), (2, 92)), fill=first)
    draw.rectangle((0, 70, 96, 92), fill=second)


def _star(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    angles = [math.pi * index / 5 - math.pi / 2 for index in range(10)]
    radii = [46 if index % 2 == 0 else 20 for index in range(10)]
    draw.ellipse((2, 2, 94, 94), fill=second)
    draw.polygon([(48 + r * math.cos(a), 48 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)], fill=first)


def _leaf(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.polygon(((4, 4), (70, 20), (92, 92), (20, 70)), fill=first)
    draw.line((4, 4, 92, 92), fill=second, width=14)


def _moon(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.ellipse((2, 2, 94, 94), fill=first)
    draw.ellipse((34, 2, 94, 62), fill=second)


def _ring(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.ellipse((2, 2, 94, 94), fill=first)
    draw.ellipse((24, 24, 72, 72), fill=second)


def _kite(draw: ImageDraw.ImageDraw, first: Colour, second: Colour) -> None:
    draw.polygon(((48, 0), (90, 48), (48, 96), (6, 48)), fill=first)
    draw.polygon(((48, 0), (48, 48), (6, 48)), fill=second)
    draw.polygon(((48, 96), (48, 48), (90, 48)), fill=second)


_SHAPES: Mapping[str, Shape] = {
    "ball": _ball,
    "box": _box,
    "cone": _cone,
    "star": _star,
    "leaf": _leaf,
    "moon": _moon,
    "ring": _ring,
    "kite": _kite,
}


def _puddle(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((6, 20, 90, 84), fill=(70, 170, 255))
    for x, y in ((30, 44), (56, 38), (62, 62)):
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(235, 250, 255))


def _slices(draw: ImageDraw.ImageDraw) -> None:
    for x in (14, 42, 70):
        draw.rectangle((x, 12, x + 14, 84), fill=(250, 250, 245), outline=(60, 60, 60), width=3)


def _splash(draw: ImageDraw.ImageDraw) -> None:
    for x, y, radius in ((40, 48, 30), (74, 28, 16), (72, 72, 14), (14, 16, 10)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(40, 190, 70))


def _bow(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon([(48, 48), (8, 16), (8, 80)], fill=(170, 20, 70))
    draw.polygon([(48, 48), (88, 16), (88, 80)], fill=(170, 20, 70))
    draw.ellipse((36, 36, 60, 60), fill=(255, 215, 60))


_TRACES: Mapping[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "wash": _puddle,
    "cut": _slices,
    "paint": _splash,
    "wrap": _bow,
}


def _sponge(draw: ImageDraw.ImageDraw) -> None:
    draw.rounded_rectangle((10, 22, 86, 74), 10, fill=(255, 235, 60), outline=(20, 90, 200), width=10)


def _knife(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon([(6, 30), (58, 36), (58, 60), (18, 60)], fill=(225, 230, 240), outline=(40, 40, 50))
    draw.rectangle((58, 36, 92, 60), fill=(40, 40, 50))


def _brush(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((34, 40, 92, 56), fill=(110, 60, 20))
    draw.ellipse((4, 28, 44, 68), fill=(40, 190, 70))


def _ribbon(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((14, 14, 82, 82), fill=(170, 20, 70))
    draw.ellipse((36, 36, 60, 60), fill=(255, 215, 60))


_TOOL_SHAPES: Mapping[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "wash": _sponge,
    "cut": _knife,
    "paint": _brush,
    "wrap": _ribbon,
}
