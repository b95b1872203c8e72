"""A real HTTP server that speaks the wire format of chat completions, files and batches, and misbehaves on demand."""

import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-secret-0123456789"
KEY_VARIABLE = "PROSPECT_TEST_LLM_KEY"


@dataclass(frozen=True)
class Says:
    """A well-formed completion with this text."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Status:
    """An HTTP error."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"message": "no", "type": "server_error", "code": None})


@dataclass(frozen=True)
class Raw:
    """A 200 whose body is this, whatever it is."""

    body: bytes


class Hang:
    """No answer until the server is closed."""


class Trickle:
    """One byte after another: every read succeeds, and the answer never ends."""


class Reset:
    """The connection breaks in the middle of the body."""


class Absent:
    """In a batch: no line for this request."""


def goal_of(body: dict[str, Any]) -> str:
    """What a request is about; `OK` for a probe, which is about nothing."""
    found = re.search(r"^Goal: (.*)", "\n".join(message["content"] for message in body["messages"]), re.MULTILINE)
    return found[1] if found else "OK"


class FakeEndpoint(ThreadingHTTPServer):
    """`plan[goal]` lists what happens to successive requests about a goal; then `default`, or the right answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, right_answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.right_answer = right_answer
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.plan: dict[str, list[Any]] = defaultdict(list)
        self.default: Any = None
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.hanging, self.closing = threading.Event(), threading.Event()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.statuses: list[str] = ["completed"]
        """What successive looks at a batch find; the last one stays."""
        self.create_hangs = False
        self.seconds_between = 0.0
        """A request that follows an answered one sooner is refused."""
        self.answered_at = 0.0
        self.lock = threading.Lock()

    def reaction(self, body: dict[str, Any]) -> Any:
        with self.lock:
            self.bodies.append(body)
            self.times.append(time.time())
            if time.monotonic() - self.answered_at < self.seconds_between:
                return Status(429, {"Retry-After": str(self.seconds_between)})
            self.answered_at = time.monotonic()
            planned = self.plan[goal_of(body)]
            return planned.pop(0) if planned else self.default or Says(self.right_answer(body))

    def asked(self, goal: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if goal_of(body) == goal]

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients that were killed or ran out of patience are what these tests are about."""


def completion(body: dict[str, Any], says: Says) -> dict[str, Any]:
    message = {"role": "assistant", "content": says.text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{body['model']}-2024",
        "choices": [{"index": 0, "message": message, "finish_reason": says.finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


class Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def authorized(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given != f"Bearer {KEY}":
            self.send({"error": {"message": f"Incorrect API key: {given}", "code": "invalid_api_key"}}, 401)
            return False
        return True

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.authorized():
            return
        match self.path.removeprefix("/v1"):
            case "/chat/completions":
                body = json.loads(data)
                self.react(body, self.server.reaction(body))
            case "/files":
                boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"])[1].encode()
                part = next(part for part in data.split(b"--" + boundary) if b"filename=" in part)
                file_id = f"file-{len(self.server.files)}"
                self.server.files[file_id] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
                self.send({"id": file_id, "object": "file", "bytes": 1, "created_at": 1, "filename": "x",
                           "purpose": "batch", "status": "processed"})  # fmt: skip
            case "/batches":
                self.create_batch(json.loads(data))

    def do_GET(self) -> None:
        if not self.authorized():
            return
        path = self.path.removeprefix("/v1").split("?")[0]
        if path == "/batches":
            self.send({"object": "list", "data": [*reversed(self.server.batches.values())], "has_more": False})
        elif path.startswith("/batches/"):
            self.look_at(path.rpartition("/")[2])
        elif path.endswith("/content"):
            self.send(self.server.files[path.split("/")[2]])

    def react(self, body: dict[str, Any], reaction: Any) -> None:
        match reaction:
            case Says():
                self.send(completion(body, reaction))
            case Status():
                self.send({"error": reaction.error}, reaction.code, reaction.headers)
            case Raw():
                self.send(reaction.body)
            case Hang():
                self.server.hanging.set()
                self.server.closing.wait(30)
            case Trickle():
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                while not self.server.closing.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            case Reset():
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b'{"id": "chat')
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

    def create_batch(self, wanted: dict[str, Any]) -> None:
        batch_id = f"batch_{len(self.server.batches)}"
        batch = {"id": batch_id, "object": "batch", "status": "validating", "created_at": int(time.time()),
                 "completion_window": "24h", "endpoint": wanted["endpoint"], "input_file_id": wanted["input_file_id"],
                 "metadata": wanted.get("metadata")}  # fmt: skip
        self.server.batches[batch_id] = batch
        if self.server.create_hangs:
            self.server.hanging.set()
            self.server.closing.wait(30)
        self.send(batch)

    def look_at(self, batch_id: str) -> None:
        batch = self.server.batches.get(batch_id)
        if batch is None:
            self.send({"error": {"message": "No batch found"}}, 404)
            return
        statuses = self.server.statuses
        batch["status"] = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if batch["status"] in ("completed", "expired") and "output_file_id" not in batch:
            self.carry_out(batch)
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "bad", "line": 1, "message": "Line 1 is bad"}]}
        self.send(batch)
        if batch["status"] == "in_progress":
            self.server.hanging.set()

    def carry_out(self, batch: dict[str, Any]) -> None:
        output, errors = [], []
        for line in map(json.loads, self.server.files[batch["input_file_id"]].splitlines()):
            assert (line["method"], line["url"]) == ("POST", batch["endpoint"])
            named = {"id": "batch_req_1", "custom_id": line["custom_id"]}
            match self.server.reaction(line["body"]):
                case Says() as says:
                    response = {"status_code": 200, "request_id": "r", "body": completion(line["body"], says)}
                    output.append({**named, "response": response, "error": None})
                case Status() as status:
                    response = {"status_code": status.code, "request_id": "r", "body": {"error": status.error}}
                    errors.append({**named, "response": response, "error": None})
                case Hang():
                    error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                    errors.append({**named, "response": None, "error": error})
        for name, lines in (("output", output), ("error", errors)):
            if lines:
                file_id = f"{batch['id']}-{name}"
                self.server.files[file_id] = "\n".join(map(json.dumps, reversed(lines))).encode()
                batch[f"{name}_file_id"] = file_id


def reaching(server: FakeEndpoint) -> dict[str, Any]:
    """Values of endpoint settings that reach `server` and give up soon."""
    return {
        "base_url": server.base_url,
        "model": "tiny",
        "api_key_env": KEY_VARIABLE,
        "timeout_s": 5,
        "transport_retries": 2,
        "backoff_s": 0.01,
    }


@contextmanager
def serve(right_answer: Callable[[dict[str, Any]], str] = lambda body: "OK") -> Iterator[FakeEndpoint]:
    endpoint = FakeEndpoint(right_answer)
    thread = threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    endpoint.close()
    thread.join()


def killed_when_hanging(server: FakeEndpoint, script: str, *arguments: str) -> None:
    """Run a script in a process of its own and kill that with SIGKILL when the server hangs."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=REPOSITORY, start_new_session=True)
    try:
        assert server.hanging.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
