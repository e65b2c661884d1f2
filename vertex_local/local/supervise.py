"""Run one replica as a container's init process would; `vertex_local` starts this file as a plain script.

    supervise.py STATUS PROGRAM ARGUMENTS…

`vertex_local` writes to standard input: each byte is the number of a signal for the program. When standard input ends,
which also happens if `vertex_local` is killed, the program gets SIGKILL. Whatever the program leaves running is killed, too.

STATUS is a descriptor's number or a file's path. It gets two lines: the program's process id; then its exit code and the
time of its end, with the word `oom` if the kernel killed it because memory had run out.

All that a tuning trial reports is kept in FILE.all beside its metric file FILE.
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KEPT = 100  # the lines that hypertune keeps in its file
# Seconds between two looks at that file. hypertune writes all its lines at each report, about 0.4 ms for a hundred: a program
# that does nothing but report needs twice this time for a hundred new ones.
_LOOK = 0.02
_VMSTAT, _CGROUP = "/proc/vmstat", "/proc/self/cgroup"


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(command: list[str], status: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, which a new program would inherit
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(status)
        os.execvp(command[0], command)
    except (OSError, ValueError) as error:  # the latter for an empty name
        os.write(2, f"error: cannot start {command[0]!r}: {getattr(error, 'strerror', None) or error}\n".encode())
    finally:
        os._exit(127)


def _obey(child: int, reaped: threading.Event, lock: threading.Lock) -> None:
    orders = b"-"
    while orders:
        orders = os.read(0, 1)
        with lock:  # a process id may be another's as soon as it has been reaped
            if reaped.is_set():
                return
            os.kill(child, orders[0] if orders else signal.SIGKILL)


def _children() -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ()):
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(entry))
    return found


def _end_rest(group: int) -> None:
    """Kill every descendant: as subreaper this process becomes the parent of those whose own parent is gone."""
    try:
        os.killpg(group, signal.SIGKILL)  # without subreapers, as on macOS, this is all that can be done
    except OSError:
        pass  # no process is left in it
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class _Reports:
    """What a tuning trial reports to `path`, appended to `path`.all as it comes."""

    def __init__(self, path: str):
        self.path, self.kept = path, path + ".all"
        self.seen: set = set()
        self.stamp: tuple[int, int] | None = None

    def take(self) -> None:
        """Keep the lines that are new."""
        try:
            state = os.stat(self.path)
            stamp = (state.st_mtime_ns, state.st_size)
            if stamp == self.stamp:
                return
            self.stamp = stamp
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]  # the last may be half written
        except OSError:
            return  # nothing was reported yet
        new = [line for line in lines if line not in self.seen]
        if len(new) == len(lines) >= _KEPT and (self.seen or not os.path.exists(self.kept)):
            new.insert(0, b'{"lost": true}')  # all of the file has changed since the last look
        self.seen.update(new)
        if new:
            with open(self.kept, "ab", 0) as file:
                file.write(b"\n".join([*new, b""]))


def _keep_reports(path: str, over: threading.Event) -> None:
    """Keep what a tuning trial reports until the trial is over.

    hypertune keeps 100 lines and rewrites its file at each report; only a process with nothing else to do sees them all.
    """
    reports = _Reports(path)
    while not over.wait(_LOOK):
        reports.take()
    reports.stamp = None
    reports.take()


def _memory_kills() -> int:
    """Return how many processes the kernel has killed because memory had run out, in this control group or else on this machine."""
    paths = []
    try:
        with open(_CGROUP) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        # Version 2 has one line without a controller; seen from inside a container, its root may be another.
        paths += [f"/sys/fs/cgroup{path.rstrip('/')}/memory.events" for _, names, path in groups if not names]
        paths += [f"/sys/fs/cgroup/memory{path.rstrip('/')}/memory.oom_control" for _, names, path in groups if names == "memory"]
    except OSError:
        pass  # no Linux
    for path in (*paths, _VMSTAT):
        try:
            with open(path) as file:
                counts = dict(line.split()[:2] for line in file if len(line.split()) > 1)
            return int(counts["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue  # not counted there
    return 0


def _wait(child: int, reaped: threading.Event, lock: threading.Lock) -> tuple:
    """Wait for the program and return (exit code, time of its end)."""
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        ended = time.time()
        with lock:
            status = os.waitpid(child, 0)[1]
            reaped.set()
        return os.waitstatus_to_exitcode(status), ended
    while True:  # macOS has it from Python 3.13 on
        with lock:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                reaped.set()
                return os.waitstatus_to_exitcode(status), time.time()
        time.sleep(0.02)


def _opened(status: str) -> int:
    """Return the descriptor for the status: a container gets a file's path, because engines do not pass descriptors on."""
    return int(status) if status.isdigit() else os.open(status, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def main() -> None:
    """Run the program, pass signals on to it, and report how it ended."""
    status, command = _opened(sys.argv[1]), sys.argv[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    kills = _memory_kills()
    child = _start(command, status)
    os.write(status, f"{child}\n".encode())
    reaped, lock = threading.Event(), threading.Lock()
    threading.Thread(target=_obey, args=(child, reaped, lock), daemon=True).start()
    over, path = threading.Event(), os.environ.get("CLOUD_ML_HP_METRIC_FILE")
    keeper = threading.Thread(target=_keep_reports, args=(path, over), daemon=True)
    if path:
        keeper.start()
    code, ended = _wait(child, reaped, lock)
    memory = " oom" if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and _memory_kills() > kills else ""
    _end_rest(child)
    over.set()
    if path:
        keeper.join()
    os.write(status, f"{code} {ended}{memory}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
