"""The service's certificate, made at each start; only clients that get the file of its authority trust it."""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import certifi
import trustme

from ..errors import UserError
from .guards import ADDRESS

DAYS = 30
_OWN = b"# the local service's own authority; those before it were trusted already\n"


@dataclass(frozen=True)
class Files:
    """The server's key and certificate, its authority's certificate, and a bundle of that and all authorities trusted before."""

    key: Path
    certificate: Path
    authority: Path
    bundle: Path

    def context(self) -> ssl.SSLContext:
        """Return a server's TLS context."""
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_cert_chain(self.certificate, self.key)
        return found


def make(folder: Path) -> Files:
    """Make a new authority, and a certificate for localhost, in `folder`; the authority's key is not kept."""
    files = Files(*(folder / name for name in ("key.pem", "cert.pem", "ca.pem", "ca-bundle.pem")))
    authority = trustme.CA(organization_name="vertex_local")
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=DAYS)
    leaf = authority.issue_cert("localhost", ADDRESS, common_name="localhost", not_after=end)
    own = authority.cert_pem.bytes()
    trusted = _trusted()
    write_private(files.key, leaf.private_key_pem.bytes())
    write_private(files.certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    write_private(files.authority, own)
    write_private(files.bundle, trusted.rstrip() + b"\n" + _OWN + own)
    return files


def _trusted() -> bytes:
    """Return the certificates that `requests` trusts in this environment, without the authority of an earlier start."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = Path(os.environ.get(name) or "/nonexistent")
        if path.is_file():
            try:
                return path.read_bytes().partition(_OWN)[0]
            except OSError as error:
                raise UserError(f"{name}: {path} cannot be read: {error.strerror}. Name a file of certificates, or unset it.") from None
    return Path(certifi.where()).read_bytes()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, replacing an earlier one in one step."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)
