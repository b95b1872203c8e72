"""Which replicas there are, as Serve's routers tell; tests/e2e/test_deploy.py has a real Serve tell it."""

import asyncio
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from prospect.serving import directory
from prospect.serving.directory import ServeDirectory, note_replicas, until_leaving


class Deployment:
    """Stands for Serve's handle of a deployment, whose replicas answer when `free` is set."""

    def __init__(self, name: str) -> None:
        self.deployment_id, self.free, self.replica = name, asyncio.Event(), ""

    def options(self, session_id: str = "") -> "Deployment":
        chosen = Deployment(self.deployment_id)
        chosen.free, chosen.replica = self.free, session_id
        return chosen

    @property
    def where(self) -> "Deployment":
        return self

    def remote(self) -> Any:
        async def answer() -> tuple[str, str]:
            await self.free.wait()
            return self.replica, f"host:{self.replica}"

        return answer()


def handle(deployment: Deployment) -> DeploymentHandle:
    return cast(DeploymentHandle, deployment)


def test_who_asks_first_hears_of_all_that_are_there():
    async def story() -> None:
        deployment = Deployment("first")
        known = ServeDirectory(handle(deployment))
        asking = [asyncio.create_task(known.addresses()) for _ in range(2)]
        await asyncio.sleep(0.05)
        note_replicas("first", ["1", "2"])
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in asking)
        deployment.free.set()
        for task in asking:
            assert sorted(await task) == ["host:1", "host:2"]

    asyncio.run(story())


def test_later_replicas_keep_nobody_waiting():
    async def story() -> None:
        deployment = Deployment("later")
        known = ServeDirectory(handle(deployment))
        note_replicas("later", ["1"])
        deployment.free.set()
        assert list(await known.addresses()) == ["host:1"]
        deployment.free.clear()
        note_replicas("later", ["2"])
        async with asyncio.timeout(10):
            assert list(await known.addresses()) == []
            deployment.free.set()
            while list(await known.addresses()) != ["host:2"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_without_replicas_there_are_no_addresses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(directory, "TOLD_WITHIN_S", 0.1)

    async def story() -> None:
        assert list(await ServeDirectory(handle(Deployment("none"))).addresses()) == []

    asyncio.run(story())


def test_a_replica_learns_that_it_is_on_its_way_out():
    async def story() -> None:
        leaving = asyncio.create_task(until_leaving(handle(Deployment("leaving")), "1"))
        for replicas in ([], ["1"], ["1", "2"]):
            note_replicas("leaving", replicas)
            await asyncio.sleep(0.25)
            assert not leaving.done()
        note_replicas("leaving", ["2"])
        await asyncio.wait_for(leaving, 10)

    asyncio.run(story())
