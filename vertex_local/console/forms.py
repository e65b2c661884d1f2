"""What a browser's form sends: fields and files."""

from __future__ import annotations

import email.parser
import email.policy
import urllib.parse
from dataclasses import dataclass, field

from ..serve.rest import ApiError

URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_MOST_FIELDS = 1000


@dataclass
class Form:
    """Fields by their name, the last value of each, and the contents of files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """Return a field without spaces around it, "" if it was not sent."""
        return self.fields.get(name, "").strip()


def read(kind: str, body: bytes) -> Form:
    """Return the form in a body of the Content-Type `kind`.

    Raises:
        ApiError: it is none.
    """
    plain = kind.partition(";")[0].strip().lower()
    try:
        if plain == URLENCODED:
            pairs = urllib.parse.parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
            return Form({name: value.replace("\r\n", "\n") for name, value in pairs})
        if plain == MULTIPART:
            return _multipart(kind, body)
    except ValueError as error:
        raise ApiError("INVALID_ARGUMENT", f"the form cannot be read ({error}): load its page again.") from None
    raise ApiError("INVALID_ARGUMENT", f"a form must be sent as {URLENCODED} or {MULTIPART}; got {plain[:100]!r}.", code=415)


def _multipart(kind: str, body: bytes) -> Form:
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n" + body)
    if not message.is_multipart():
        raise ValueError("it has no parts")
    form = Form()
    for part in message.iter_parts():
        name = part.get_param("name", header="Content-Disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise ValueError("a part has no name")
        if part.get_filename() is not None:
            form.files[name] = content
        else:
            form.fields[name] = content.decode("utf-8").replace("\r\n", "\n")
    return form
