"""Who uses the page: with a keyboard, a screen reader, a phone, in the dark, with a key."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.store import KeyTable
from tests.browser import decided, start
from tests.serving.clients import Server, until
from tests.serving.web.conftest import QUIET, Visit, serving

SIZES = ((1280, 800), (768, 1024), (375, 812), (360, 640))
SCHEMES = ("light", "dark")
CHECK = Path(__file__).with_name("access.js").read_text()


def complaints(page: Page) -> list[Any]:
    """What access.js finds wrong with the page as it is."""
    return page.evaluate(CHECK)


def at_all_sizes(page: Page) -> list[Any]:
    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            found += [(scheme, width, each) for each in complaints(page)]
    return found


def test_the_form_is_legible_and_named(quiet: Server, visit: Visit):
    page = visit(quiet)
    expect(page.locator("#samples input").first).to_be_attached()
    assert at_all_sizes(page) == []
    for source in ("Camera", "File"):
        page.get_by_role("radio", name=source).check()
        assert at_all_sizes(page) == []
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert at_all_sizes(page) == []


def test_a_session_is_legible_and_named(acting: Server, visit: Visit):
    page = visit(acting)
    start(page)
    expect(page.locator("#entries .assistant").first).to_be_visible()
    page.locator("#step-list [data-toggle]").first.click()
    assert at_all_sizes(page) == []
    page.get_by_role("button", name="End session").click()
    expect(page.locator("#connection")).to_have_text("Ended")
    assert at_all_sizes(page) == []


def test_the_checks_see_what_is_wrong(quiet: Server, visit: Visit):
    page = visit(quiet)
    page.evaluate(
        """document.querySelector("main").insertAdjacentHTML("beforeend",
          "<input><button></button><p id=main class=faint>faint</p><h4>deep</h4>");
        document.querySelector(".faint").style.color = "rgb(200, 200, 200)";
        document.querySelector(".faint").style.width = "3000px";"""
    )
    found = " ".join(complaints(page))
    for wrong in ("input has no name", "button has no name", "id main", "contrast", "wider", "h4"):
        assert wrong in found


def test_with_the_keyboard_alone(quiet: Server, visit: Visit):
    page = visit(quiet)
    expect(page.locator("#samples input").first).to_be_attached()
    press = page.keyboard.press

    def reach(selector: str) -> None:
        for _ in range(30):
            press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                shown = page.evaluate("document.activeElement.closest('label')?.querySelector('span') ?? null") is None
                if shown:
                    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"{selector} cannot be reached")

    reach("[name=source]")
    reach("[name=sample]")
    press("ArrowDown")
    steps = page.locator("#steps").input_value().split("\n")
    reach("#start")
    press("Enter")
    expect(page.locator("#connection")).to_have_text("Live")
    assert page.locator("#step-list [data-name]").all_inner_texts() == steps
    reach("#step-list [data-toggle]")
    press("Enter")
    reach("[value=completed]")
    press("Space")
    expect(page.locator("#step-list li").first).to_have_attribute("data-state", "completed")
    expect(page.locator("#step-list [data-toggle]").first).to_be_focused()
    press("Enter")
    reach("[value=in_progress]")
    press("Escape")
    expect(page.locator("#step-list [data-toggle]").first).to_have_attribute("aria-expanded", "false")
    reach("#words")
    page.keyboard.type("What now?")
    press("Enter")
    expect(page.locator("#entries .user p").filter(has_text="What now?")).to_be_visible()
    until(lambda: decided(page) > 1)
    page.locator("#live").focus()
    reach("#stop")
    press("Space")
    expect(page.get_by_role("button", name="New session")).to_be_focused()


def test_what_a_screen_reader_hears(acting: Server, visit: Visit):
    page = visit(acting)
    start(page)
    expect(page.get_by_role("log", name="Conversation").get_by_role("listitem").first).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="Live")).to_be_visible()
    expect(page.get_by_role("list").first).to_be_visible()
    expect(page.get_by_role("img", name="Speak: ")).to_be_visible()
    assert page.locator("#draft").get_attribute("aria-hidden") == "true", "pieces of words are not read out"
    assert page.locator("h1, h2:visible").all_inner_texts()[0] == "Prospect"


def test_a_server_that_wants_a_key(loaded, live_encoder, visit: Visit, tmp_path: Path):
    table = KeyTable(f"sqlite:///{tmp_path}/keys.db")
    given, row = new_key("page")
    table.add(row)
    with serving(loaded, live_encoder, QUIET, Keyring(table)) as server:
        page = visit(server)
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        assert at_all_sizes(page) == []
        key.fill("pk_wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("alert")).to_contain_text("authorization")
        key.fill(given)
        key.press("Enter")
        start(page)
        until(lambda: decided(page) > 1)
        assert page.evaluate("localStorage.length") == 0
        assert page.evaluate("Object.keys({...sessionStorage}).sort()") == ["prospect.key", "prospect.session"]
        assert page.evaluate("sessionStorage['prospect.key']") == given
        assert given not in page.evaluate("sessionStorage['prospect.session']")
        assert given not in page.content()
