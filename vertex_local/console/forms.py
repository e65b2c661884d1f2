"""What a browser's form sends: fields and files."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from ..serve.rest import ApiError

URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


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
    plain, options = parse_options_header(kind)
    if plain not in (URLENCODED, MULTIPART):
        raise ApiError("INVALID_ARGUMENT", f"a form must be sent as {URLENCODED} or {MULTIPART}; got {plain[:100]!r}.", code=415)
    try:
        parser = FormDataParser(max_form_memory_size=None, silent=False)
        _, fields, files = parser.parse(io.BytesIO(body), plain, len(body), options)
    except (ValueError, RequestEntityTooLarge) as error:
        raise ApiError("INVALID_ARGUMENT", f"the form cannot be read ({error}): load its page again.") from None
    texts = {name: values[-1].replace("\r\n", "\n") for name, values in fields.lists()}
    return Form(texts, {name: file.read() for name, file in files.items()})
