"""The page's files and samples, without a browser; tests/serving/web has it in one."""

import asyncio
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from prospect.corpus.draw import encode_video
from prospect.serving import samples
from prospect.serving.page import FOLDER, add_page


def test_the_page_and_its_files(http):
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["content-type"].startswith("text/html")
    for path in FOLDER.iterdir():
        answer = http.get(f"/web/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert http.get("/web/app.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/web/none.js", "/web/..%2Fpage.py", "/samples/none.mp4", "/samples/..%2F.mp4"])
def test_nothing_else_is_there(http, path: str):
    answer = http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_samples_are_held_out_tasks_and_drawn_the_same_again():
    listed = samples.list_samples()
    assert [len(sample["steps"]) for sample in listed] == [3, 4, 5, 6]
    assert all(sample["id"].startswith("test_") for sample in listed)
    first = samples.sample_video(listed[0]["id"])
    assert first is not None
    samples.sample_video.cache_clear()
    assert samples.sample_video(listed[0]["id"]) == first
    assert len(first) < 1_000_000


def test_a_sample_that_is_being_drawn_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    released = threading.Event()

    def slowly(*arguments: Any) -> None:
        assert released.wait(10)
        encode_video(*arguments)

    async def story() -> None:
        api = FastAPI()
        add_page(api)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://page") as client:
            path = f"/samples/{samples.list_samples()[0]['id']}.mp4"
            video = asyncio.create_task(client.get(path))
            await asyncio.sleep(0)
            assert (await client.get("/")).status_code == 200
            assert not video.done()
            released.set()
            assert (await video).status_code == 200

    monkeypatch.setattr(samples, "encode_video", slowly)
    samples.sample_video.cache_clear()
    asyncio.run(story())
