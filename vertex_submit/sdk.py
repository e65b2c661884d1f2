"""The Python SDK as the submitting scripts use it: where to ask, with which credentials, and its errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vertex_local.job import settings

from .cloud import CloudError, gcloud_endpoint, is_local


def aliases(text: str) -> list[str]:
    """Parse --version_aliases for argparse."""
    found = text.split(",")
    for alias in found:
        if not re.fullmatch("[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]", alias):
            problem = "an alias has 2 to 128 letters, digits and '-', begins with a small letter and ends with that or a digit"
            raise argparse.ArgumentTypeError(f"{problem}; got {alias!r}.")
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the scripts that use the SDK: where the service is, and with which token to ask it."""
    override, token_file = gcloud_endpoint(), os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    endpoint = urllib.parse.urlsplit(override).netloc if override and is_local(override) else None
    parser.add_argument(
        "--api_endpoint", metavar="HOST:PORT", default=endpoint,
        help="another service than the region's, over REST with TLS (default: the local one that gcloud was told of, if any)",
    )  # fmt: skip
    parser.add_argument("--token_file", metavar="FILE", default=token_file, help="file with an access token (default: as gcloud was told)")


def start(values: Mapping[str, str], args: argparse.Namespace) -> Any:
    """Return the SDK, set up for a project; it asks nobody in a dry run, and `args.api_endpoint` where that is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Google's, about the Python at hand
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import aiplatform
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("google.cloud.aiplatform")]:
        logging.getLogger(name).setLevel(logging.WARNING)  # what it would say is said by us
    options: dict[str, Any] = {}
    if args.api_endpoint or args.dry_run:
        options["api_transport"] = "rest"
    if args.api_endpoint:
        options["api_endpoint"] = args.api_endpoint
    if args.token_file and not args.dry_run:
        options["credentials"] = credentials(args.token_file)
    elif args.dry_run or is_local(args.api_endpoint):
        options["credentials"] = AnonymousCredentials()
    bucket = f"gs://{values['bucket']}"
    aiplatform.init(project=values["project"], location=values["region"], staging_bucket=bucket, **options)
    return aiplatform


def credentials(path: str | None) -> Any:
    """Return credentials with the token in a file; None, for those that Google's libraries find, without a file."""
    from google.oauth2.credentials import Credentials

    try:
        return Credentials(Path(path).read_text(encoding="utf-8").strip()) if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise settings.SettingsError(f"--token_file: {path}: cannot be read: {error}") from None


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn what the SDK and its transports raise into a CloudError of one line."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    try:
        yield
    except DefaultCredentialsError:
        remedy = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        raise CloudError(f"the SDK finds no credentials: {remedy}.") from None
    except (GoogleAPIError, GoogleAuthError, RuntimeError) as error:
        raise CloudError(f"the service answered: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return what a service said of an error, in one line: its own message where its answer has one."""
    try:
        text = f"{error.code}: {error.response.json()['error']['message']}"  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError, ValueError):
        text = str(error)
    return " ".join(text.split())[:2000]
