"""Free ports for a job's replicas, reserved until the job ends, even while a replica restarts."""

from __future__ import annotations

import errno
import random
import socket
import sys

_RANGE = (20000, 32000)  # below what systems hand out for outgoing connections
_NAME = "\0vertex_local/port/{}"  # in Linux's abstract namespace: no file, and gone with the process that bound it


class Ports:
    """A set of reserved ports; jobs of other processes, in other state folders, get different ones."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, usual: int = 0) -> int:
        """Return a port that nothing listens on and no other job holds: `usual` if that is one, else any."""
        if usual and is_free(usual, reuse=True) and self._reserve(usual):
            return usual
        for port in random.SystemRandom().sample(range(*_RANGE), 2000):
            if is_free(port) and self._reserve(port):
                return port
        raise OSError(f"found no free port between {_RANGE[0]} and {_RANGE[1]}; end some of what listens there.")

    def _reserve(self, port: int) -> bool:
        if sys.platform != "linux":
            return True
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(_NAME.format(port))
        except OSError:
            mark.close()
            return False
        self._held.append(mark)
        return True

    def close(self) -> None:
        """Give all ports back."""
        while self._held:
            self._held.pop().close()


def is_free(port: int, reuse: bool = False) -> bool:
    """Tell whether a program can listen on a port; with `reuse`, one that does not count what is left of earlier connections."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                probe.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                return False
    return True
