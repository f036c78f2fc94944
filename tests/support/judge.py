"""A judge behind HTTP: a server on a thread of this process, that answers as a test says."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Answer = tuple[int, bytes] | bytes | Iterator[bytes]
"""Status and body; or all that is sent, status line and headers too, whole or piece by piece."""


class Server(HTTPServer):
    """Answers each request with ``answer(request)``; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.gets: list[str] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda request: (500, b"")
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(request)
        server.headers.append(self.headers)
        answer = server.answer(request)
        if not isinstance(answer, tuple):
            with suppress(OSError):  # the reader may have gone
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    self.wfile.write(piece)
            return
        status, body = answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server: Any = self.server
        server.gets.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"scores": [1, 2, 3]}')

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def judging() -> Iterator[Server]:
    """A judge that is there within this context."""
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def mean_red(request: dict[str, Any]) -> Answer:
    scores = [float(pixels(image)[..., 0].mean() / 255) for image in request["images"]]
    return 200, json.dumps({"scores": scores}).encode()
