"""How a run ends when it cannot go on: one line that a person can act on, and an exit code.

Vertex AI takes exit codes 1 to 127 for a permanent failure and does not start the replica again, so a user's mistake
must end with one of them; what a restart can mend must end by a signal (or its shell form, 128 + signal).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

USAGE = 2
FAILED = 1
# How libraries say that there is no memory left.
EXHAUSTION = (
    "ResourceExhausted",
    "Cannot allocate memory",
    "OOM when allocating",
    "bad_alloc",
    "malloc of size",
    "failed to map segment",
)


class UserError(Exception):
    """A mistake that the user can mend: the message names what, where, the value received and the remedy."""

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


class Preempted(Exception):
    """The process was told to end by `signal` (SIGTERM or SIGINT), and its state is durable."""

    def __init__(self, signal: signal.Signals):
        super().__init__(signal.name)
        self.signal = signal


def run_as_program(main: Callable[[Sequence[str] | None], object]) -> None:
    """Run `main` as the process: a `UserError` becomes one line on stderr and the exit code, without a traceback."""
    from .reporting import report_error

    try:
        main(None)
    except UserError as error:
        report_error(str(error))
        code = error.code
    except KeyboardInterrupt:
        # Once training goes on, the loop has saved the state and said so before this.
        report_error("interrupted. A start with the same --output_dir continues from the newest checkpoint, if one was written.")
        code = 130
    except Exception as error:
        if not is_exhaustion(error):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(":")
        report_error(
            f"memory ran out ({text}). Use --in_memory=no, a smaller --batch_size or model, "
            "or a machine with more memory; checkpoints are kept."
        )
        code = FAILED
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit(): TensorFlow's and Arrow's thread pools take up to half a second to wind down and hold nothing
    # that is still needed; every file has been closed and read back by now.
    os._exit(code) if "tensorflow" in sys.modules else sys.exit(code)


def first_line(error: BaseException, most: int = 200) -> str:
    """Return what an exception says, for a message: its first line, without the names of TensorFlow's operations."""
    lines = re.sub(r"\{\{.*?\}\} *| *\[Op:.*?\].*", "", str(error)).strip().splitlines()
    return (lines[0].strip()[:most] if lines else "").rstrip(".;") or type(error).__name__


FRAME = re.compile(r'^\s+File "(.+)", line (\d+)', re.MULTILINE)


def cause(error: BaseException, most: int = 300) -> str:
    """Return what an exception of Keras or TensorFlow says went wrong.

    They put the place where an operation was made before it, arguments and the operation's name behind it.
    """
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{.*?\}\} *| *\[Op:.*", "", str(error))  # Keras writes in bold
    operation = re.search(r"Detected at node (\S+) defined", text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    told = [line.strip() for line in lines if not line.startswith(("Graph execution error", "Detected at node", "Traceback (most"))]
    said = " ".join(list(dict.fromkeys(told))[:3])[:most].rstrip(". ") or first_line(error, most)
    return f"{said} (operation {operation[1][-80:]})" if operation else said


def frames_in(error: BaseException) -> list[tuple[str, int]]:
    """Return (file, line) of each place that the text of an exception names: where a failing operation was made."""
    return [(path, int(line)) for path, line in FRAME.findall(str(error))]


def is_exhaustion(error: Exception) -> bool:
    """Tell whether an exception of Python, TensorFlow or the system says that memory ran out."""
    text = f"{type(error).__name__} {error}"[:2000]
    return isinstance(error, MemoryError) or any(words in text for words in EXHAUSTION)
