"""Chromium for the tests of the page, which nothing but the page's own server is asked by."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import av
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.needs import skip_without

WITHIN_MS = 20_000
ELSEWHERE = "camera.test"
"""Another name of this machine, which no browser takes for a secure origin."""


def camera_of(clip: Path) -> tuple[str, ...]:
    """Flags of a Chromium whose camera shows a clip again and again, which is written beside it without compression."""
    fed = clip.with_suffix(".y4m")
    with av.open(str(clip)) as container, fed.open("wb") as file:
        for index, frame in enumerate(container.decode(video=0)):
            if index == 0:
                file.write(f"YUV4MPEG2 W{frame.width} H{frame.height} F10:1 Ip A1:1 C420\n".encode())
            file.write(b"FRAME\n" + frame.reformat(format="yuv420p").to_ndarray().tobytes())
    camera = "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"
    return *camera, f"--use-file-for-fake-video-capture={fed}"


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser; while it is open, no other code of this thread may run an event loop."""
    path = shutil.which("chromium")
    skip_without("chromium", path)
    expect.set_options(timeout=WITHIN_MS)
    flags = ("--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1", *flags)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(flags))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, speed: float = 1.0, **options: object) -> Iterator[Page]:
    """The page at an address, whose videos play so many times faster; its console must stay empty."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(WITHIN_MS)
    said: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: said.append(f"{message.text} {message.location['url']}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    page.on("websocket", lambda websocket: asked.add(urlsplit(websocket.url).netloc))
    page.add_init_script(f"addEventListener('play', ({{target}}) => target.playbackRate = {speed}, true)")
    page.goto(url)
    yield page
    context.close()
    assert asked <= {urlsplit(url).netloc, ""}, "the page asks no other server"
    broken = "ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED_ENCODING|WebSocket connection to"
    unexpected = [each for each in said if not re.search(f"{broken}|status of 401|status of 404.*/v1/sessions/", each)]
    assert not unexpected


def start(page: Page) -> None:
    """Press Start, and wait for the session."""
    expect(page.locator("#samples input").first).to_be_attached()
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#connection")).to_have_text("Live")


def decided(page: Page) -> int:
    """Frames whose decisions the page has."""
    text = page.locator("#frames").inner_text()
    return int(text.split()[0]) if text[0].isdigit() else 0
