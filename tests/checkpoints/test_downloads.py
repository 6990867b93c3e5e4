"""Checkpoints from URLs: downloaded once and whole, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mnv3_fast.checkpoints import read_checkpoint


class Server(ThreadingHTTPServer):
    """Serves one body; under /short only half of what it announces, under /missing nothing."""

    body: bytes
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        body = self.server.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "short" in self.path else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    torch.save({"a": torch.arange(1000)}, tmp_path / "file.pth")
    found = Server(("127.0.0.1", 0), Handler)
    found.body, found.requests = (tmp_path / "file.pth").read_bytes(), []
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def url_of(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_file_is_downloaded_once(server: Server) -> None:
    for _ in range(2):
        assert torch.equal(read_checkpoint(url_of(server, "file.pth"))["a"], torch.arange(1000))
    assert server.requests == ["/file.pth"]


@pytest.mark.parametrize(("path", "message"), [("short.pth", r"\d+ of \d+ bytes came"), ("missing.pth", "404")])
def test_nothing_is_kept_of_a_failed_download(path: str, message: str, server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match=rf"checkpoint: .*{path} could not be downloaded: .*{message}"):
            read_checkpoint(url_of(server, path))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    assert len(server.requests) == 2


def test_what_is_no_url() -> None:
    for source in ("ftp://host/file.pth", "s3://bucket/file.pth"):
        with pytest.raises(ValueError, match=f"checkpoint: {source} is no http, https or file URL"):
            read_checkpoint(source)
    for odd in (3, b"file.pth", None, ["file.pth"]):
        with pytest.raises(TypeError, match=f"checkpoint: expected a path or a URL, got {type(odd).__name__}"):
            read_checkpoint(odd)  # type: ignore[arg-type]
