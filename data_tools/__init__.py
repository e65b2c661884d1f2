"""Tools that prepare data before a run: `scripts/convert_data` and `scripts/download_data`.

They are not part of `vertex_runtime`, because no trainer needs them: setup.py does not package this folder; the image has it
for the conversion step of pipelines. The tools read data with the runtime's own readers, so they write exactly the rows that a
trainer would have read.
"""

import contextlib
import signal
from collections.abc import Iterator

from vertex_runtime.errors import UserError


class _Terminated(BaseException):
    """The process got SIGTERM."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


@contextlib.contextmanager
def ended_by_signals(terminated: str, interrupted: str) -> Iterator[None]:
    """Let SIGTERM and SIGINT unwind the block, so that it can clean up.

    Args:
        terminated: the error's message after SIGTERM.
        interrupted: the same after SIGINT.

    Raises:
        UserError: one of the signals came; the exit code is 128 + its number.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except _Terminated:
        raise UserError(terminated, 128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise UserError(interrupted, 128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
