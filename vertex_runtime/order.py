"""The one order of training rows: a pure function of seed, number of rows and bytes of a prepared row, and of nothing else.

The rows are cut into blocks of neighbours. An epoch goes through all blocks in a new order, a window of many blocks after
the other, and shuffles the rows of a window fully; rows that fit into one window are therefore shuffled fully. Where the rows
lie, how many workers share a batch, and where a run was resumed do not matter: position p of a run is place p % N of epoch
p // N, and a batch is the next `batch_size` positions, across the end of an epoch too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW_BYTES = 64 << 20  # of prepared rows; up to three windows are in memory at a time
WINDOW_BLOCKS = 512  # so many places of a sorted file meet in one window
BLOCKS_KEY = 1 << 63  # tells a shuffle of blocks from those of rows


@dataclass(frozen=True)
class Window:
    """Some blocks of an epoch, by rising number, and the order in which their rows are taken.

    Args:
        blocks: numbers of the blocks.
        order: [rows] places within the blocks laid end to end.
    """

    blocks: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Order:
    """The order of `count` rows in blocks of `block_rows`, of which `window_blocks` are shuffled together."""

    seed: int
    count: int
    block_rows: int
    window_blocks: int

    @classmethod
    def of(cls, seed: int, count: int, row_bytes: float) -> Order:
        """Return the order of rows that take `row_bytes` each when prepared."""
        block = block_rows(row_bytes)
        return cls(seed, count, block, max(1, min(WINDOW_BLOCKS, int(WINDOW_BYTES // (block * max(1.0, row_bytes))))))

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last one may be short."""
        return -(-self.count // self.block_rows)

    @property
    def window_rows(self) -> int:
        """The rows of the largest window."""
        number = -(-self.blocks // self.window_blocks)
        return min(self.count, -(-self.blocks // number) * self.block_rows)

    def windows(self, epoch: int) -> Iterator[Window]:
        """Yield the windows of an epoch, of nearly equal size."""
        number = -(-self.blocks // self.window_blocks)
        if number <= 1:
            yield Window(np.arange(self.blocks), permutation(self.seed, epoch, self.count))
            return
        shuffled = permutation(self.seed, BLOCKS_KEY | epoch, self.blocks)
        for i, blocks in enumerate(np.array_split(shuffled, number)):
            blocks = np.sort(blocks)
            rows = len(blocks) * self.block_rows
            if blocks[-1] == self.blocks - 1:
                rows -= self.blocks * self.block_rows - self.count
            yield Window(blocks, permutation(self.seed, (epoch << 24) + i + 1, rows))

    def from_position(self, position: int) -> Iterator[Window]:
        """Yield windows without end, the first one without the rows that lie before a position of the run."""
        epoch, skip = divmod(position, self.count)
        while True:
            for window in self.windows(epoch):
                if skip < len(window.order):
                    yield Window(window.blocks, window.order[skip:])
                skip = max(0, skip - len(window.order))
            epoch += 1

    def places(self, window: Window) -> np.ndarray:
        """Return a window's rows, in its order, as places among all rows: [rows] int32."""
        block, row = np.divmod(window.order, self.block_rows)
        return (window.blocks[block] * self.block_rows + row).astype(np.int32, copy=False)

    def steps(self, batch_size: int, step: int) -> Iterator[np.ndarray]:
        """Yield the places of the rows of each next step, from `step` on: [steps, batch] int32."""
        left = np.empty(0, np.int32)
        for window in self.from_position(step * batch_size):
            order = np.concatenate([left, self.places(window)])
            steps = len(order) // batch_size
            if steps:
                yield order[: steps * batch_size].reshape(steps, batch_size)
            left = order[steps * batch_size :]


def block_rows(row_bytes: float) -> int:
    """Return how many rows of `row_bytes` each, when prepared, make a block: 128 KiB, or one larger row.

    From 64 on it is a multiple of 64: then a row is rounded alike whichever blocks it is prepared with, since vectorised
    operations take up to 64 values at a time.
    """
    rows = max(1, int(WINDOW_BYTES // WINDOW_BLOCKS // max(1.0, row_bytes)))
    return rows // 64 * 64 if rows >= 64 else rows


def permutation(seed: int, key: int, count: int) -> np.ndarray:
    """Return an order of `count` things, another one for each key below 2**64: [count] int32."""
    generator = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), key]))
    return generator.permutation(count).astype(np.int32, copy=False)
