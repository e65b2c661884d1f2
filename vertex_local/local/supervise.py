"""Run one replica the way a container's init process does; started by `vertex_local`, as a plain script.

    supervise.py STATUS_FD PROGRAM ARGUMENTS…

Standard input is the line to `vertex_local`: each byte is a signal for the program, and its end, which also comes when
`vertex_local` is killed, means SIGKILL. Whatever the program leaves running dies with it. STATUS_FD gets two lines:
the program's process id, and how and when it ended. A tuning trial's metric file is kept whole, as FILE.all.
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KEPT, _LOOK = 100, 0.003  # hypertune's lines; seconds between two looks at them


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
    except OSError as error:
        os.write(2, f"error: cannot start {command[0]!r}: {error.strerror}\n".encode())
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
        os.killpg(group, signal.SIGKILL)  # all there is where there are no subreapers
    except OSError:
        pass  # nobody was left in it
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _keep_reports(path: str, over: threading.Event) -> None:
    """Append what a tuning trial reports to `path`.all until the trial is over.

    hypertune keeps 100 lines and rewrites its file at each report; only a process with nothing else to do sees them all.
    """
    seen, stamp, last = set(), None, False
    while not last:
        last = over.wait(_LOOK)
        try:
            state = os.stat(path)
            if stamp == (stamp := (state.st_mtime_ns, state.st_size)) and not last:
                continue
            with open(path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]  # the last may be half written
        except OSError:
            continue  # nothing was reported yet
        new = [line for line in lines if line not in seen]
        if len(new) == len(lines) >= _KEPT and (seen or not os.path.exists(path + ".all")):
            new.insert(0, b'{"lost": true}')  # all of the file has changed since the last look
        seen.update(new)
        if new:
            with open(path + ".all", "ab", 0) as file:
                file.write(b"\n".join([*new, b""]))


def main() -> None:
    """Run the program, pass signals on to it, and report how it ended."""
    status, command = int(sys.argv[1]), sys.argv[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = _start(command, status)
    os.write(status, f"{child}\n".encode())
    reaped, lock = threading.Event(), threading.Lock()
    threading.Thread(target=_obey, args=(child, reaped, lock), daemon=True).start()
    over, path = threading.Event(), os.environ.get("CLOUD_ML_HP_METRIC_FILE")
    keeper = threading.Thread(target=_keep_reports, args=(path, over), daemon=True)
    if path:
        keeper.start()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    ended = time.time()
    with lock:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reaped.set()
    _end_rest(child)
    over.set()
    if path:
        keeper.join()
    os.write(status, f"{code} {ended}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
