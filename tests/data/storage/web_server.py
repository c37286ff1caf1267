"""A web server that serves ranges of files, badly where the first part of the path says so: a process that can be killed.

    python -m tests.data.storage.web_server FOLDER PORT

/good/NAME     as it should
/whole/NAME    ignores ranges, as Python's own http.server does
/shifted/NAME  sends other bytes than were asked for
/cut/NAME      closes the connection in the middle of the body, the first time that something is asked for
/torn/NAME     does so every time
/stalls/NAME   goes silent in the middle of the body, the first time
/busy/NAME     says 503 the first time
/closed/NAME   says 403 to all who do not send `Authorization: key`
/good/         a page of links, as are the others
/seen          how many requests of files there were

It is no test of HTTP's subtleties; every answer is one that a server, proxy or network has given.
"""

from __future__ import annotations

import email.utils
import json
import re
import sys
import threading
import time
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


class Handler(BaseHTTPRequestHandler):
    """Requests of one connection, which is kept open between them."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[Counter[tuple[str, ...]]] = Counter()
    lock = threading.Lock()

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        """Size and version of a file."""
        self.answer(body=False)

    def do_GET(self) -> None:
        """A file, a part of it, or a page."""
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        """Headers, and perhaps content."""
        if self.path == "/seen":
            return self.page(json.dumps(sum(self.seen.values())))
        mood, _, name = self.path.strip("/").partition("/")
        if not name:
            return self.page("".join(f'<a href="{path.name}">' for path in sorted(self.folder.iterdir())))
        first = self.first_time(mood, name, body)
        path = self.folder / name
        if mood == "closed" and self.headers.get("Authorization") != "key":
            return self.send_error(403)
        if mood == "busy" and first:
            return self.send_error(503)
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or mood == "whole":
            self.send_response(200)
        else:
            start, last = (int(place) + (mood == "shifted") for place in asked.groups())
            size, content = len(content), content[start : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", email.utils.formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.end_headers()
        if not body:
            return None
        if mood == "torn" or (mood in ("cut", "stalls") and first):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if mood == "stalls":
                time.sleep(60)
            self.close_connection = True
        else:
            self.wfile.write(content)
        return None

    def first_time(self, mood: str, name: str, body: bool) -> bool:
        """Whether this is the first such request."""
        request = (mood, name, self.headers.get("Range", ""), str(body))
        with self.lock:
            self.seen[request] += 1
            return self.seen[request] == 1

    def page(self, text: str) -> None:
        """An HTML page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        """Silence."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), partial(Handler, Path(sys.argv[1]))) as server:
        server.daemon_threads = True
        print(server.server_port, flush=True)
        server.serve_forever()
