from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from prospect.model.checkpoint import LoadedModel, load_model
from prospect.serving.api import build_api
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import LocalEngines
from prospect.serving.settings import ServingSettings, SessionLimits
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.http_requests import local_client
from tests.serving.models import CONTEXT, write_model
from tests.serving.postgres import postgres  # noqa: F401  # a fixture


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


@pytest.fixture(scope="session")
def live_encoder(loaded: LoadedModel) -> LiveEncoder:
    encoder = encoder_of(loaded)
    assert encoder is not None
    return LiveEncoder(encoder)


@pytest.fixture
def host_settings() -> SessionLimits:
    return SessionLimits(max_waiting_frames=8)


@pytest.fixture
def streaming_settings() -> StreamingSettings:
    return StreamingSettings(cooldown_frames=0, speak_hysteresis=None, max_sessions=3, max_waiting_frames=8)


@pytest.fixture
def worker(loaded: LoadedModel, streaming_settings: StreamingSettings) -> EngineWorker:
    return EngineWorker(StreamingEngine(loaded, CONTEXT, streaming_settings), accepts_images=True)


@pytest.fixture
def host(worker: EngineWorker, live_encoder: LiveEncoder, host_settings: SessionLimits) -> SessionHost:
    settings = ServingSettings(limits=host_settings, move_seconds=0.5)
    return SessionHost(LocalEngines([worker], "secret"), "secret", live_encoder, settings)


@pytest.fixture
def http(host: SessionHost) -> Iterator[TestClient]:
    """The API over a real engine in this process."""
    with local_client(build_api(host)) as client:
        yield client
        assert client.portal is not None
        client.portal.call(host.stop)
