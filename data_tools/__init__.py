"""Tools that prepare data before a run: `scripts/convert_data` and `scripts/download_data`.

They stand beside `vertex_runtime` and not in it, because no trainer needs them: setup.py packages neither this folder
nor `benchmarks`; the image has them for the conversion step of pipelines. They read with the runtime's own readers, so
that what they write is what a trainer would have read.
"""

import contextlib
import signal
from collections.abc import Iterator

from vertex_runtime.errors import UserError


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


@contextlib.contextmanager
def ended_by_signals(terminated: str, interrupted: str) -> Iterator[None]:
    """Let SIGTERM and SIGINT unwind what they end, and say in one line what became of it.

    Raises:
        UserError: one of them came; the process ends with 128 and the signal's number.
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


def see_that_it_is_local(folder: str) -> None:
    """Refuse a `--to` that is in a bucket.

    Raises:
        UserError: it is.
    """
    if "://" in folder:
        raise UserError(f"--to must be a folder of this machine; got {folder}. Copy it there with gcloud storage cp afterwards.")
