"""Leads a browser's requests to the console's pages, and makes answers of what they return."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import urllib.parse
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from ..local.job_record import plain_state
from ..serve import messages
from ..serve.endpoint import CONSOLE_TOKEN as TOKEN_PATH
from ..serve.endpoint import Endpoint
from ..serve.local import Local
from ..serve.rest import Answer, ApiError, Request
from ..serve.rpc import Method
from ..serve.server import Route, route
from . import forms, text
from .curves import Curves
from .login import Logins, Session

BASE = "/console"
LOGIN = f"{BASE}/login"
_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'"
HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class View:
    """What a page shows: its template, which gets `context`."""

    template: str
    context: dict[str, Any]


@dataclass
class Visit:
    """One request to a page: who asks, what the address and the form say."""

    session: Session
    request: Request
    console: Console
    form: forms.Form = field(default_factory=forms.Form)

    @property
    def query(self) -> Mapping[str, str]:
        """The address's parameters."""
        return self.request.query

    @property
    def parent(self) -> str:
        """The project and region that are looked at: `projects/P/locations/L`."""
        return self.query.get("parent") or self.console.parent

    @property
    def local(self) -> Local:
        """The service's folders and records."""
        return self.console.local

    def name(self, kind: str, number: str) -> str:
        """Return a resource's full name, given its kind (`customJobs`) and id."""
        return f"{self.parent}/{kind}/{number}"

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        """Call an RPC of the service, `ListCustomJobs`, with these fields of its request; all is in the API's JSON form.

        Raises:
            ApiError: what the API answers.
        """
        method = self.console.methods[rpc]
        return messages.to_json(method.call(messages.parse(fields, method.request())))


# A page's function: it takes a visit and the names in its path.
Function = Callable[..., "View | Answer"]
_pages: list[tuple[str, str, Function]] = []


def page(method: str, path: str) -> Callable[[Function], Function]:
    """Register the function of a page below `/console`, whose path has `{name}` for one part and `{name*}` for the rest."""

    def register(function: Function) -> Function:
        _pages.append((method, path, function))
        return function

    return register


_looked_at: ContextVar[str] = ContextVar("parent", default="")  # the project and region that the request's address names


def href(path: str, **query: Any) -> str:
    """Return the address of a page with parameters, of the project and region that are looked at; empty ones are left out."""
    given = {name: value for name, value in {"parent": _looked_at.get(), **query}.items() if value not in (None, "")}
    return f"{BASE}{urllib.parse.quote(os.fsencode(path))}{'?' * bool(given)}{urllib.parse.urlencode(given)}"


def redirect(path: str, said: str = "", **query: Any) -> Answer:
    """Return what leads the browser on to a page after a change; `said` is shown there once."""
    return _see_other(href(path, said=said, **query))


class Console:
    """The pages of one service.

    Args:
        everybody: let in whoever comes, as `--no_token` asks.
    """

    def __init__(self, local: Local, methods: list[Method], everybody: bool = False):
        self.local, self.logins = local, Logins(everybody=everybody)
        self.parent, self._url = "", ""  # known once the service listens
        self.curves = Curves()
        self.methods = {method.name: method for method in methods}
        for module in pkgutil.iter_modules([str(_HERE / "pages")]):
            importlib.import_module(f"{__package__}.pages.{module.name}")

    def opened(self, endpoint: Endpoint) -> None:
        """Take over where the service listens, and the project and region that are shown where an address names none."""
        self.parent, self._url = f"projects/{endpoint.project}/locations/{endpoint.region}", endpoint.url
        self.logins.port = int(endpoint.address.rpartition(":")[2])

    def address(self) -> str:
        """Return an address that logs one browser in."""
        return f"{self._url}{BASE}/" if self.logins.everybody else f"{self._url}{LOGIN}?token={self.logins.new_token()}"

    def routes(self) -> list[Route]:
        """Return the routes of all pages."""
        found = [
            route("GET", "/", lambda request: _see_other(f"{BASE}/")),
            route("GET", BASE, lambda request: _see_other(f"{BASE}/")),
            route("GET", LOGIN, self._log_in),
            route("GET", f"{BASE}/static/{{name}}", _static),
            route("POST", TOKEN_PATH, lambda request: {"address": self.address()}),
        ]
        return found + [route(method, BASE + path, self._handler(function)) for method, path, function in _pages]

    # ------------------------------------------------------------------ requests

    def _log_in(self, request: Request) -> Answer:
        session = self.logins.log_in(request.query.get("token", ""))
        if session is None:
            return self._closed("This address has been used already, or belongs to an earlier start of the service.")
        answer = _see_other(f"{BASE}/")
        answer.headers["Set-Cookie"] = self.logins.set_cookie(session)
        return answer

    def _closed(self, why: str) -> Answer:
        return self._html("login.html", 401, why=why, state=str(self.local.state))

    def _handler(self, function: Function) -> Callable[..., Answer]:
        def handle(request: Request, **names: str) -> Answer:
            _looked_at.set(request.query.get("parent", ""))
            session = self.logins.find(request.headers.get("Cookie", ""))
            if session is None:
                return self._closed("The console is open to whoever started the service.")
            visit = Visit(session, request, self)
            try:
                if request.method != "GET":
                    visit.form = self._form(request, session)
                result = function(visit, **names)
            except ApiError as error:
                back = request.headers.get("Referer", f"{BASE}/")
                return self._html("error.html", error.code, session, visit=visit, error=error, back=back)
            if isinstance(result, View):
                said = visit.query.get("said", "")[:300]
                return self._html(result.template, 200, session, visit=visit, said=said, **result.context)
            result.headers = {**HEADERS, **result.headers}
            return result

        return handle

    def _form(self, request: Request, session: Session) -> forms.Form:
        form = forms.read(request.headers.get("Content-Type", ""), request.stream.read(request.length))
        if not session.sent(form.fields.pop("secret", "")):
            raise ApiError("PERMISSION_DENIED", "this form is of an earlier login: load its page again, and send it from there.")
        return form

    # ------------------------------------------------------------------ pages

    @cached_property
    def _templates(self) -> jinja2.Environment:
        found = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
            undefined=jinja2.ChainableUndefined,  # the API's JSON leaves out what is empty
        )  # fmt: skip
        found.filters.update(
            ago=text.ago, duration=text.duration, number=text.number, state=plain_state, id=text.last_part,
            json=lambda value: json.dumps(value, indent=1, ensure_ascii=False), yaml=text.yaml,
        )  # fmt: skip
        found.globals.update(href=href, kinds=text.KINDS, base=BASE)
        return found

    def _html(self, template: str, code: int = 200, session: Session | None = None, **context: Any) -> Answer:
        given = {"session": session, "parent": self.parent, "visit": None, "said": "", **context}
        given["parts"] = self._templates.get_template("parts.html").make_module(given)  # macros that see what the page sees
        page = self._templates.get_template(template).render(given)
        return Answer(code, page.encode(errors="replace"), {**HEADERS, "Content-Type": "text/html; charset=utf-8"})


def _see_other(address: str) -> Answer:
    return Answer(303, b"", {**HEADERS, "Location": address, "Content-Type": "text/plain"})


def _static(request: Request, name: str) -> Answer:
    path = _HERE / "static" / name
    if path.suffix not in _STATIC or not path.is_file():  # the route's name has no slash
        raise ApiError("NOT_FOUND", f"there is no {name[:80]}.")
    headers = {**HEADERS, "Content-Type": _STATIC[path.suffix], "Cache-Control": "private, max-age=3600"}
    return Answer(200, path.read_bytes(), headers)
