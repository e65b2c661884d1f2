"""Who may use the console: whoever opened an address with a one-time token, which the service's owner alone can read.

The browser is then known by a cookie that no other site's pages send and no script can read, and every change it asks for
carries a second secret, which stands in the pages' forms.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import cookie_parser

SESSION_SECONDS = 7 * 86_400
TOKEN_SECONDS = 86_400
_MOST_SESSIONS, _MOST_TOKENS = 64, 64


@dataclass(frozen=True)
class Session:
    """One browser that is logged in; `secret` is what its forms carry."""

    cookie: str
    secret: str
    ends: float

    def sent(self, secret: str) -> bool:
        """Tell whether a form came from a page of this session."""
        return hmac.compare_digest(secret.encode(), self.secret.encode())


@dataclass
class Logins:
    """The sessions and the one-time tokens of one start of the service; nothing of them is kept on disk.

    Attributes:
        port: of the service; it is part of the cookie's name, as browsers do not keep ports apart.
        everybody: let in whoever comes, as `--no_token` asks.
        clock: seconds, for tests.
    """

    port: int = 0
    everybody: bool = False
    clock: Callable[[], float] = time.monotonic
    _tokens: dict[str, float] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cookie_name(self) -> str:
        """The cookie's name; its prefix makes browsers refuse one that was not set over TLS by this very host."""
        return f"__Host-vertex_local_{self.port}"

    def new_token(self) -> str:
        """Return a token that logs one browser in, once, within a day."""
        with self._lock:
            token = secrets.token_urlsafe(24)
            self._tokens[token] = self.clock() + TOKEN_SECONDS
            while len(self._tokens) > _MOST_TOKENS:
                del self._tokens[next(iter(self._tokens))]
            return token

    def log_in(self, token: str) -> Session | None:
        """Use a token up and return its session; None if it is unknown, used or too old."""
        with self._lock:
            ends = self._tokens.pop(token, 0.0)
            return self._start() if ends > self.clock() else None

    def find(self, cookies: str) -> Session | None:
        """Return the session that a Cookie header belongs to, None if there is none."""
        with self._lock:
            if self.everybody:
                return next(iter(self._sessions.values()), None) or self._start()
            session = self._sessions.get(cookie_parser(cookies).get(self.cookie_name, ""))
            return session if session and session.ends > self.clock() else None

    def log_out(self, session: Session) -> None:
        """Forget a session."""
        with self._lock:
            self._sessions.pop(session.cookie, None)

    def set_cookie(self, session: Session) -> str:
        """Return the value of Set-Cookie that starts a session."""
        return f"{self.cookie_name}={session.cookie}; Path=/; Max-Age={SESSION_SECONDS}; Secure; HttpOnly; SameSite=Strict"

    def _start(self) -> Session:
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), self.clock() + SESSION_SECONDS)
        self._sessions[session.cookie] = session
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session
