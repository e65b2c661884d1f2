"""The checks that every request must pass before a handler sees it.

Whoever can post here can run commands as the service's owner, so no web page in a browser may post. Therefore a request
needs the service's own Host, no Origin, a body of JSON (except uploads, which run nothing) and a token, and no answer ever
has a CORS header.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from ..errors import quoted
from .rest import ApiError

ADDRESS = "127.0.0.1"
HEALTH = "/healthz"  # says without a token whether the service is ready
CONSOLE = re.compile("/|/console(?:/.*)?")  # paths that a browser may ask for; its pages check a cookie
KEY_PATH = "/key/"  # before the paths of Cloud Storage, for clients that send no token
LARGEST_BODY = 10 << 20  # bytes of JSON
LARGEST_UPLOAD = 5 << 30  # bytes of one request to an upload path, which goes to disk
UPLOADS = re.compile("/(?:resumable/)?upload/storage/v1/")
_STORAGE = re.compile("/(?:(?:(?:resumable/)?upload|download|batch)/)?storage/v1(?:/|$)")
_FORM = re.compile(r"(application/x-www-form-urlencoded|multipart/form-data)\s*(;.*)?", re.IGNORECASE)
_JSON = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Access:
    """Who gets answers: a client sends `token` in its Authorization header ("": everybody), or `key` in a storage URL's path."""

    port: int
    token: str = ""
    key: str = ""


def without_key(path: str, access: Access) -> tuple[str, str]:
    """Return (the path without the prefix `/key/KEY`, the prefix); a path with a wrong key is returned unchanged."""
    prefix = f"{KEY_PATH}{access.key}"
    own = bool(access.key) and hmac.compare_digest(path[: len(prefix)].encode(), prefix.encode())
    rest = path[len(prefix) :]
    return (rest, prefix) if own and _STORAGE.match(rest) else (path, "")


def body_length(headers: Headers) -> int:
    """Return the body's length in bytes; raise an ApiError unless the client gives it as one plain Content-Length."""
    lengths = headers.getlist("Content-Length")
    if headers.getlist("Transfer-Encoding"):
        raise ApiError("INVALID_ARGUMENT", "Transfer-Encoding is not taken; send Content-Length.", code=411)
    if len(lengths) > 1 or (lengths and not re.fullmatch(r"[0-9]{1,18}", lengths[0])):
        raise ApiError("INVALID_ARGUMENT", f"Content-Length takes one number; got {', '.join(lengths)[:100]!r}.")
    return int(lengths[0]) if lengths else 0


def admit(method: str, path: str, headers: Headers, length: int, access: Access, keyed: bool) -> None:
    """Refuse any request that a web page, or another user of this machine, could send.

    Args:
        keyed: the request's path has the key, so it needs no token.

    Raises:
        ApiError: the request is refused.
    """
    _check_host(headers, access)
    if CONSOLE.fullmatch(path):
        _check_browser(method, headers, length)
        return
    _check_no_page(headers)
    _check_body(path, headers, length)
    if not keyed and path != HEALTH:
        check_token(headers.getlist("Authorization"), access.token)


def check_token(given: Sequence[str], token: str) -> None:
    """Raise UNAUTHENTICATED unless the Authorization headers `given` are one with the token; with "", nobody needs any."""
    if token and not (len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Bearer {token}".encode())):
        raise ApiError("UNAUTHENTICATED", "send 'Authorization: Bearer TOKEN' with the token of this start of the service.")


def _check_host(headers: Headers, access: Access) -> None:
    hosts = headers.getlist("Host")
    own = [f"{name}:{access.port}" for name in ("localhost", ADDRESS)]
    if len(hosts) != 1 or hosts[0].lower() not in own:
        given = ", ".join(hosts)[:100] or "none"
        raise ApiError("PERMISSION_DENIED", f"Host must be {' or '.join(own)}; got {quoted(given)}.")


def _check_no_page(headers: Headers) -> None:
    for name in headers:
        if name == "origin" or name.startswith("sec-fetch-"):
            raise ApiError("PERMISSION_DENIED", f"a request with {name} comes from a web page; none is answered.")


def _check_browser(method: str, headers: Headers, length: int) -> None:
    """Let a browser ask for the console's pages, and let only those pages change anything."""
    site, own = headers.get("Sec-Fetch-Site", "none"), f"https://{headers['Host'].lower()}"
    if site not in ("none", "same-origin"):
        raise ApiError("PERMISSION_DENIED", "the console is not opened from another site's page; type or paste its address.")
    origins = headers.getlist("Origin")
    if origins not in ([], [own]) or (method != "GET" and not origins):
        raise ApiError("PERMISSION_DENIED", f"only the console's own pages, of {own}, change anything.")
    kinds = headers.getlist("Content-Type")
    if (kinds or length) and (method == "GET" or len(kinds) != 1 or not _FORM.fullmatch(kinds[0])):
        raise ApiError("INVALID_ARGUMENT", "the console takes forms only.", code=415)
    if length > LARGEST_BODY:
        raise ApiError("INVALID_ARGUMENT", f"a form may have {LARGEST_BODY:,} bytes; got {length:,}.", code=413)


def _check_body(path: str, headers: Headers, length: int) -> None:
    upload = UPLOADS.match(path) is not None
    kinds = headers.getlist("Content-Type")
    if (kinds or length) and not upload and (len(kinds) != 1 or not _JSON.fullmatch(kinds[0])):
        given = ", ".join(kinds)[:100] or "none"
        raise ApiError("INVALID_ARGUMENT", f"Content-Type must be application/json; got {quoted(given)}.", code=415)
    most = LARGEST_UPLOAD if upload else LARGEST_BODY
    if length > most:
        raise ApiError("INVALID_ARGUMENT", f"a body may have {most:,} bytes here; got {length:,}.", code=413)
