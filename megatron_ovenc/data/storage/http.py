"""fsspec's HTTP file system, strict about what it leaves open: which bytes came, what an error means, which version a file is."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import fsspec.config
from aiohttp import ClientResponseError, ClientTimeout
from fsspec.implementations.http import HTTPFileSystem

STALL_S = 30.0
"""Seconds without a connection or a byte after which a request has failed. aiohttp would end any that lasts five minutes, however
well it goes."""
_MISSING, _FORBIDDEN = (404, 410), (401, 403)
_VALIDATORS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
"""Headers that change with the content."""


class StrictHTTPFileSystem(HTTPFileSystem):
    """Read-only. Wildcards are understood in the last part of a URL, where the server lists the folder as a page of links."""

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await super()._info(url, **kwargs)
        except FileNotFoundError as error:
            # It says that of any failure: whoever takes a server that is down for a missing file goes on with wrong labels.
            raise _meaning(error.__cause__, url) or error from error.__cause__
        # fsspec takes the files of web servers for unchanging.
        return found | {"version": " ".join(str(found[name]) for name in _VALIDATORS if name in found)}

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if start is None or end is None or start == end:
            content: bytes = await super()._cat_file(url, start=start, end=end, **kwargs)
            return content
        session = await self.set_session()
        headers = self.kwargs.get("headers", {}) | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with session.get(self.encode_url(url), **self.kwargs | {"headers": headers}) as response:
            self._raise_not_found_for_status(response, url)
            if response.status != 206:  # looked at before the body comes, which may be a whole shard
                raise ValueError(
                    f"{url}: its server does not serve ranges of a file; take one that does (nginx, Apache, MinIO; not python -m "
                    "http.server), or copy the shards to a disk"
                )
            came = response.headers.get("Content-Range", "nothing")
            if not came.startswith(f"bytes {start}-{end - 1}/"):
                raise OSError(f"{came} came of {url}, not the bytes {start}-{end - 1} that were asked for")
            return bytes(await response.read())

    async def _glob(self, path: str, **kwargs: Any) -> list[str]:
        # Not fsspec's own, which leaves out folders that could not be listed.
        folder, _, name = path.rpartition("/")
        if any(sign in folder for sign in "*["):
            raise ValueError(f"{path} has wildcards before its last part, of which a web server knows nothing")
        return [url for url in await self._ls(folder + "/", detail=False) if fnmatchcase(url.rpartition("/")[2], name)]


def file_system() -> StrictHTTPFileSystem:
    """With the user's fsspec settings for http and https. One for each thread and each fork."""
    settings: dict[str, Any] = {}
    for protocol in StrictHTTPFileSystem.protocol:
        settings |= fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
    timeout = ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
    return StrictHTTPFileSystem(client_kwargs={"timeout": timeout} | settings)


def _meaning(reason: BaseException | None, url: str) -> BaseException | None:
    """What a failure to ask for a file was, if it was not that there is none."""
    status = reason.status if isinstance(reason, ClientResponseError) else None
    if reason is None or status in _MISSING:
        return None
    if status in _FORBIDDEN:
        return PermissionError(
            f"{url}: the server says {status}, which leaves open whether the file exists; give access to it, and let missing files "
            "be told as such (404)"
        )
    return reason
