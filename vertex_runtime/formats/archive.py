"""A tar archive of folders per label, such as the public stack_overflow_16k.tar.gz, read straight from the archive.

Where it holds `train/<label>/*.txt` and `test/<label>/*.txt`, its path says which is meant: `stack_overflow_16k.tar.gz:train`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence

from ..columns import Column
from ..data import BadRows, file_column, open_binary, split_part
from ..errors import UserError
from . import Raw, Reading, folder

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


def _members(path: str, endings: tuple[str, ...]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (label, path, content) of the files of a part that end so."""
    name, part = split_part(path)
    found = False
    try:
        with open_binary(name) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                words = [word for word in member.name.split("/") if word not in ("", ".")]
                if not member.isfile() or len(words) < 2 or not words[-1].lower().endswith(endings) or words[-1].startswith("."):
                    continue
                if part and (len(words) < 3 or words[-3] != part):
                    continue
                content = archive.extractfile(member)
                found = True
                yield words[-2], f"{name}:{member.name}", content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name} is no whole tar archive: {str(error).splitlines()[0]}. Write or copy it again.") from None
    if not found:
        raise UserError(f"{name} holds no {part + '/' if part else ''}<label>/<file>{endings[0]}. Name another archive.")


def parts(path: str) -> set[str]:
    """Return which of `train` and `test` an archive has folders of labels in; reads it until both are found."""
    try:
        found: set[str] = set()
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                words = [word for word in member.name.split("/") if word not in ("", ".")]
                found |= {"train", "test"} & set(words[-3:-2]) if member.isfile() else set()
                if len(found) == 2:
                    break
        return found
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return set()
