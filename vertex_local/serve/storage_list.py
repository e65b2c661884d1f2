"""Lists of a bucket's objects in the order of their names, read folder by folder, so that a page does not read the whole bucket."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .rest import ApiError
from .storage_files import Bucket, is_name, is_object


@dataclass(frozen=True)
class Entry:
    """An object in a list; with `is_prefix`, a prefix that stands for all objects whose names begin with it."""

    name: str
    is_prefix: bool = False


@dataclass(frozen=True)
class Listing:
    """The parameters of one list; `after` is the last name of the page before, empty for the first page."""

    prefix: str = ""
    delimiter: str = ""
    start: bytes = b""
    end: bytes = b""
    after: bytes = b""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Listing:
        """Return the parameters of a request."""
        start, end = (query.get(name, "").encode(errors="replace") for name in ("startOffset", "endOffset"))
        return cls(query.get("prefix", ""), query.get("delimiter", ""), start, end, decoded(query.get("pageToken", "")))

    def entries(self, bucket: Bucket) -> Iterator[Entry]:
        """Yield the entries after the page before, in the order of the names in UTF-8."""
        last = None
        for entry in self._found(bucket):
            key = entry.name.encode()
            if key < self.start and not entry.is_prefix:
                continue
            if self.end and key >= self.end:
                return
            cut = entry.name.find(self.delimiter, len(self.prefix)) if self.delimiter else -1
            if cut >= 0:
                entry = Entry(entry.name[: cut + len(self.delimiter)], is_prefix=True)
            if entry == last or (self.after and entry.name.encode() <= self.after):
                continue
            last = entry
            yield entry

    def _found(self, bucket: Bucket) -> Iterator[Entry]:
        head, slash, _ = self.prefix.rpartition("/")
        if not head:
            yield from self._below(bucket, bucket.folder, "")
        elif is_name(head + slash):  # otherwise no object has such a name
            yield from self._below(bucket, bucket.path(head), head + slash)

    def _below(self, bucket: Bucket, folder: Path, base: str) -> Iterator[Entry]:
        """Yield the objects in a folder, whose name in the bucket is `base`; a folder that the delimiter cuts off is one entry."""
        if base and base.startswith(self.prefix) and bucket.find(base):
            yield Entry(base)
        for name in sorted(_names(folder, base), key=str.encode):
            if not name.endswith("/"):
                if name.startswith(self.prefix):
                    yield Entry(name)
            elif self._may_hold_some(name):
                below = folder / name[len(base) : -1]
                if not self._is_cut_off(name):
                    yield from self._below(bucket, below, name)
                elif any(Listing()._below(bucket, below, name)):
                    yield Entry(name, is_prefix=True)

    def _may_hold_some(self, name: str) -> bool:
        """Return whether objects in the folder of that name may be in this list, after the page before."""
        key = name.encode()
        bound = max(self.after, self.start)
        return (name.startswith(self.prefix) or self.prefix.startswith(name)) and (key > bound or bound.startswith(key))

    def _is_cut_off(self, name: str) -> bool:
        offsets = self.start or self.end  # these must be compared with whole names
        return self.delimiter == "/" and not offsets and name.startswith(self.prefix) and len(name) > len(self.prefix)


def _names(folder: Path, base: str) -> list[str]:
    """Return the names of a folder's files, and of its folders with a "/" at the end; without links."""
    names = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                name, is_folder = f"{base}{entry.name}", entry.is_dir(follow_symlinks=False)
                if is_object(name) and (is_folder or entry.is_file(follow_symlinks=False)):
                    names.append(f"{name}/" if is_folder else name)
    except (FileNotFoundError, NotADirectoryError):
        return []  # removed meanwhile
    return names


def page(entries: Iterable[Entry], size: int) -> tuple[list[Entry], str]:
    """Return the first `size` entries and the token of the next page, "" after the last."""
    found: list[Entry] = []
    for entry in entries:
        if len(found) == size:
            return found, base64.urlsafe_b64encode(found[-1].name.encode()).decode()
        found.append(entry)
    return found, ""


def decoded(token: str) -> bytes:
    """Return the last name of the page that gave `token`."""
    try:
        return base64.urlsafe_b64decode(token)
    except ValueError:
        raise ApiError(
            "INVALID_ARGUMENT", f"pageToken {token[:100]!r} is not one of this list's; start from the first page.", "pageToken"
        ) from None
