"""The engine benchmark's parts, and a whole run of a tiny model."""

import json

import numpy as np
import pytest
import torch

from prospect.benchmarks.engine.load import Happening, LoadRecord, Workload, saturated
from prospect.benchmarks.engine.measure import build_system, largest
from prospect.benchmarks.engine.model import planted_model
from prospect.benchmarks.engine.peers import LoopSystem, PaddedSystem
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.benchmarks.engine.suite import measure
from prospect.percentiles import Percentiles
from prospect.streaming.settings import StreamingSettings

TINY = EngineSuite(
    base="tiny",
    vision_dim=16,
    device="cpu",
    sessions=(2,),
    contexts=(384,),
    seconds=1,
    saturated_frames=8,
    speak_rate=0.25,
    utterance_tokens=3,
)
SETTINGS = StreamingSettings()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_system_speaks_where_the_schedule_says(dtype, tmp_path):
    suite = TINY.model_copy(update={"dtype": dtype})
    loaded, workload = planted_model(suite, "cpu", tmp_path), Workload(suite, 3, 384, 40)
    for name in suite.systems:
        system = build_system(name, loaded, workload, SETTINGS)
        system.fill(workload.starts)
        record = saturated(system, workload, range(40), float("inf"))
        assert np.array_equal(record.spoke, workload.speaks)
        assert record.decided == 120
        assert record.refreshes > 0
        assert record.fast.any() == (name == "engine")


@torch.inference_mode()
def test_the_padded_batch_computes_what_the_loop_does(tmp_path):
    loaded, workload = planted_model(TINY, "cpu", tmp_path), Workload(TINY, 2, 384, 30)
    loop, padded = LoopSystem(loaded, workload), PaddedSystem(loaded, workload)
    caches = [loop._random_cache(1, length) for length in (9, 4)]
    loop._caches = caches
    padded.fill([9, 4])
    for layer, whole in enumerate(padded._cache.layers):
        for session, cache in enumerate(caches):
            short = cache.layers[layer]
            whole.keys[session, :, -short.keys.shape[2] :] = short.keys[0]
            whole.values[session, :, -short.values.shape[2] :] = short.values[0]
    frames = [loop._embed_frame(torch.from_numpy(workload.features(session, 0))) for session in range(2)]
    token = loop._embed_token(7)
    for embeddings in (torch.cat(frames), token.expand(2, -1, -1)):
        expected = torch.cat([loop._forward(session, embeddings[session : session + 1]) for session in range(2)])
        assert torch.allclose(padded._forward(embeddings, [0, 1]), expected, atol=1e-4)


def test_a_latency_counts_from_when_the_frame_was_due():
    """Session 0 talks from 0.2 to 1.1 s; its frame due at 0.5 s waits for that, the one at 1.5 s is never decided."""
    record = LoadRecord.empty(1, range(4, 8))
    record.due[:] = [[0.0, 0.5, 1.0, 1.5]]
    record.take([Happening(0, 4, "text")], 0.2)
    record.take([Happening(0, 4, "decided", spoke=True)], 1.1)
    record.take([Happening(0, 5, "decided"), Happening(0, 6, "refreshed"), Happening(0, 6, "decided")], 1.2)
    record.seconds = 2.0
    waited, free = record.latencies()
    assert waited.tolist() == pytest.approx([0.2, 0.7, 0.2, 0.5])
    assert free.tolist() == [True, False, False, True]
    assert record.first_tokens().tolist() == pytest.approx([0.2])
    assert record.refreshes == 1


def test_the_schedule_has_the_stated_rate_and_sessions_start_below_their_limit():
    workload = Workload(EngineSuite(speak_rate=0.05), 64, 2048, 400)
    assert workload.speaks.mean() == pytest.approx(0.05, rel=0.05)
    assert max(workload.starts) < 2048
    assert min(workload.starts) > 2048 - 400 * workload.tokens_per_frame - 64
    arrivals = workload.arrivals(range(10))
    assert arrivals == sorted(arrivals)
    assert len({due for due, _, frame in arrivals if frame == 0}) == 64


@pytest.mark.parametrize("most", [1, 6, 37, 500])
def test_the_search_finds_the_largest_number_to_a_sixteenth(most):
    tried: list[int] = []
    for start in (1, 16):
        found = largest(lambda sessions: tried.append(sessions) or sessions <= most, 128, start)
        assert min(most, 128) * 15 / 16 <= found <= most
    assert max(tried) <= 128
    assert largest(lambda sessions: False, 128) == 0


def test_percentiles_are_milliseconds():
    assert Percentiles.of(np.full(7, 0.25)) == (250, 250, 250, 7, 250)
    assert Percentiles.of(np.empty(0)).number == 0


def test_a_run_writes_its_numbers_and_pictures(tmp_path, capsys):
    suite = TINY.model_copy(update={"search": True, "most_sessions": 1, "soak_minutes": 1, "soak_sessions": 1})
    result = measure(suite, SETTINGS, tmp_path)
    written = (tmp_path / "benchmarks" / "engine.json").read_text()
    assert json.loads(written)["suite"]["base"] == "tiny"
    assert "NaN" not in written
    assert {path.name for path in (tmp_path / "benchmarks" / "engine").iterdir()} == {
        "latency.png",
        "memory.png",
        "soak.png",
        "throughput.png",
    }
    engine, loop, padded = result["cells"]
    assert engine["fast_share"] > loop["fast_share"] == padded["fast_share"] == 0
    assert "of the bound" in capsys.readouterr().out
