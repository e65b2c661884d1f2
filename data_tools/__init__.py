"""Tools that prepare data before a run: `scripts/convert_data` and `scripts/download_data`.

They are not part of `vertex_runtime`, because no trainer needs them: setup.py does not package this folder; the image has it
for the conversion step of pipelines. The tools read data with the runtime's own readers, so they write exactly the rows that a
trainer would have read.
"""

import contextlib
import signal
from collections.abc import Iterator

from vertex_runtime.errors import UserError


class _Signalled(BaseException):
    """The process got a signal, whose number is the argument."""


def _end(number: int, frame: object) -> None:
    raise _Signalled(number)


@contextlib.contextmanager
def ended_by_signals(left: str) -> Iterator[None]:
    """Let SIGTERM and SIGINT unwind the block, so that it can clean up; `left` says what is left then.

    Raises:
        UserError: one of the signals came; the exit code is 128 + its number.
    """
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Signalled as error:
        number = signal.Signals(error.args[0])
        raise UserError(f"ended by {number.name}; {left}. Start again.", 128 + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
