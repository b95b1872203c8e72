"""Real processes under Ray are killed while several sessions stream; each says what it says when nobody dies."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from prospect.protocol.messages import DurableMessage
from tests.browser import camera_of, chromium, decided, opened, start
from tests.e2e.sessions import (
    NAMES,
    NUM_FRAMES,
    Conversation,
    Killer,
    Server,
    before_a_refresh,
    in_mid_frame,
    in_mid_utterance,
    same,
)
from tests.serving.clients import until
from tests.serving.models import STEPS, write_model
from tests.vision.videos import write_video

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def server(local_ray: None, folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Conversation]:
    spoken = server.stream()
    for heard in spoken.values():
        kinds = {message.type for message in heard.messages}
        assert {"state.updated", "response.delta", "response.done", "session.refreshed"} <= kinds
        assert not heard.moves
    return spoken


@pytest.mark.parametrize("moment", [in_mid_frame, in_mid_utterance, before_a_refresh])
def test_an_engine_is_killed(server: Server, undisturbed: dict[str, Conversation], moment: Callable):
    server.wait_until_whole()
    when = moment(undisturbed[NAMES[0]]) if moment is before_a_refresh else moment
    killer = Killer(when, lambda session_id: [server.engine_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)
    [moved] = spoken[NAMES[0]].moves
    assert moved.lost_frames == 0
    assert moved.seconds > 0


def test_the_page_goes_on_with_its_camera_when_its_engine_is_killed(server: Server, tmp_path: Path):
    server.wait_until_whole()
    clip = write_video(tmp_path / "clip.mp4", [index / 10 for index in range(40)], rate=10)
    with chromium(*camera_of(clip)) as browser, opened(browser, server.url) as page:
        page.get_by_role("radio", name="Camera").check()
        page.locator("#goal").fill("Make tea")
        page.locator("#steps").fill("\n".join(STEPS))
        start(page)
        until(lambda: decided(page) > 4)
        [session_id] = server.open_sessions()
        os.kill(server.engine_of(session_id), signal.SIGKILL)
        expect(page.locator("#connection")).to_have_text("Moved to another engine", timeout=60_000)
        expect(page.locator("#entries .note p").filter(has_text="nothing is lost")).to_be_visible()
        page.get_by_label("Say something").fill("What now?")
        page.get_by_role("button", name="Send").click()
        sent = decided(page)
        until(lambda: decided(page) > sent + 4)
        page.get_by_role("button", name="End session").click()
        expect(page.locator("#connection")).to_have_text("Ended")
        assert " waiting" not in page.locator("#frames").inner_text(), "every frame was decided"
        assert not page.locator("#entries .problem").count()


def test_a_gateway_is_killed(server: Server, undisturbed: dict[str, Conversation]):
    server.wait_until_whole()
    killer = Killer(in_mid_utterance, lambda session_id: [server.gateway_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)


def test_a_gateway_is_killed_that_its_clients_reach_without_a_proxy(
    server: Server, undisturbed: dict[str, Conversation]
):
    server.wait_until_whole()
    killer = Killer(in_mid_utterance, lambda session_id: [server.gateway_of(session_id)])
    spoken = server.stream(killer, url=server.direct_url)
    assert killer.killed
    same(spoken, undisturbed)


def test_both_are_killed(server: Server, undisturbed: dict[str, Conversation]):
    """State, conversation and position are there; what was seen since the last refresh is not, and that is said."""
    server.wait_until_whole()
    killer = Killer(in_mid_frame, lambda session_id: [server.engine_of(session_id), server.gateway_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    heard, expected = spoken[NAMES[0]], undisturbed[NAMES[0]]
    before = [m for m in heard.messages[: killer.at] if isinstance(m, DurableMessage)]
    assert heard.durable[: len(before)] == expected.durable[: len(before)]
    for each in spoken.values():
        assert [event for event, _ in each.durable] == list(range(1, len(each.durable) + 1)), "none lost, none twice"
        told = {seq for moved in each.moves for seq in range(moved.decided_to + 1)}
        assert {seq for seq, _ in each.decisions} | told == set(range(NUM_FRAMES))
        assert set(each.decisions) <= set(expected.decisions)
    assert heard.moves
    assert max(moved.lost_frames for moved in heard.moves) or heard.durable == expected.durable


def test_both_are_killed_and_the_frames_are_in_the_store(server: Server, undisturbed: dict[str, Conversation]):
    server.deploy("serving.durability=frames")
    server.wait_until_whole()
    killer = Killer(in_mid_frame, lambda session_id: [server.engine_of(session_id), server.gateway_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)
