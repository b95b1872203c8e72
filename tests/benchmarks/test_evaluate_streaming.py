"""Stage `streaming` of suite=evaluate, with a tiny model."""

import json

from rich.console import Console

from prospect.benchmarks.evaluate.settings import StreamingStage
from prospect.benchmarks.evaluate.streaming import ALONE, GROUPS, LOOP, measure_streaming, table
from prospect.streaming.settings import StreamingSettings

STAGE = StreamingStage(
    vision_dim=16, device="cpu", videos=2, frames=12, context=512, speak_rate=0.2, utterance_tokens=3, rounds=1
)


def test_all_ways_stream_the_same_videos_and_say_how_fast(tmp_path, capsys) -> None:
    head, *rows = json.loads(json.dumps(measure_streaming(STAGE, StreamingSettings(), tmp_path), allow_nan=False))
    assert head["stage"]["base"] == "tiny"
    assert head["machine"]["device"]
    assert [row["way"] for row in rows] == [LOOP, ALONE, GROUPS, "latency-aware, 1x", "latency-aware, 4x"]
    assert rows[0]["of_loop"] == 1
    assert all(row["videos_per_s"] > 0 for row in rows)
    live = rows[3:]
    assert [(row["frames"], row["dropped"], row["latency_ms"]["number"]) for row in live] == [(24, 0, 24)] * 2
    assert [row["speed"] for row in live] == [1, 4]
    assert not any("cost" in row for row in rows[:3])
    Console(width=150).print(table([head, *rows]))
    assert "of the loop's" in capsys.readouterr().out
