"""Which videos an earlier version of the decoder read otherwise, so that they must be embedded again."""

from prospect.errors import DataError
from prospect.vision import arrow
from prospect.vision.decode import VideoReader, moving_streams, open_video
from prospect.vision.pictures import has_alpha


def decodes_otherwise(path: str, version: int) -> bool:
    """Whether this version of the decoder gives other pictures of a video than an earlier one did.

    Version 2 chooses the stream that FFmpeg would, joins takes whose clock starts again, lays transparent pictures on
    black and keeps 16-bit grey. It reads headers and one picture; of formats whose clock may start again, all packets.

    Args:
        path: a video or frames file, by path or URL.
        version: of the earlier decoder.
    """
    if version >= 2:
        return False
    try:
        if arrow.is_frames_file(path):
            return arrow.holds_png(path)
        with open_video(path) as video:
            return _changed_in_2(video)
    except DataError:
        return True  # the earlier one read it: decode it again to learn what is wrong


def _changed_in_2(video: VideoReader) -> bool:
    if video.stream.index != moving_streams(video.container)[0].index or has_alpha(video.first.format):
        return True
    if not video.may_restart:
        return False
    return any(video.takes > 1 for _ in video.packets())
