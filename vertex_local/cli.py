"""What the commands share: signals that end a job in order, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import UserError, quoted

if TYPE_CHECKING:
    from .local.plan import RunOptions

DEBUG = "VERTEX_LOCAL_DEBUG"  # set, a fault's traceback is printed
FAULT = 70  # the exit code for a fault of this program, as sysexits.h has it


class Parser(argparse.ArgumentParser):
    """A parser whose description keeps its lines, and whose mistakes are one line, with the nearest flag that there is."""

    def __init__(self, *, formatter_class: Any = argparse.RawDescriptionHelpFormatter, **options: Any):
        super().__init__(formatter_class=formatter_class, **options)

    def error(self, message: str) -> NoReturn:
        _, found, unknown = message.partition("unrecognized arguments: ")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(unknown.split("=")[0].split(" ")[0], known, 1, 0.5) if found else []
        self.exit(2, f"error: {message.rstrip('.')}{f'; the nearest flag is {near[0]}' if near else ''}. See {self.prog} --help.\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of a flag that takes whole numbers from `least` on, or to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= (most or int(text)):
            raise argparse.ArgumentTypeError(f"takes a whole number from {least} {f'to {most}' if most else 'on'}; got {quoted(text)}.")
        return int(text)

    return read


def number(what: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """Return the type of a flag that takes the numbers which `accepts` accepts, never NaN; `what` says which, for the error."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"takes {what}; got {quoted(text)}.")
        return value

    return read


def add_place_flags(parser: argparse._ActionsContainer, installs: bool = True) -> None:
    """Add the flags that say where local jobs find their files and their Python; `--with_index` where the command installs."""
    parser.add_argument("--bucket_root", metavar="DIR", help="folder for gs://BUCKET/X as BUCKET/X (default: STATE_DIR/buckets)")
    parser.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="folder for jobs (default: %(default)s)")
    parser.add_argument("--project_dir", metavar="DIR", default=".", help="checkout with setup.py and Dockerfile (default: here)")
    parser.add_argument("--python", metavar="PATH", help="interpreter for python and python3 (default: this one)")
    if installs:
        parser.add_argument("--with_index", action="store_true", help="install what a job's packages require and is missing")
        add_container_flags(parser)
        parser.add_argument("--cloud_credentials", action="store_true", help="let replicas use your credentials and reach the cloud")


def check_interpreter(path: str | None) -> None:
    """Raise a UserError if the flag --python was given and names nothing that can be run."""
    if path and not shutil.which(path):
        raise UserError(f"--python: {path} is not a program that can be run. Name an interpreter.")


def add_container_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that start replicas in real containers."""
    parser.add_argument(
        "--containers", metavar="ENGINE", nargs="?", const="auto",
        help="start replicas in containers, by docker, podman or buildah (default: the first of them that works here)",
    )  # fmt: skip
    parser.add_argument(
        "--build_arg", metavar="NAME=VALUE", type=_build_arg, action="append", default=[],
        help="for --containers: of the project's own image, such as BASE_IMAGE=python:3.11; repeatable",
    )  # fmt: skip


def pair(text: str) -> tuple[str, str]:
    """Return (NAME, VALUE) of a flag's NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"takes NAME=VALUE; got {quoted(text)}.")
    return name, value


def _build_arg(text: str) -> tuple[str, str]:
    name, value = pair(text)
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"takes NAME=VALUE; got {quoted(text)}.")
    return name, value


def run_options(args: argparse.Namespace, **more: Any) -> RunOptions:
    """Return the options of a run that `add_place_flags` has added flags for, and `more`."""
    from .local.plan import RunOptions

    names = ("state_dir", "bucket_root", "project_dir", "python", "with_index", "containers", "cloud_credentials")
    return RunOptions(**{name: getattr(args, name) for name in names}, build_args=dict(args.build_arg), **more)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command's own words and, after `--`, those for the trainer."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def supervised(work: Callable[[threading.Event], int]) -> int:
    """Call `work` with an event that the first Ctrl-C, SIGTERM or SIGHUP sets; the second one interrupts it.

    Returns:
        What `work` returned; 2 for a UserError (it cannot be started), 1 for an OSError, 128 + signal if it was cancelled,
        FAULT for any other exception, whose traceback goes into a file.
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr) if not isinstance(error, BrokenPipeError) else _hush()
        return 1
    except KeyboardInterrupt:
        code = 1
    except Exception as error:
        _report_fault(error)
        return FAULT
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return 128 + caught[0] if caught and code else code


def _report_fault(error: Exception) -> None:
    """Say that something is wrong with this program, and where it says what."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    with tempfile.NamedTemporaryFile("w", prefix="vertex_local-fault-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"error: a fault of vertex_local, not of your job: {what[:300]}; see {file.name}, or set {DEBUG}=1.", file=sys.stderr)


def _hush() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so would the exit's flush
