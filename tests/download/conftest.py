"""A local server for the tests of downloads."""

from __future__ import annotations

import hashlib
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from download_server import ARCHIVE, NAME, Server

from medaug import download


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(download, "WAITS_S", (0, 0, 0, 0))
    monkeypatch.setattr(download, "ADDRESS", "http://127.0.0.1:1/nothing-leaves-the-machine")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # type: ignore[arg-type]  # built anew with this environment
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(data: bytes = ARCHIVE, **behaviour: object) -> Server:
        server = Server(data, **behaviour)  # type: ignore[arg-type]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.address = f"http://127.0.0.1:{httpd.server_port}/msd"
        monkeypatch.setitem(download.MD5, NAME, hashlib.md5(data).hexdigest())
        running.append((server, httpd))
        return server

    yield start
    for server, httpd in running:
        server.released.set()
        httpd.shutdown()
        httpd.server_close()
    urllib.request.install_opener(None)  # type: ignore[arg-type]
