"""A way to a server that breaks."""

import random
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Cutter:
    """A way to the server that breaks every connection after some bytes, in whichever direction they go."""

    def __init__(self, url: str, seed: int, cuts: int) -> None:
        self._to = urlsplit(url)
        self._random = random.Random(seed)
        self.left = cuts
        self._open: list[socket.socket] = []
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection((self._to.hostname, self._to.port))
                self._open += [here, there]
                allowance = [self._random.randrange(500, 12_000) if self.left > 0 else 10**9]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=(source, sink, allowance), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, allowance: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(1024):
                allowance[0] -= len(data)
                self._goes_on.wait()
                if allowance[0] < 0:
                    self.left -= 1
                    allowance[0] = 10**9
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break the connections that there are."""
        cut, self._open = self._open, []
        for each in cut:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def pause(self) -> None:
        """Hold back whatever comes."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Pass it on again, where its connection is still there."""
        self._goes_on.set()

    def close(self) -> None:
        self._listening.close()
