"""A tar archive of folders per label, such as the public stack_overflow_16k.tar.gz, read straight from the archive.

Where it holds `train/<label>/*.txt` and `test/<label>/*.txt`, its path says which is meant: `stack_overflow_16k.tar.gz:train`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence

from ..columns import Column
from ..data import BadRows, file_column, split_part
from ..errors import UserError
from . import Raw, Reading, folder
from ._streams import Stream

NAMES = ("tar archive",)
SUFFIXES = (".tar", ".tar.gz", ".tgz")


def recognises(head: bytes) -> bool:
    """Tell whether a file that starts so is a tar archive."""
    return head[257:262] == b"ustar"


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield the files of a part in the archive's order, in blocks of about 4 MiB.

    Raises:
        UserError: the columns are not one text or image and its label, the archive is broken or has no such files, or
            (policy "error") a file is empty, not UTF-8, or no whole image.
    """
    column = file_column(columns, reading.labels)
    if column is None:
        raise UserError(f"{path} is an archive, which is read only where COLUMNS are one Text or Image and its label. Name other files.")
    return folder.blocks(_members(path, folder.endings(column)), column, reading.labels[0], bad)


class _Source:
    """A file's bytes for tarfile, which does not say where an archive is cut off between two of its files."""

    def __init__(self, stream: Stream):
        self.stream, self.last = stream, b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.last = data[-512:] or self.last
        return data


def _entries(path: str) -> Iterator[tuple[list[str], str, bytes]]:
    """Yield (words of the name, name, content) of the files of an archive.

    Raises:
        UserError: it is cut off or broken.
    """
    with Stream(path) as stream:
        source = _Source(stream)
        try:
            with tarfile.open(fileobj=source, mode="r|*") as archive:  # type: ignore[call-overload]
                for member in archive:
                    if member.isfile() and (file := archive.extractfile(member)):
                        yield [word for word in member.name.split("/") if word not in ("", ".")], member.name, file.read()
            if source.last.strip(b"\0"):
                raise tarfile.ReadError("its end is missing")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} is no whole tar archive: {str(error).splitlines()[0]}. Write or copy it again.") from None


def _members(path: str, endings: tuple[str, ...]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (label, path, content) of the files of a part that end so."""
    file, part = split_part(path)
    found = False
    for words, name, content in _entries(file):
        if len(words) < 2 or not words[-1].lower().endswith(endings) or words[-1].startswith("."):
            continue
        if part and (len(words) < 3 or words[-3] != part):
            continue
        found = True
        yield words[-2], f"{file}:{name}", content
    if not found:
        raise UserError(f"{file} holds no {part + '/' if part else ''}<label>/<file>{endings[0]}. Name another archive.")


def parts(path: str) -> set[str]:
    """Return which of `train` and `test` an archive has folders of labels in; reads it until both are found."""
    found: set[str] = set()
    try:
        for words, _, _ in _entries(path):
            found |= {"train", "test"} & set(words[-3:-2])
            if len(found) == 2:
                break
    except UserError:  # said when its rows are read
        pass
    return found
