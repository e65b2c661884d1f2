"""The Python SDK as the submitting scripts use it: where the service is, with which credentials, and its errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.auth
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, InvalidOperation, RefreshError
from google.oauth2.credentials import Credentials
from requests.exceptions import ConnectionError, RequestException, Timeout

from vertex_local.errors import UserError, quoted
from vertex_local.job import schema, settings

from . import cloud, jobs
from .cloud import CloudError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
CREATE_SECONDS = 60.0  # for the answer to a creation, which is sent once
TOKEN_MINUTES = 10  # after which gcloud is asked for a token again; it gives one that lasts longer


def aliases(text: str) -> list[str]:
    """Parse --version_aliases for argparse."""
    found = text.split(",")
    for alias in found:
        if not re.fullmatch("[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]", alias):
            problem = "an alias has 2 to 128 letters, digits and '-', begins with a small letter and ends with that or a digit"
            raise argparse.ArgumentTypeError(f"{problem}; got {alias[:100]!r}.")
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the service is, and with which token to ask it."""
    parser.add_argument(
        "--api_endpoint", metavar="HOST:PORT", type=_endpoint, default=cloud.gcloud_endpoint(),
        help="another service than the region's, over REST; http:// before it for one without TLS (default: the one gcloud was told of)",
    )  # fmt: skip
    token_file = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    parser.add_argument("--token_file", metavar="FILE", default=token_file, help="file with an access token (default: as gcloud was told)")


def _endpoint(text: str) -> str:
    if not re.fullmatch(r"(https?://)?[\w.\[\]:-]+/?", text):
        raise argparse.ArgumentTypeError(f"takes HOST:PORT, or http:// or https:// and that; got {text[:100]!r}.")
    return (text if "//" in text else f"https://{text}").rstrip("/")


@dataclass(frozen=True)
class Service:
    """The API in one region, for one project: its URL without a slash at the end, and whether that is not Google's own."""

    project: str
    region: str
    url: str
    redirected: bool
    credentials: Any

    @property
    def parent(self) -> str:
        """The resource under which jobs are made."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def options(self) -> dict[str, Any]:
        """What `aiplatform.init` is told: gRPC, the SDK's default, for Google's own service, and REST for any other."""
        if not self.redirected:
            return {"credentials": self.credentials}
        # REST takes http:// in an endpoint, and what has no scheme is https://.
        return {"credentials": self.credentials, "api_transport": "rest", "api_endpoint": self.url.removeprefix("https://")}

    def ask(self, api: str, method: str, **request: Any) -> Any:
        """Return what a method of one of the API's services, such as ModelService, answers; a list is read to its end.

        Raises:
            CloudError: the service refused.
        """
        with errors(self.project):
            answer = getattr(client(self, api), method)(**request)
            return list(answer) if hasattr(answer, "pages") else answer


def connect(values: Mapping[str, str], args: argparse.Namespace) -> Service:
    """Return the service that flags and settings name; nothing is sent yet, and a dry run needs no credentials."""
    url = args.api_endpoint or f"https://{values['region']}-aiplatform.googleapis.com"
    found = AnonymousCredentials() if args.dry_run else credentials(args.token_file, local=cloud.is_local(args.api_endpoint))
    if url.startswith("http://") and not cloud.is_local(url) and not isinstance(found, AnonymousCredentials):
        raise CloudError(f"{url}: an access token is not sent over plain HTTP; use https://.")
    return Service(values["project"], values["region"], url, bool(args.api_endpoint), found)


def start(service: Service, bucket: str) -> Any:
    """Return the SDK's high-level module, set up for a service."""
    from google.cloud import aiplatform

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("google.cloud.aiplatform")]:
        logging.getLogger(name).setLevel(logging.WARNING)  # what it would say is said by us
    aiplatform.init(project=service.project, location=service.region, staging_bucket=f"gs://{bucket}", **service.options)
    return aiplatform


# ------------------------------------------------------------------ jobs


def create(service: Service, job: jobs.Job, options: Mapping[str, Any]) -> Any:
    """Create a job and return the service's message of it. It is sent once: whether a lost answer was a yes, nobody knows.

    Args:
        options: other fields of the request, such as an id of one's own.
    """
    field, limits = job.kind.field, {"retry": None, "timeout": CREATE_SECONDS}
    try:
        return service.ask(job.kind.service, f"create_{field}", parent=service.parent, **{field: jobs.wrap(job)}, **limits, **options)
    except CloudError as error:
        lost = (exceptions.ServerError, exceptions.RetryError, ConnectionError, Timeout)
        if isinstance(error.__cause__, lost):
            raise CloudError(f"{error} It may have been created all the same: look before you send it again.") from None
        raise


def get(service: Service, kind: jobs.Kind, name: str) -> dict[str, Any]:
    """Return a job in the API's JSON form."""
    return schema.to_fields(service.ask(kind.service, f"get_{kind.field}", name=name)._pb)


@functools.cache
def client(service: Service, name: str) -> Any:
    """Return a client of one of the API's services, such as ModelService, set up as `start` sets up the SDK."""
    from google.cloud import aiplatform_v1

    endpoint = {"api_endpoint": service.options.get("api_endpoint") or service.url.removeprefix("https://")}
    made = getattr(aiplatform_v1, f"{name}Client")
    return made(credentials=service.credentials, client_options=endpoint, transport="rest" if service.redirected else None)


class Named:
    """A model or an endpoint.

    Args:
        kind: model or endpoint.
        name: its id, its full name, or its display name if no other has that.
        flag: what errors begin with.

    Raises:
        UserError: there is none. CloudError: the service refused.
    """

    def __init__(self, service: Service, kind: str, name: str, flag: str):
        self.service, self._api = service, f"{kind.capitalize()}Service"
        self.name = self._full_name(kind, name) or self._by_display_name(kind, name, flag)

    @property
    def number(self) -> str:
        """Its id."""
        return self.name.rpartition("/")[2]

    def ask(self, method: str, **request: Any) -> Any:
        """Return what the service answers to one of the methods about its kind."""
        return self.service.ask(self._api, method, **request)

    def _full_name(self, kind: str, name: str) -> str | None:
        if not re.fullmatch(rf"projects/.+/{kind}s/[\w-]+|[\w-]{{1,63}}", name):
            return None
        full = name if "/" in name else f"{self.service.parent}/{kind}s/{name}"
        try:
            self.ask(f"get_{kind}", name=full)
            return full
        except CloudError as error:
            if not isinstance(error.__cause__, (exceptions.NotFound, exceptions.InvalidArgument)):
                raise
            return None  # it is a display name, or there is none

    def _by_display_name(self, kind: str, name: str, flag: str) -> str:
        wanted = {"parent": self.service.parent, "filter": f'display_name="{name}"'}
        found = [] if '"' in name else self.ask(f"list_{kind}s", request=wanted)
        numbers = [each.name.partition("@")[0].rpartition("/")[2] for each in found]
        if len(found) == 1:
            return f"{self.service.parent}/{kind}s/{numbers[0]}"
        if found:
            raise UserError(f"{flag}: several {kind}s are called {quoted(name)}; give the id: {', '.join(numbers)}.")
        raise UserError(f"{flag}: there is no {kind} {quoted(name)} in {self.service.parent}; see `gcloud ai {kind}s list`.")


def existing(kind: Any, flag: str, name: str) -> Any:
    """Return the SDK's object of an id or a full name; `kind` is the SDK's class, and errors begin with `flag`."""
    try:
        return kind(name)
    except (GoogleAuthError, RequestException):  # some of which are ValueErrors, too
        raise
    except ValueError as error:  # it is no name, or that of another kind of resource
        remedy = f"give the id or the full name of a {kind.__name__} in this project and region"
        raise UserError(f"{flag}: {quoted(name)}: {reason(error).rstrip('.')}; {remedy}.") from None


# ------------------------------------------------------------------ credentials


def credentials(token_file: str | None, local: bool = False) -> Any:
    """Return credentials: of a token's file; none, where gcloud is told to send none or the service is on this machine;
    those that Google's libraries find; else those of gcloud's own login, with a note.

    Raises:
        SettingsError: the file cannot be read. CloudError: there are none.
    """
    if token_file:
        try:
            return Credentials(Path(token_file).read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise settings.SettingsError(
                f"--token_file: {token_file}: cannot be read: {error}. Name a file with an access token."
            ) from None
    if local or os.environ.get("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "").lower() in ("1", "true", "yes", "on"):
        return AnonymousCredentials()
    try:
        return google.auth.default([SCOPE])[0]
    except DefaultCredentialsError as error:
        if shutil.which("gcloud") is None:
            raise CloudError(f"no credentials are found: {LOGIN}.") from error
    found = Credentials(None, refresh_handler=_gcloud_token, scopes=[SCOPE])
    found.token, found.expiry = _gcloud_token(None, [])
    print("note: no application default credentials; gcloud's own login is used.", file=sys.stderr)
    return found


def _gcloud_token(request: object, scopes: object) -> tuple[str, datetime.datetime]:
    """Return the token of gcloud's login and when to ask again, in UTC without a zone as google-auth has it."""
    token = cloud.run(["gcloud", "auth", "print-access-token"], show=False).strip()
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    return token, now + datetime.timedelta(minutes=TOKEN_MINUTES)


# ------------------------------------------------------------------ errors


@contextlib.contextmanager
def errors(project: str) -> Iterator[None]:
    """Turn what the SDK and its transports raise into a CloudError of one line, which names the command that helps.

    What the SDK itself refuses, such as a name that is too long, becomes a UserError.
    """
    try:
        yield
    except (RefreshError, InvalidOperation) as error:  # after a 401: it would be asked again with fresh ones
        raise CloudError(f"the service refuses the credentials ({reason(error).rstrip('.')}): {LOGIN}.") from error
    except RequestException as error:
        raise CloudError(f"the service does not answer: {reason(error)}. See --region and the network, then start again.") from error
    except (exceptions.GoogleAPIError, GoogleAuthError, RuntimeError) as error:
        raise CloudError(" ".join(filter(None, (f"the service answered: {reason(error)}", remedy(error, project))))) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the SDK refuses it before it is sent: {reason(error).rstrip('.')}; give another value.") from error


def reason(error: Exception) -> str:
    """Return what a service said of an error, in one line: its own message, and which fields it is about."""
    # requests wraps what failed in the names of its own classes.
    refused = re.match(r"HTTPS?ConnectionPool\(host='(.*?)', port=(\d+)\).*(\[Errno [^\]]*\] [^'\")]+)", str(error), re.DOTALL)
    text = "{}:{}: {}".format(*refused.groups()) if refused else str(error)
    if getattr(error, "code", None) and getattr(error, "message", None):
        text = f"{int(error.code)}: {error.message}"  # type: ignore[attr-defined]
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            text = f"{int(error.code)}: {error.response.json()['error']['message']}"  # type: ignore[attr-defined]
    named = [f"{field}: {what}" for field, what in _violations(error) if field not in text]
    return " ".join(" ".join([text, *([f"({'; '.join(named)})"] if named else [])]).split())[:2000]


def _violations(error: Exception) -> Iterator[tuple[str, str]]:
    """Yield the fields that an error is about and what is wrong with each: JSON from REST, messages from gRPC."""
    for detail in getattr(error, "details", None) or ():
        if isinstance(detail, Mapping):
            yield from ((each.get("field", ""), each.get("description", "")) for each in detail.get("fieldViolations", ()))
        else:
            yield from ((each.field, each.description) for each in getattr(detail, "field_violations", ()))


def remedy(error: Exception, project: str) -> str:
    """Return what to do about a permission, an API that is off, or a quota; empty for any other error."""
    if getattr(error, "reason", None) == "SERVICE_DISABLED":
        return f"Enable it: gcloud services enable aiplatform.googleapis.com --project={project}"
    if isinstance(error, exceptions.Forbidden) and "quota project" in str(error):
        return f"Name one: gcloud auth application-default set-quota-project {project}"
    if isinstance(error, exceptions.Forbidden):
        return (
            f"An owner can allow it: gcloud projects add-iam-policy-binding {project} "
            "--member=user:YOU --role=roles/aiplatform.user"
        )  # fmt: skip
    if isinstance(error, exceptions.Unauthorized):
        return f"To log in, {LOGIN}."
    if isinstance(error, exceptions.TooManyRequests):
        return f"The quotas: gcloud beta quotas info list --service=aiplatform.googleapis.com --project={project}"
    return ""
