from collections.abc import Iterator

import pytest

from prospect.model.checkpoint import LoadedModel, load_model
from prospect.serving.api import build_api
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import local_host
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.models import CONTEXT, write_model
from tests.serving.uvicorn_server import listening


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("probe") / "model"))


@pytest.fixture(scope="module")
def url(loaded: LoadedModel) -> Iterator[str]:
    """Of a server that speaks and updates often."""
    encoder = encoder_of(loaded)
    assert encoder is not None
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(cooldown_frames=2, speak_hysteresis=None))
    with listening(build_api(local_host(engine, LiveEncoder(encoder), version="models:/tests/1"))) as address:
        yield address
