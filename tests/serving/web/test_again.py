"""A page that is loaded again, and one that only watches."""

import httpx
from playwright.sync_api import Page, expect

from prospect.serving import samples
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.store import KeyTable
from tests.browser import decided, start
from tests.cutter import Cutter
from tests.serving.clients import Server, until
from tests.serving.web.conftest import QUIET, Visit, address, only_session, serving
from tests.serving.web.test_access import at_all_sizes
from tests.serving.web.test_page import ENDED, notes, view

AGAIN = "The page was loaded again; "


def lost(page: Page) -> int:
    """Frames that were sent before the page was loaded again, and never arrived, as it says."""
    [words] = [each.removeprefix(AGAIN) for each in notes(page) if each.startswith(AGAIN)]
    return 0 if words == "nothing is lost." else int(words.split()[0])


def said(page: Page) -> list[str]:
    return page.locator("#entries :is(.user, .assistant) p").all_inner_texts()


def states(page: Page) -> list[str]:
    return page.locator("#step-list li").evaluate_all("items => items.map((item) => item.dataset.state)")


def test_a_sample_goes_on_when_the_page_is_loaded_again(acting: Server, visit: Visit):
    sample = samples.list_samples()[0]
    page = visit(acting)
    start(page)
    page.get_by_label("Say something").fill("Which cup?")
    page.get_by_role("button", name="Send").click()
    until(lambda: decided(page) > 3)
    session_id, before = only_session(acting.host), said(page)
    page.reload()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#entries .note p").filter(has_text=AGAIN)).to_be_visible()
    assert set(before) <= set(said(page)), "the conversation is there again"
    assert only_session(acting.host) == session_id
    expect(page.locator("#connection")).to_have_text("Ended")
    assert notes(page)[-1] == ENDED
    assert decided(page) + lost(page) == 2 * sample["seconds"], "each frame of the file, once"
    asked = ["Which cup?", *(each["text"] for each in sample["says"])]
    assert sorted(page.locator("#entries .user p").all_inner_texts()) == sorted(asked)
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.get_by_role("button", name="Start")).to_be_visible()


def test_frames_that_a_page_no_longer_holds_are_declared(quiet: Server, visit: Visit):
    cutter = Cutter(address(quiet), seed=1, cuts=0)
    page = visit(cutter.url)
    start(page)
    until(lambda: decided(page) > 1)
    page.get_by_label("Say something").fill("Still there?")
    page.get_by_role("button", name="Send").click()
    until(lambda: page.evaluate("JSON.parse(sessionStorage['prospect.session']).ledger.texts.length") == 0)
    cutter.pause()
    sent = page.evaluate("JSON.parse(sessionStorage['prospect.session']).ledger.nextSeq")
    until(lambda: page.evaluate("JSON.parse(sessionStorage['prospect.session']).ledger.nextSeq") >= sent + 3)
    page.get_by_label("Say something").fill("Still there?")
    page.get_by_role("button", name="Send").click()
    page.evaluate("void (window.WebSocket = class { static OPEN = 1; close() {} })")  # until it is loaded again
    cutter.cut()
    cutter.go_on()
    page.reload()
    expect(page.locator("#entries .note p").filter(has_text=AGAIN)).to_be_visible()
    assert lost(page) >= 3
    assert said(page).count("Still there?") == 2, "one is answered, and one is not"
    told = lambda: [text for each in view(quiet, "/transcript")["entries"] for text in each["user"]]  # noqa: E731
    until(lambda: told().count("Still there?") == 2)
    assert said(page).count("Still there?") == 2
    page.get_by_role("button", name="End session").click()
    expect(page.locator("#connection")).to_have_text("Ended")
    cutter.close()


def test_a_camera_is_started_again_and_corrections_are_there(quiet: Server, visit: Visit):
    page = visit(quiet)
    page.get_by_role("radio", name="Camera").check()
    page.locator("#goal").fill("Make tea")
    page.locator("#steps").fill("boil water\npour water")
    start(page)
    page.get_by_role("button", name="pour water").click()
    page.get_by_role("group", name="Correct: pour water").get_by_role("button", name="Completed").click()
    expect(page.locator("#step-list li").nth(1)).to_have_attribute("data-state", "completed")
    until(lambda: decided(page) > 1)
    page.reload()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator("#task")).to_have_text("Make tea")
    assert states(page) == ["not_started", "completed"]
    before = view(quiet)["next_seq"]
    until(lambda: view(quiet)["next_seq"] > before + 2)
    assert page.locator("#entries .problem p").all_inner_texts() == []


def test_a_file_is_chosen_again(quiet: Server, visit: Visit, clip):
    page = visit(quiet, speed=2)
    page.get_by_role("radio", name="File").check()
    page.get_by_label("Choose a video").set_input_files(clip)
    start(page)
    until(lambda: decided(page) > 1)
    page.reload()
    expect(page.locator("#entries .problem p")).to_contain_text("choose it again")
    assert at_all_sizes(page) == []
    page.get_by_label("Choose the file again").set_input_files(clip)
    expect(page.locator("#connection")).to_have_text("Ended")
    assert decided(page) + lost(page) == 2 * samples.list_samples()[0]["seconds"]


def test_a_session_that_is_over_is_not_continued(quiet: Server, visit: Visit):
    page = visit(quiet)
    start(page)
    httpx.delete(f"{address(quiet)}v1/sessions/{only_session(quiet.host)}")
    expect(page.locator("#connection")).to_have_text("Ended")
    page.evaluate("sessionStorage['prospect.session'] = JSON.stringify({ledger: {created: {session_id: 'gone'}}})")
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("cannot go on: session_id: no session 'gone' is open here")
    start(page)


def test_who_watches_sees_all_but_the_picture_and_changes_nothing(acting: Server, visit: Visit):
    page = visit(acting)
    start(page)
    until(lambda: decided(page) > 1)
    watching = visit(f"{address(acting)}{page.locator('#watch').get_attribute('href')}")
    expect(watching.locator("#connection")).to_have_text("Watching")
    until(lambda: decided(watching) > 5)
    assert at_all_sizes(watching) == []
    assert not watching.locator("video").is_visible()
    assert not watching.get_by_role("button", name="End session").is_visible()
    assert not watching.get_by_label("Say something").is_visible()
    assert watching.locator("#step-list [data-toggle]").first.is_disabled()
    assert watching.locator("#task").inner_text() == page.locator("#task").inner_text()
    for chart in ("#speak", "#update"):
        assert watching.locator(f"{chart} circle").count() > 0
    page.get_by_label("Say something").fill("Which cup?")
    page.get_by_role("button", name="Send").click()
    expect(watching.locator("#entries .user p").filter(has_text="Which cup?")).to_be_visible()
    watching.reload()
    expect(watching.locator("#entries .user p").filter(has_text="Which cup?")).to_be_visible()
    expect(watching.locator("#connection")).to_have_text("Ended")
    expect(page.locator("#connection")).to_have_text("Ended")
    assert sorted(said(watching)) == sorted(said(page)), "all of it, once"
    assert states(watching) == states(page)
    watching.get_by_role("button", name="New session").click()
    expect(watching.get_by_role("button", name="Start")).to_be_visible()


def test_who_watches_needs_the_key_and_is_connected_again(loaded, live_encoder, visit: Visit, tmp_path):
    table = KeyTable(f"sqlite:///{tmp_path}/keys.db")
    given, row = new_key("page")
    table.add(row)
    with serving(loaded, live_encoder, QUIET, Keyring(table)) as server:
        cutter = Cutter(address(server), seed=1, cuts=0)
        http = httpx.Client(base_url=address(server), headers={"authorization": f"Bearer {given}"})
        http.post("v1/sessions", json={"session_id": "kitchen-7", "goal": "Make tea", "steps": ["boil water"]})
        page = visit(f"{cutter.url}?watch=kitchen-7")
        page.get_by_label("API key").fill(given)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#connection")).to_have_text("Watching")
        expect(page.locator("#task")).to_have_text("Make tea")
        cutter.cut()
        expect(page.locator("#connection")).to_have_text("Reconnecting")
        http.patch("v1/sessions/kitchen-7/state", json={"state": {"S1": "completed"}})
        expect(page.locator("#connection")).to_have_text("Watching")
        expect(page.locator("#step-list li").first).to_have_attribute("data-state", "completed")
        http.delete("v1/sessions/kitchen-7")
        expect(page.locator("#connection")).to_have_text("Ended")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("no session 'kitchen-7' is open here")
        cutter.close()
