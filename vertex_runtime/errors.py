"""How a run ends when it cannot go on: one line that a person can act on, and an exit code.

Vertex AI takes exit codes 1 to 127 for a permanent failure and does not start the replica again, so a user's mistake
must end with one of them; what a restart can mend must end by a signal (or its shell form, 128 + signal).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

USAGE = 2
FAILED = 1


class UserError(Exception):
    """A mistake that the user can mend: the message names what, where, the value received and the remedy."""

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


def run_as_program(main: Callable[[Sequence[str] | None], object]) -> None:
    """Run `main` as the process: a `UserError` becomes one line on stderr and the exit code, without a traceback."""
    from .reporting import report_error

    try:
        main(None)
    except UserError as error:
        report_error(str(error))
        code = error.code
    except KeyboardInterrupt:
        report_error("interrupted; the same command with the same --output_dir continues from the newest checkpoint.")
        code = 130
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit(): TensorFlow's and Arrow's thread pools take up to half a second to wind down and hold nothing
    # that is still needed; every file has been closed and read back by now.
    os._exit(code) if "tensorflow" in sys.modules else sys.exit(code)
