"""Settings that cannot work and models that cannot be had: one sentence each, before anything runs."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import GPT2Config

from prospect.cluster.train import train
from prospect.config.load import load
from prospect.data.settings import ClipSettings
from prospect.errors import CheckpointError, ConfigError
from prospect.model.adapters import build_tokenizer
from prospect.model.geometry import base_geometry
from prospect.model.settings import LossSettings, ModelSettings
from prospect.training.checks import GIB
from prospect.training.memory_plan import MemoryPlan
from prospect.training.preflight import DeviceInfo, check_device, explain_oom
from prospect.training.settings import OPERATIONAL, EarlyStopping, OutOfMemoryError, TrainingSettings
from tests.conftest import REPOSITORY
from tests.e2e.training_runs import prepared

LOSS_KINDS = ("decision", "focal_gamma", "focal_alpha")
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
    assert sentence.startswith(f"`model.base` ({base}) ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("gated/llama", "has gated weights: accept the licence at HUB/gated/llama and set HF_TOKEN"),
        ("refused/llama", "may not be read by your account: accept the licence at HUB/refused/llama and wait"),
        ("unknown/llama", "is unknown to HUB: correct the name, set HF_TOKEN if it is private"),
        ("absent/llama", "is unknown to HUB"),
        ("empty/llama", "has no config.json at HUB"),
        ("down/llama", "and HUB answers with status 503: give the path of a folder"),
        ("two words", "neither a folder nor a name: write for example meta-llama"),
        ("/no/such/folder", "is a missing folder"),
        ("a/b/c", "is a missing folder"),
        ("package:gpt5", "is an unknown package; known: package:smollm2_135m"),
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
    with pytest.raises(CheckpointError, match=f".{tmp_path}. has the unknown model_type gpt2; it must be"):
        base_geometry(ModelSettings(base=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        base_geometry(ModelSettings(base=str(tmp_path)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.num_workers=2", "training.min_workers=3"], "`training.min_workers` (3) must not exceed"),
        (["model.adaptation=qlora", "training.zero_stage=3"], "`training.zero_stage` (3) must not be combined with"),
        (["training.zero_stage=0"], "`training.zero_stage` (0) must be 1, 2 or 3"),
        (["model.tiny.num_heads=7"], "`model.tiny`: hidden_size 128 does not divide into num_heads 7"),
        (
            ["training.early_stopping={metric: speak_f2}"],
            "`training.early_stopping.metric`: unknown metric `speak_f2` (did you mean `speak_f1`",
        ),
        (["training.keep_checkpoints=0"], "`training.keep_checkpoints` (0) must be greater than or equal to 1"),
        (["training.micro_batch_tokens=3"], "`training.micro_batch_tokens` (3) must be greater than or equal to 64"),
        (["model.dtype=float16"], "`model.dtype` ('float16') must be 'float32' or 'bfloat16'"),
        (
            [f"training.losses.{name}=0" for name in LossSettings.model_fields if name not in LOSS_KINDS],
            "`training.losses` must have a weight above 0",
        ),
        (
            ["vision=smolvlm2", "vision.tokens_per_frame=1377", "context.max_seq_len=2048"],
            "`vision.tokens_per_frame` (1377) does not fit: with a context of context.max_context_tokens=1024 a frame",
        ),
        (["vision=tiny", "vision.tokens_per_frame=7"], "`vision`: tokens_per_frame (7) must be 1, 5 or 10"),
        (["vision=tiny", "vision.pooling=first"], "`vision`: pooling and connector are settings of backend=smolvlm"),
        (["model.projector=two"], "`model.projector` ('two') must be 'mlp', 'linear' or 'none'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_together(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("train", [f"storage.root={tmp_path}", *overrides])
    assert str(caught.value).startswith(says)
    assert str(caught.value).endswith(".")


def test_what_may_change_while_a_run_goes_on_are_settings_that_there_are() -> None:
    assert TrainingSettings.model_fields.keys() > OPERATIONAL


@pytest.mark.parametrize(
    ("data", "training", "says"),
    [
        (
            {"splits": ("train",)},
            {"early_stopping": EarlyStopping()},
            "early_stopping` is set, but no video is held out",
        ),
        ({}, {"clips": ClipSettings(summaries=True)}, "clips.summaries` is true, but no clip has a summary to learn"),
    ],
)
def test_data_that_lack_what_the_training_asks_for(
    data: dict[str, object], training: dict[str, object], says: str, tmp_path: Path
) -> None:
    config = prepared(tmp_path, **training)
    with pytest.raises(ConfigError) as caught:
        train(config.model_copy(update={"data": config.data.model_copy(update=data)}), lambda line: None)
    assert str(caught.value).startswith(f"`training.{says}")
    assert not (tmp_path / "mlflow.db").exists(), "before there is a run"


def test_a_plan_that_does_not_fit_says_what_to_change(tmp_path: Path) -> None:
    """The job as it is typed."""
    script = ["jobs/train.py", "plan=true", "card=8GB", "model=llama_3_2_3b", "training=single_24gb"]
    command = [sys.executable, *script, f"storage.root={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert re.search(
        r"^The run does not fit a card of 8GB: \d+\.\d\d of its 8\.0 GiB, computing 4,096 tokens at once\. To save "
        r"memory, .*lower training\.micro_batch_tokens.* or set model\.adaptation=qlora.*\.$",
        done.stdout,
        re.MULTILINE,
    ), done.stdout
    assert [folder.name for folder in tmp_path.iterdir()] == ["configs"]


LORA, PACKED = ModelSettings(dtype="bfloat16"), TrainingSettings(micro_batch_tokens=8192)
NEEDS_30 = MemoryPlan(6 * GIB, 1 * GIB, 2 * GIB, 1 * GIB, 0, 20 * GIB, 0, 0, 1, 1, 8192)
CARD, MACHINE = DeviceInfo("an A10", 24 * GIB, True), DeviceInfo("this machine", 64 * GIB, False)


def test_a_batch_that_cannot_fit_stops_with_what_to_change() -> None:
    with pytest.raises(ConfigError) as caught:
        check_device(LORA, PACKED, NEEDS_30, CARD)
    assert str(caught.value) == (
        "`training` cannot run on an A10, which has 24.0 GiB: a step would take 30.0 GiB, 67% of it for the 8,192 "
        "tokens that are computed at once; set training.activation_checkpointing=true, or lower "
        "training.micro_batch_tokens, or lower context.max_seq_len, or set model.adaptation=qlora."
    )
    with pytest.raises(ConfigError, match=r"under another training.run_name and .* set model.adaptation=qlora"):
        check_device(LORA, PACKED, NEEDS_30, CARD, begun=True)
    assert check_device(LORA, PACKED, NEEDS_30, DeviceInfo("an A100", 80 * GIB, True)) == ""
    assert "memory will be tight: about 30.0 of 31.0 GiB" in check_device(
        LORA, PACKED, NEEDS_30, DeviceInfo("a V100", 31 * GIB, True)
    )


def test_workers_share_a_machine_s_memory_and_offloading_counts_there() -> None:
    assert check_device(LORA, PACKED, NEEDS_30, MACHINE, workers=1) == ""
    with pytest.raises(ConfigError, match=r"64\.0 GiB: 3 workers would take 90.0 GiB"):
        check_device(LORA, PACKED, NEEDS_30, MACHINE, workers=3)


def test_a_device_that_lacks_something_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`model\.dtype` .bfloat16. must be float32 on a T4, which has no bfl"):
        check_device(LORA, PACKED, NEEDS_30, DeviceInfo("a T4", 80 * GIB, True, bfloat16=False))


def test_a_device_that_runs_full_is_told_with_its_step() -> None:
    with (
        pytest.raises(OutOfMemoryError) as caught,
        explain_oom(LORA, PACKED, NEEDS_30, lambda: "at step 7"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(caught.value) == (
        "the device ran out of memory at step 7; set training.activation_checkpointing=true, or lower "
        "training.micro_batch_tokens, and start the run again; or start it under another training.run_name and lower "
        "context.max_seq_len, or set model.adaptation=qlora"
    ), "what makes another run of it says so"
    with (
        pytest.raises(OutOfMemoryError, match=r"while the model was loaded; lower training\.micro_batch_size"),
        explain_oom(LORA, PACKED, None, lambda: "while the model was loaded"),
    ):
        torch.empty(2**60)
    heavy = replace(NEEDS_30, optimizer=20 * GIB, activations=0)
    with pytest.raises(OutOfMemoryError) as caught, explain_oom(LORA, PACKED, heavy, lambda: "at step 7"):
        torch.empty(2**60)
    assert "offload_optimizer" not in str(caught.value), "without a GPU there is nothing to offload from"
    with pytest.raises(RuntimeError, match="a defect"), explain_oom(LORA, PACKED, None, str):
        raise RuntimeError("a defect")
