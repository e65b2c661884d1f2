"""TFRecord files of `tf.train.Example`, plain or compressed (gzip, zlib); a feature holds one value, or none where it is missing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import data
from ..columns import Column
from ..data import BadRows
from ..errors import UserError
from . import Raw, Reading, _examples
from ._streams import open_stream

NAMES = ("tfrecord",)
SUFFIXES = (".tfrecord", ".tfrecords", ".tfrec")
LARGEST_RECORD = 1 << 30
_LENGTH = struct.Struct("<Q").unpack_from
_RUN = 64  # records of one length in a row that are worth looking for


def recognises(head: bytes) -> bool:
    """Tell whether a file that starts so is a TFRecord file: its first eight bytes have the checksum that follows them."""
    return len(head) >= 12 and _crc_of_lengths(np.frombuffer(head, np.uint8, 8)[None])[0] == struct.unpack_from("<I", head, 8)[0]


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield blocks of about 4 MiB.

    Raises:
        UserError: the file is cut off or a checksum is wrong, a record lacks a column altogether, or (policy "error") a record
            is no `tf.train.Example` or a feature holds several values.
    """
    first, parser = 0, None
    for block in _blocks(path):
        if parser is None:
            parser = _examples.Parser(path, columns, block.record(0))
        yield from parser.parse(block, first, bad)
        first += len(block)


class Block(Sequence[bytes]):
    """Some whole records of a file.

    Args:
        content: a part of the file.
        starts, lengths: where the records stand in it, [records] int64.
    """

    def __init__(self, content: bytes, starts: np.ndarray, lengths: np.ndarray):
        self.content, self.starts, self.lengths = content, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: Any) -> Any:
        return self.record(i)

    def record(self, i: int) -> bytes:
        start = int(self.starts[i])
        return self.content[start : start + int(self.lengths[i])]


def _blocks(path: str) -> Iterator[Block]:
    """Yield the records of a file, checksums looked at.

    Raises:
        UserError: the file is cut off, or a checksum is wrong; the record is named.
    """
    count, waiting = 0, b""
    check = _checker()
    with open_stream(path) as stream:
        while content := waiting + stream.read(max(data.BLOCK_BYTES, len(waiting))):
            starts, lengths, end = _walk(path, content, count)
            if not len(starts):
                if len(content) == len(waiting):
                    raise UserError(f"{path}, record {count + 1}: the file is cut off here. Write or copy it again.")
                waiting = content
                continue
            block = Block(content, starts, lengths)
            if (wrong := check(block)) is not None:
                raise UserError(f"{path}, record {count + wrong + 1}: its checksum is wrong: the file is damaged. Write or copy it again.")
            yield block
            count, waiting = count + len(block), content[end:]


def _walk(path: str, content: bytes, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (where the whole records in some bytes start, their lengths, where the last one ends).

    Raises:
        UserError: the checksum of a length is wrong.
    """
    octets = np.frombuffer(content, np.uint8)
    parts: list[np.ndarray] = []
    starts: list[int] = []
    lengths: list[int] = []
    position, size, look = 0, len(content), 0
    while position + 12 <= size:
        (length,) = _LENGTH(content, position)
        step = length + 16
        if length > LARGEST_RECORD or position + step > size:
            break
        if len(starts) >= look:
            look = len(starts) + _RUN
            if (run := _run(content, position, step, length)) >= _RUN:
                places = position + 12 + step * np.arange(run)
                parts += [np.array([starts, lengths], np.int64), np.array([places, np.full(run, length)], np.int64)]
                starts, lengths, look, position = [], [], 0, position + step * run
                continue
        starts.append(position + 12)
        lengths.append(length)
        position += step
    found = np.concatenate([*parts, np.array([starts, lengths], np.int64)], axis=1)
    # The length after the last whole record is looked at, too: is the file cut off, or damaged?
    places = np.append(found[0], position + 12) if position + 12 <= size else found[0]
    if len(places):
        said = _uint32(octets, places - 4)
        unique, which = np.unique(_uint64(octets, places - 12), return_inverse=True)
        wrong = np.flatnonzero(_crc_of_lengths(unique.view(np.uint8).reshape(-1, 8))[which] != said)
        if len(wrong):
            where = f"{path}, record {count + int(wrong[0]) + 1}"
            raise UserError(f"{where}: the checksum of its length is wrong: the file is damaged. Write or copy it again.")
    return found[0], found[1], position


def _run(content: bytes, position: int, step: int, length: int) -> int:
    """Return how many records of one length follow each other from a position on; 0 where they are few."""
    count = (len(content) - position) // step
    if count < _RUN:
        return 0
    lengths = np.ndarray((count,), "<u8", content, position, (step,))
    if not (lengths[:_RUN] == length).all():
        return 0
    same = lengths == length
    return count if same.all() else int(np.argmin(same))


def _uint32(octets: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(octets, 4)[places].view("<u4")[:, 0]


def _uint64(octets: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(octets, 8)[places].view("<u8")[:, 0]


# ------------------------------------------------------------------ checksums (CRC-32C, "masked" as TFRecord files have it)


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _table()


def _masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _crc_of_lengths(octets: np.ndarray) -> np.ndarray:
    """Return the masked checksums of rows of bytes, [n, k] -> uint32 [n]."""
    crc = np.full(len(octets), 0xFFFFFFFF, np.uint32)
    for place in range(octets.shape[1]):
        crc = _TABLE[(crc ^ octets[:, place]) & 0xFF] ^ (crc >> np.uint32(8))
    return _masked(crc ^ np.uint32(0xFFFFFFFF))


def _checker() -> Callable[[Block], int | None]:
    """Return what finds the first record with a wrong checksum: by google_crc32c, which comes with Google's storage client."""
    try:
        from google_crc32c import value
    except ImportError:
        return _first_wrong

    def first_wrong(block: Block) -> int | None:
        content = block.content
        ends = (block.starts + block.lengths).tolist()
        crc = np.array([value(content[start:end]) for start, end in zip(block.starts.tolist(), ends)], np.uint32)
        return _difference(block, _masked(crc))

    return first_wrong


def _difference(block: Block, masked: np.ndarray) -> int | None:
    said = _uint32(np.frombuffer(block.content, np.uint8), block.starts + block.lengths)
    wrong = np.flatnonzero(said != masked)
    return int(wrong[0]) if len(wrong) else None


def _first_wrong(block: Block) -> int | None:
    """Check all records at once, a byte of each at a time, the longest first."""
    octets = np.frombuffer(block.content, np.uint8)
    order = np.argsort(-block.lengths, kind="stable")
    starts, lengths = block.starts[order], block.lengths[order]
    crc = np.full(len(block), 0xFFFFFFFF, np.uint32)
    active = len(block)
    for place in range(int(lengths[0])):
        while lengths[active - 1] <= place:
            active -= 1
        some = crc[:active]
        crc[:active] = _TABLE[(some ^ octets[starts[:active] + place]) & 0xFF] ^ (some >> np.uint32(8))
    found = np.empty_like(crc)
    found[order] = crc
    return _difference(block, _masked(found ^ np.uint32(0xFFFFFFFF)))
