"""Settings that cannot work and models that cannot be had: one sentence each, before anything runs."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from transformers import GPT2Config

from prospect.errors import CheckpointError
from prospect.model.adapters import build_tokenizer
from prospect.model.configuration import ModelSettings
from prospect.model.geometry import base_geometry

ANSWERS = {
    "gated": (401, "GatedRepo"),
    "refused": (403, "GatedRepo"),
    "unknown": (401, "RepoNotFound"),
    "absent": (404, "RepoNotFound"),
    "empty": (404, "EntryNotFound"),
    "down": (503, ""),
}
"""By the owner in a model's name: status and error code, as the hub sends them."""


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, code = ANSWERS[self.path.split("/")[1]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def reach(endpoint: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What HF_ENDPOINT and an empty HF_HOME do to a process that starts with them."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def sentence_on(base: str, cache: Path) -> str:
    """What is said on a base that cannot be had: the same by the plan, by the tokenizer and by the model."""
    said = set()
    settings = ModelSettings(base=base)
    for need in (lambda: base_geometry(settings), lambda: build_tokenizer(settings, [], cache)):
        with pytest.raises(CheckpointError) as caught:
            need()
        said.add(str(caught.value))
        assert caught.value.field == "model.base"
    [sentence] = said
    assert sentence.startswith(f"`model.base` is {base}, ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("gated/llama", "gated: accept the licence at HUB/gated/llama and set HF_TOKEN"),
        ("refused/llama", "which your account may not read: accept the licence at HUB/refused/llama and wait"),
        ("unknown/llama", "which HUB does not know: correct the name, set HF_TOKEN if it is private"),
        ("absent/llama", "which HUB does not know"),
        ("empty/llama", "in which HUB has no config.json"),
        ("down/llama", "and HUB answers with status 503: give the path of a folder"),
        ("two words", "neither a folder nor a name: write such as meta-llama"),
        ("/no/such/folder", "but there is no such folder"),
        ("a/b/c", "but there is no such folder"),
        ("package:gpt5", "but there is only package:smollm2_135m"),
    ],
)
def test_a_base_that_cannot_be_had(
    base: str, says: str, hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reach(hub, monkeypatch, tmp_path)
    assert says.replace("HUB", hub) in sentence_on(base, tmp_path)


def test_a_base_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach("http://127.0.0.1:9", monkeypatch, tmp_path)
    assert "not on this machine, and http://127.0.0.1:9 cannot be reached" in sentence_on("some/llama", tmp_path)
    assert base_geometry(ModelSettings(base="meta-llama/Llama-3.2-3B-Instruct")).num_hidden_layers == 28
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not on this machine" in sentence_on("some/llama", tmp_path)


def test_a_base_that_is_no_llama(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"is {tmp_path}, a model of type gpt2: only Llama's class fits"):
        base_geometry(ModelSettings(base=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        base_geometry(ModelSettings(base=str(tmp_path)))
