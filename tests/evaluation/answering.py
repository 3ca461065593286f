# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server of the OpenAI form, whose answers a test gives."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Recorded:
    """What a server was sent, and how many requests it had at a time."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_a_time: int = 0


Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


def completion(text: str, **choice: Any) -> tuple[int, dict[str, Any]]:
    return 200, {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }


@contextmanager
def answering(reply: Reply, metrics: str = "") -> Iterator[Recorded]:
    """The server while the block runs; `reply` makes status and document from a request's.

    metrics: what it says at `/metrics`.
    """
    recorded, lock = Recorded(), threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running += 1
                recorded.most_at_a_time = max(recorded.most_at_a_time, running)
                recorded.bodies.append(body)
            threading.Event().wait(0.05)
            with lock:
                running -= 1
            self._send(*reply(body))

        def do_GET(self) -> None:
            models = {"object": "list", "data": [{"id": "served", "object": "model"}]}
            self._send(200, metrics if self.path == "/metrics" else models)

        def _send(self, status: int, document: dict[str, Any] | str) -> None:
            text = isinstance(document, str)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.end_headers()
            self.wfile.write((document if text else json.dumps(document)).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        recorded.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield recorded
        finally:
            server.shutdown()
