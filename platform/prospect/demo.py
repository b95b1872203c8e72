"""The whole path on one machine: draw, embed, label, train, evaluate, register, serve, and a live session."""

import io
import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from prospect import terminal
from prospect.benchmarks.memory import PeakMemory
from prospect.client import LiveSession, ProspectClient
from prospect.cluster.common import draw_sample, embeddings_root
from prospect.cluster.embed import embed
from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.evaluation_result import EvaluationResult
from prospect.cluster.label import make_labels
from prospect.cluster.runtime import connect, disconnect
from prospect.cluster.stream_views import MODEL
from prospect.cluster.train import train
from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import load_dialogues
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import FPS, place
from prospect.protocol.messages import FrameDecision, SessionClosed
from prospect.reports.tables import render_table
from prospect.reports.timeline import TimelinePrinter
from prospect.serving.config import ServeConfig
from prospect.tracking.settings import database_uri
from prospect.vision.video import sample_frames

PACE = 8
"""How much faster than the camera the demo sends frames."""

console = terminal.console()


def demo(config: ServeConfig) -> None:
    began = time.monotonic()
    connect()
    try:
        with PeakMemory() as memory:
            with phase("draw"):
                draw_sample(config)
            with phase("embed"):
                embed(config)
            with phase("label"):
                make_labels(config)
            with phase("train"):
                result = train(config)
            console.print(f"train  loss {result.first_loss:.2f} -> {result.last_loss:.2f} in {result.steps} steps")
            with ThreadPoolExecutor(1) as pool:  # what serves starts while the evaluation computes
                url = pool.submit(start_serving, config, str(result.model))
                with phase("eval"):
                    scores = evaluate_model(config)
                with phase("serve"):
                    stream_held_out(config, url.result())
        summarise(config, scores, time.monotonic() - began, memory.num_bytes)
    finally:
        disconnect()


@contextmanager
def phase(name: str) -> Iterator[None]:
    began = time.monotonic()
    console.rule(name, align="left", style="dim")
    yield
    console.print(f"{name:6} took {time.monotonic() - began:.0f} s", style="dim")


def start_serving(config: ServeConfig, model: str) -> str:
    """The address at which Ray Serve has the model."""
    from prospect.serving.deployments import launch  # with Ray Serve

    return launch(config.model_copy(update={"serving": config.serving.model_copy(update={"model": model})}))


def stream_held_out(config: ServeConfig, url: str) -> None:
    """One held-out video through the served application's WebSocket, as pictures, `PACE` times as fast as it was."""
    corpus = load_dialogues(config.data)
    dialogue = next(d for d in corpus.split(config.evaluation.split) if d.turns and d.video_id in corpus.videos)
    console.print(f"serve  the model is at {url}; streaming {dialogue.video_id}: {dialogue.goal}")
    with ProspectClient(url) as client, open_session(client, dialogue) as live:
        follow(config, live, dialogue, str(corpus.videos[dialogue.video_id]))


def open_session(client: ProspectClient, dialogue: Dialogue) -> LiveSession:
    return client.live(goal=dialogue.goal, steps=dialogue.step_names, knowledge=dialogue.knowledge)


def follow(config: ServeConfig, live: LiveSession, dialogue: Dialogue, video: str) -> None:
    """Sends frames from one thread and prints what comes back, until the session is closed."""
    printer = TimelinePrinter(console, dialogue.step_names, live.created.state)
    printer.header()
    store = EmbeddingStore(embeddings_root(config))
    timeline = place(dialogue, store.num_frames(dialogue.video_id))
    room = threading.Semaphore(config.streaming.max_waiting_frames)  # a slow machine delays frames and drops none

    def send() -> None:
        start = time.monotonic()
        frames = sample_frames(video, fps=FPS, size=config.vision.image_size, crop=config.vision.crop)
        for frame, picture in enumerate(frames):
            time.sleep(max(0.0, start + (frame + 1) / FPS / PACE - time.monotonic()))
            room.acquire()
            for text in timeline[frame].user:
                live.text(text)
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "PNG")
            live.push(encoded.getvalue())
        live.close()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for message in live:
        if isinstance(message, FrameDecision):
            room.release()
            printer.flush()
            for text in timeline[message.frame].user:
                printer.user(message.frame, text)
        printer.show(message)
        if isinstance(message, SessionClosed):
            sender.join()
            break
    printer.flush()


def summarise(config: ServeConfig, result: EvaluationResult, seconds: float, peak_bytes: int) -> None:
    """The closing table, what it cost, and what to do next."""
    console.rule("result", align="left", style="dim")
    if result.scores[MODEL].overall["joint_goal_accuracy"] is None:
        sentence = "These records have no timed steps: the model learned to speak only, and no score is claimed."
        console.print(sentence, soft_wrap=True)
    else:
        console.print(render_table(result.scores, f"Held-out dialogues ({config.evaluation.split})"))
    for line in result.compared():
        console.print(line, soft_wrap=True)
    console.print(f"\nThe demo took {seconds / 60:.1f} minutes and {peak_bytes / 2**30:.1f} GB at its peak.")
    root = config.storage.root
    console.print(
        f"\nCompare runs:         .venv/bin/mlflow ui --backend-store-uri {shlex.quote(database_uri(Path(root)))}"
        f"\nHost live sessions:   .venv/bin/serve run serve.app:app storage.root={shlex.quote(root)}"
        "\nA session of one's own (in another shell):"
        "\n  curl -s localhost:8000/v1/sessions -H 'content-type: application/json' "
        '-d \'{"goal": "Wash the cup", "steps": ["Wash the cup"]}\'',
        soft_wrap=True,
    )
