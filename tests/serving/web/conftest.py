from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page

from prospect.corpus.settings import CorpusSettings
from prospect.model.checkpoint import LoadedModel
from prospect.serving import samples
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import local_host
from prospect.serving.settings import ServingSettings
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.browser import ELSEWHERE, camera_of, chromium, opened
from tests.serving.clients import Server
from tests.serving.models import CONTEXT

SHORT = CorpusSettings(
    num_train=24, num_validation=0, num_test=6, min_steps=3, max_steps=4, idle=(1.0, 1.0), step_duration=(1.0, 1.5),
    pause=(1.0, 1.0), image_size=64,
)  # fmt: skip
"""Samples of some eight seconds."""
ACTS = StreamingSettings(
    speak_threshold=0.0, update_threshold=0.0, cooldown_frames=3, speak_hysteresis=None, max_sessions=4
)
"""A random model speaks whenever it may, and changes the state whenever it can."""
ROOMY = CONTEXT.model_copy(update={"max_context_tokens": 400})
"""The tests' tokenizer takes a token for each letter of a sample's goal."""
QUIET = ACTS.model_copy(update={"speak_threshold": 1.0, "update_threshold": 1.0})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sample as a file."""
    path = tmp_path_factory.mktemp("clip") / "sample.mp4"
    path.write_bytes(samples.sample_video(samples.list_samples()[0]["id"]) or b"")
    return path


@pytest.fixture(scope="module")
def browser(clip: Path) -> Iterator[Browser]:
    """With a camera that shows the clip again and again."""
    with chromium(*camera_of(clip)) as browser:
        yield browser


@pytest.fixture(scope="module", autouse=True)
def short_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SETTINGS", SHORT)
        for cached in (samples._drawn, samples.sample_video):
            cached.cache_clear()
        yield
    for cached in (samples._drawn, samples.sample_video):
        cached.cache_clear()


@contextmanager
def serving(
    loaded: LoadedModel, encoder: LiveEncoder, settings: StreamingSettings, keyring: Keyring | None = None
) -> Iterator[Server]:
    access = Access(ServingSettings(allowed_hosts=(ELSEWHERE,)), keyring)
    server = Server(local_host(StreamingEngine(loaded, ROOMY, settings), encoder), access)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def acting(loaded: LoadedModel, live_encoder: LiveEncoder) -> Iterator[Server]:
    """A server whose assistant speaks and updates."""
    with serving(loaded, live_encoder, ACTS) as server:
        yield server


@pytest.fixture(scope="module")
def quiet(loaded: LoadedModel, live_encoder: LiveEncoder) -> Iterator[Server]:
    """A server whose assistant only watches."""
    with serving(loaded, live_encoder, QUIET) as server:
        yield server


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/"


def close_sessions(server: Server) -> None:
    """End what pages that are gone have left: a page that is loaded again goes on with it."""
    for session_id in server.host.open_sessions:
        httpx.delete(f"{address(server)}v1/sessions/{session_id}")


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens the page of a server, and checks at the end that all was well with it, and that a page left no session."""
    with ExitStack() as stack:

        def go(at: Server | str, speed: float = 1.0, **options: object) -> Page:
            url = at if isinstance(at, str) else address(at)
            if isinstance(at, Server):
                stack.callback(close_sessions, at)
            return stack.enter_context(opened(browser, url, speed, **options))

        yield go


def only_session(host: SessionHost) -> str:
    [session_id] = host.open_sessions
    return session_id
