"""What the commands share: signals that end a job in order, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, with the nearest flag that there is."""

    def error(self, message: str) -> NoReturn:
        _, found, unknown = message.partition("unrecognized arguments: ")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(unknown.split("=")[0].split(" ")[0], known, 1, 0.5) if found else []
        self.exit(2, f"error: {message}{f'; the nearest flag is {near[0]}' if near else ''}. See {self.prog} --help.\n")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command's own words and, after `--`, those for the trainer."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def supervised(work: Callable[[threading.Event], int]) -> int:
    """Call `work` with an event that the first Ctrl-C, SIGTERM or SIGHUP sets; the second one interrupts it.

    Returns:
        What `work` returned; 2 for a ValueError (it cannot be started), 1 for an OSError, 128 + signal if it was cancelled.
    """
    cancel, caught = threading.Event(), []

    def end(number: int, frame: object) -> None:
        caught.append(number)
        if cancel.is_set():
            raise KeyboardInterrupt  # the second time: no more patience
        cancel.set()

    wanted = [signal.SIGINT, signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # nohup
    old = {number: signal.signal(number, end) for number in wanted}
    try:
        code = work(cancel)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr) if not isinstance(error, BrokenPipeError) else _hush()
        return 1
    except KeyboardInterrupt:
        code = 1
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return 128 + caught[0] if caught and code else code


def _hush() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so would the exit's flush
