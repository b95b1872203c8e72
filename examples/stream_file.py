"""Stream a video file through a served model, and print what it says and how the task's state moves.

Run: python examples/stream_file.py VIDEO [--url http://127.0.0.1:8000] [--goal GOAL] [--step NAME ...] [--speed 4]
"""

import argparse
import io
import threading
import time
from collections.abc import Iterator

from PIL import Image

from prospect.client import LiveSession, ProspectClient
from prospect.protocol.messages import ErrorMessage, FrameDropped, ResponseDone, StateUpdated
from prospect.vision.video import sample_frames

FPS = 2


def pictures(video: str) -> Iterator[bytes]:
    """Two PNGs a second."""
    for picture in sample_frames(video, fps=FPS, size=384, crop="squash"):
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        yield encoded.getvalue()


def send(live: LiveSession, video: str, speed: float) -> None:
    """Frame k at its decision time, (k + 1) / fps seconds after the start."""
    start = time.monotonic()
    for frame, picture in enumerate(pictures(video)):
        time.sleep(max(0.0, start + (frame + 1) / FPS / speed - time.monotonic()))
        live.push(picture)
    live.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--goal", default="")
    parser.add_argument("--step", action="append", default=[], metavar="NAME", help="once for each step of the recipe")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than the camera")
    given = parser.parse_args()
    with ProspectClient(given.url) as client, client.live(goal=given.goal, steps=given.step) as live:
        threading.Thread(target=send, args=(live, given.video, given.speed), daemon=True).start()
        for message in live:
            match message:
                case ResponseDone(frame=frame, text=text):
                    print(f"{(frame + 1) / FPS:6.1f} s  {text}")
                case StateUpdated(frame=frame, delta=delta) if frame is not None:
                    print(f"{(frame + 1) / FPS:6.1f} s  {delta}")
                case FrameDropped(seq=seq, reason=reason):
                    print(f"frame {seq} was dropped: {reason}")
                case ErrorMessage(message=text):
                    print(f"error: {text}")
    print("the session is closed")


if __name__ == "__main__":
    main()
