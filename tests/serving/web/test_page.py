"""The page in a browser, over a real engine: a session from beginning to end, and what may happen to it."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page, Route, expect

from prospect.serving import samples
from tests.browser import ELSEWHERE, decided, start
from tests.cutter import Cutter
from tests.serving.clients import Server, until
from tests.serving.web.conftest import QUIET, Visit, address, only_session, serving

ENDED = "The session has ended."


def as_seen(picture: Image.Image) -> np.ndarray:
    """Levels [32, 32, 3], of 0 to 255."""
    return np.asarray(picture.convert("RGB").resize((32, 32)), dtype=np.float32)


def pictures_of(clip: Path) -> Iterator[Image.Image]:
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def view(server: Server, what: str = "") -> dict[str, Any]:
    return httpx.get(f"{address(server)}v1/sessions/{only_session(server.host)}{what}").json()


def notes(page: Page) -> list[str]:
    return page.locator("#entries .note p").all_inner_texts()


def test_a_sample_from_beginning_to_end(acting: Server, visit: Visit):
    sample = samples.list_samples()[0]
    page = visit(acting, speed=2)
    start(page)
    assert page.locator("#step-list [data-name]").all_inner_texts() == sample["steps"]
    expect(page.locator("#task")).to_have_text(sample["goal"])
    expect(page.locator("#entries .assistant p").first).not_to_be_empty()
    expect(page.locator("#step-list li:not([data-state=not_started])").first).to_be_visible()
    expect(page.locator("#announcer")).to_contain_text(": completed.")
    expect(page.locator("#connection")).to_have_text("Ended")
    assert notes(page) == [ENDED]
    assert page.locator("#entries .user p").all_inner_texts() == [each["text"] for each in sample["says"]]
    assert decided(page) == 2 * sample["seconds"], "each frame of the file, once"
    expect(page.locator("#latency")).to_contain_text(" ms")
    for chart in ("#speak", "#update"):
        told = page.locator(f"{chart} svg").get_attribute("aria-label")
        assert "threshold 0.00" in told
        assert page.locator(f"{chart} circle").count() > 0
        assert page.locator(f"{chart} .line").get_attribute("d").count("L") == decided(page) - 1
    page.get_by_role("button", name="New session").click()
    start(page)
    page.get_by_role("button", name="End session").click()
    expect(page.locator("#connection")).to_have_text("Ended")
    until(lambda: not acting.host.open_sessions)


def test_talking_back_and_correcting(quiet: Server, visit: Visit):
    page = visit(quiet)
    page.locator("#goal").fill("Make tea")
    page.locator("#steps").fill("boil water\n\n  pour water \n")
    start(page)
    page.get_by_label("Say something").fill("Which cup?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#entries .user p")).to_have_text("Which cup?")
    expect(page.get_by_label("Say something")).to_be_empty()
    until(lambda: any("Which cup?" in each["user"] for each in view(quiet, "/transcript")["entries"]))
    page.get_by_role("button", name="pour water").click()
    page.get_by_role("group", name="Correct: pour water").get_by_role("button", name="Completed").click()
    expect(page.locator("#step-list li").nth(1)).to_have_attribute("data-state", "completed")
    expect(page.locator("#done")).to_have_text("1 of 2 done")
    expect(page.locator("#announcer")).to_have_text("pour water: completed.")
    assert (view(quiet)["goal"], view(quiet)["steps"]) == ("Make tea", ["boil water", "pour water"])
    assert view(quiet)["state"] == {"S1": "not_started", "S2": "completed"}
    expect(page.locator("#entries .note p")).to_have_text("The context was rebuilt from the checklist.")


def test_a_connection_that_breaks_is_made_again_and_nothing_is_lost(acting: Server, visit: Visit):
    """Also one that breaks again while frames are sent again."""
    cutter = Cutter(address(acting), seed=1, cuts=0)
    page = visit(cutter.url, speed=2)
    start(page)
    until(lambda: decided(page) > 2)
    cutter.left = 3
    cutter.cut()
    expect(page.locator("#entries .note p").first).to_contain_text("The connection broke")
    expect(page.locator("#connection")).to_have_text("Ended")
    assert cutter.left == 0
    assert decided(page) == 2 * samples.list_samples()[0]["seconds"]
    assert {words for words in notes(page) if "broke" not in words} == {ENDED}
    cutter.close()


def test_a_gateway_that_stops_is_said_and_its_session_is_lost_without_a_store(loaded, live_encoder, visit: Visit):
    with serving(loaded, live_encoder, QUIET) as server:
        page = visit(server)
        start(page)
        server.stop_host()
        expect(page.locator("#entries .note p").first).to_contain_text("the server stops")
        expect(page.locator("#connection")).to_have_text("Lost")
        expect(page.locator("#entries .problem p")).to_contain_text("no session with this handle")
        expect(page.get_by_role("button", name="New session")).to_be_focused()


def test_the_camera(quiet: Server, visit: Visit, clip: Path):
    page = visit(quiet)
    sent: list[str | bytes] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda text: sent.append(text)))
    page.get_by_role("radio", name="Camera").check()
    start(page)
    until(lambda: decided(page) > 2)
    assert page.evaluate("document.querySelector('video').srcObject.active")
    page.get_by_role("button", name="End session").click()
    expect(page.locator("#connection")).to_have_text("Ended")
    assert not page.evaluate("document.querySelector('video').srcObject.active"), "the camera is off"
    shown = np.stack([as_seen(picture) for picture in pictures_of(clip)])
    images = [message["image"] for message in map(json.loads, sent) if message["type"] == "input_frame.append"]
    arrived = [as_seen(Image.open(BytesIO(base64.b64decode(image)))) for image in images]
    apart = np.array([np.abs(shown - picture).mean(axis=(1, 2, 3)) for picture in arrived])
    assert (apart.min(axis=1) < 6).all(), "each is a picture of the clip, but for JPEG"
    assert (apart.max(axis=1) > 12).all(), "of which others look otherwise"
    assert len(set(apart.argmin(axis=1))) > 2, "and it goes on"


def test_what_is_typed_before_the_samples_come_stays(quiet: Server, visit: Visit):
    page = visit(quiet)
    held: list[Route] = []
    page.route("**/samples", lambda route: held.append(route))
    for source in ("Camera", "Sample"):
        page.reload()
        page.get_by_role("radio", name=source).check()
        page.locator("#goal").fill("Make tea")
        until(lambda: page.evaluate("true") and held)  # which lets the browser speak
        held.pop().continue_()
        expect(page.locator("#samples input").first).to_be_attached()
        expect(page.locator("#goal")).to_have_value("Make tea")


def test_a_video_file(quiet: Server, visit: Visit, clip: Path):
    page = visit(quiet, speed=2)
    page.get_by_role("radio", name="File").check()
    expect(page.locator("#goal")).to_be_empty()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_have_text("Choose a video file first.")
    page.get_by_label("Choose a video").set_input_files({"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"none"})
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot play the file")
    page.get_by_label("Choose a video").set_input_files(clip)
    start(page)
    expect(page.locator("#connection")).to_have_text("Ended")
    assert decided(page) == 2 * samples.list_samples()[0]["seconds"]


def test_where_there_is_no_camera_the_page_says_why(quiet: Server, visit: Visit):
    page = visit(f"http://{ELSEWHERE}:{quiet.port}/")
    page.get_by_role("radio", name="Camera").check()
    expect(page.locator("#camera-help")).to_contain_text("https:// or localhost only")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("https:// or localhost only")
    page.get_by_role("radio", name="Sample").check()
    start(page)


def test_a_refused_session_is_said_in_the_servers_words(quiet: Server, visit: Visit):
    page = visit(quiet)
    expect(page.locator("#samples input").first).to_be_attached()
    page.locator("#steps").fill("x" * 40_001)
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("steps")
    expect(page.locator("#setup")).to_be_visible()
