"""TFRecord files of `tf.train.Example`, plain or compressed (gzip, zlib); a feature holds one value, or none where it is missing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .. import data
from ..ahead import THREADS, in_threads
from ..columns import Column
from ..data import BadRows
from ..errors import UserError
from . import Raw, Reading, _examples
from ._streams import Stream

NAMES = ("tfrecord",)
SUFFIXES = (".tfrecord", ".tfrecords", ".tfrec")
LARGEST_RECORD = 1 << 30
_LENGTH = struct.Struct("<Q").unpack_from
_CHAINED = 1024  # records whose checksums are looked at together
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
    check = _checker()
    parser: _examples.Parser | None = None

    def blocks() -> Iterator[tuple[int, Block]]:
        nonlocal parser
        first = 0
        for block in _blocks(path):
            if parser is None:  # nothing is made of a record before its checksum is looked at
                _verify(path, block.part(0, 1), 0, check)
                parser = _examples.Parser(path, columns, block.record(0))
            yield first, block
            first += len(block)

    def parsed(numbered: tuple[int, Block]) -> tuple[int, Block, pa.RecordBatch | None]:
        _verify(path, numbered[1], numbered[0], check)
        return *numbered, parser.parse(numbered[1])

    for first, block, batch in in_threads(parsed, blocks(), THREADS):
        if batch is not None:
            yield Raw(batch, lambda i, first=first: f"{path}, row {first + i + 1}")
        else:
            yield from parser.one_by_one(block, first, bad)


@dataclass(frozen=True)
class Block:
    """Some whole records of a file.

    Args:
        content: a part of the file.
        starts, lengths: where the records stand in it, [records] int64.
    """

    content: memoryview
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, first: int, end: int) -> Block:
        """Return the records from number `first` to before number `end`."""
        return Block(self.content, self.starts[first:end], self.lengths[first:end])

    def record(self, i: int) -> bytes:
        start = int(self.starts[i])
        return bytes(self.content[start : start + int(self.lengths[i])])


def _blocks(path: str) -> Iterator[Block]:
    """Yield the records of a file, the checksums of their lengths looked at.

    Raises:
        UserError: the file is cut off, or such a checksum is wrong; the record is named.
    """
    count = 0
    waiting: bytes | memoryview = b""
    with Stream(path) as stream:
        while content := stream.read_after(waiting, max(data.BLOCK_BYTES, len(waiting))):
            starts, lengths, end = _walk(path, content, count)
            if not len(starts):
                if len(content) == len(waiting):
                    raise UserError(f"{path}, record {count + 1}: the file is cut off here. Write or copy it again.")
                waiting = content
                continue
            yield Block(content, starts, lengths)
            count, waiting = count + len(starts), content[end:].tobytes()


def _verify(path: str, block: Block, first: int, check: Callable[[Block], int | None]) -> None:
    """Look at the checksums of the records of a block, whose first one is number `first` (from 0) of the file.

    Raises:
        UserError: one is wrong; the record is named.
    """
    if (wrong := check(block)) is not None:
        raise UserError(f"{path}, record {first + wrong + 1}: its checksum is wrong: the file is damaged. Write or copy it again.")


def _walk(path: str, content: memoryview, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (where the whole records in some bytes start, their lengths, where the last one ends).

    Raises:
        UserError: the checksum of a length is wrong.
    """
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
    places, said = found[0] - 12, found[1].astype("<u8")
    if position + 12 <= size:  # the length after the last whole record is looked at, too: is the file cut off, or damaged?
        places, said = np.append(places, position), np.append(said, np.frombuffer(content, "<u8", 1, position))
    if len(places):
        changes = np.append(0, np.flatnonzero(said[1:] != said[:-1]) + 1)
        checksums = _crc_of_lengths(said[changes].view(np.uint8).reshape(-1, 8))
        right = np.repeat(checksums, np.diff(np.append(changes, len(said)))) == _words(content)[places + 8]
        if not right.all():
            where = f"{path}, record {count + int(np.argmin(right)) + 1}"
            raise UserError(f"{where}: the checksum of its length is wrong: the file is damaged. Write or copy it again.")
    return found[0], found[1], position


def _run(content: memoryview, position: int, step: int, length: int) -> int:
    """Return how many records of one length follow each other from a position on; 0 where they are few."""
    count = (len(content) - position) // step
    if count < _RUN:
        return 0
    lengths = np.ndarray((count,), "<u8", content, position, (step,))
    if not (lengths[:_RUN] == length).all():
        return 0
    same = lengths == length
    return count if same.all() else int(np.argmin(same))


def _words(content: Any) -> np.ndarray:
    """Return the numbers of four bytes that start at each byte of some content, without a copy: [bytes - 3] uint32."""
    return np.ndarray((len(content) - 3,), "<u4", content, 0, (1,))


# ------------------------------------------------------------------ checksums (CRC-32C, "masked" as TFRecord files have it)


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _table()
_RESTART = np.uint32(0x9BE09BAB)  # four bytes whose checksum is 0, that of no bytes at all


def _masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _unmasked(masked: np.ndarray) -> np.ndarray:
    crc = masked - np.uint32(0xA282EAD8)
    return (crc >> np.uint32(17)) | (crc << np.uint32(15))


def _crc_of_lengths(octets: np.ndarray) -> np.ndarray:
    """Return the masked checksums of rows of bytes, [n, k] -> uint32 [n]."""
    crc = np.full(len(octets), 0xFFFFFFFF, np.uint32)
    for place in range(octets.shape[1]):
        crc = _TABLE[(crc ^ octets[:, place]) & 0xFF] ^ (crc >> np.uint32(8))
    return _masked(crc ^ np.uint32(0xFFFFFFFF))


def _checker() -> Callable[[Block], int | None]:
    """Return what finds the first record with a wrong checksum: by google_crc32c, which comes with Google's storage client."""
    try:
        from google_crc32c import implementation, value
    except ImportError:
        return _first_wrong
    if implementation != "c":
        return _first_wrong

    def first_wrong(block: Block) -> int | None:
        for first in range(0, len(block), _CHAINED):
            some = block.part(first, first + _CHAINED)
            if value(_chained(some)) != 0:
                crc = np.array([value(some.record(i)) for i in range(len(some))], np.uint32)
                return first + _difference(some, _masked(crc))
        return None

    return first_wrong


def _chained(block: Block) -> bytes:
    """Return the bytes of a block with such words in the places of its checksums that, if these are right, the checksum of all is 0.

    One call for many records instead of one for each: bytes whose checksum is c, followed by the word `c ^ _RESTART`, have the
    checksum 0, from which it goes on as from the beginning. One wrong record leaves another checksum than 0 for sure; several do
    but for one case in 2 ** 32, which is how often a checksum misses damage by itself.
    """
    first, end = int(block.starts[0]) - 12, int(block.starts[-1] + block.lengths[-1]) + 4
    octets = np.frombuffer(block.content, np.uint8, end - first, first).copy()
    words = _words(octets)
    places = np.concatenate([block.starts - 4, block.starts + block.lengths]) - first
    words[places] = _unmasked(words[places]) ^ _RESTART
    return octets.tobytes()


def _difference(block: Block, masked: np.ndarray) -> int | None:
    wrong = np.flatnonzero(_words(block.content)[block.starts + block.lengths] != masked)
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
