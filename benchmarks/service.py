#!/usr/bin/env python3
"""The local job service under load: requests a second, with few and with 10,000 jobs; idle connections, memory, time until ready.

    python benchmarks/service.py                          # this checkout, a minute
    python benchmarks/service.py --baseline ../older      # beside another checkout of the project; prints the ratios

Needs wrk (apt-get install wrk). Each checkout serves with the Python that runs this, over TLS, one after the other.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from processes import ROOT

from vertex_local.local import job_record
from vertex_local.local.store import Store
from vertex_local.testing import LocalService

JOBS = "/v1/projects/p/locations/us-central1/customJobs"
SPEC = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": {"imageUri": "a/b:1", "command": ["true"]}}
FILTERED = "pageSize=100&filter=displayName%3D%22job-77%22"
IDLE, REQUESTS, MANY = 1000, 10_000, 10_000


class Service(LocalService):
    """`python -m vertex_local serve` of a checkout, whose process is measured."""

    def __init__(self, root: Path, folder: Path):
        begun = time.perf_counter()
        super().__init__(folder, env={"PYTHONPATH": str(root)})
        self.ready_seconds = time.perf_counter() - begun

    def status(self, name: str) -> int:
        """Return a figure of the process: VmRSS in KiB, Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])

    def cpu_seconds(self) -> float:
        """Return the time of a processor that the process has used, which other programs do not blur."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wrk(self, path: str, seconds: int) -> dict[str, float]:
        """Ask for a path over 16 connections and return requests a second and the 99th percentile in ms."""
        url, header = f"https://127.0.0.1:{self.port}{path}", f"Authorization: Bearer {self.token}"
        command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", "-H", header, url]
        before = self.cpu_seconds()
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = self.cpu_seconds() - before
        assert "Non-2xx" not in text, text
        number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", text).groups()
        factor = {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
        asked = int(re.search(r"(\d+) requests in", text)[1])
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])
        return {"requests/s": rate, "p99, ms": float(number) * factor, "CPU ms": 1e3 * used / asked}

    def add_jobs(self, name: str, count: int) -> None:
        """Record jobs like one that has ended."""
        with closing(Store(self.state)) as store:
            document, parent = store.get(name), name.rpartition("/")[0]
            for i in range(count):
                other = f"{parent}/{i + 1}"
                job_record.add(store, other, "customJobs", {**document, "name": other, "displayName": f"job-{i}"})
                job_record.end(store, other, "SUCCEEDED")

    def idle(self) -> list[ssl.SSLSocket]:
        """Hold connections on each of which one request was answered."""
        held = []
        for _ in range(IDLE):
            plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            connection = self.tls.wrap_socket(plain, server_hostname="localhost")
            connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
            assert b" 200 " in connection.recv(65536)
            held.append(connection)
        return held


def measure(root: Path, seconds: int) -> dict[str, float]:
    """Return the figures of one checkout."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        service = Service(root, Path(folder))
        stack.callback(service.stop)
        figures = {"ready, s": service.ready_seconds}
        job = service.request("POST", JOBS, {"displayName": "x", "jobSpec": {"workerPoolSpecs": [SPEC]}})
        path = "/v1/" + job["name"]
        while "endTime" not in service.request("GET", path):
            time.sleep(0.1)
        first = service.status("VmRSS")
        figures |= {f"customJobs.get, {name}": value for name, value in service.wrk(path, seconds).items()}
        while_asked = max(1, round(REQUESTS / figures["customJobs.get, requests/s"]))
        service.wrk(path, while_asked)
        figures["more memory after 10,000 requests, MiB"] = (service.status("VmRSS") - first) / 1024
        before, threads = service.status("VmRSS"), service.status("Threads")
        held = service.idle()
        figures["1,000 idle connections, MiB"] = (service.status("VmRSS") - before) / 1024
        figures["1,000 idle connections, threads"] = service.status("Threads") - threads
        for connection in held:
            connection.close()
        service.add_jobs(job["name"], MANY)
        for what, query in (("get", path), ("list, 100 a page", f"{JOBS}?pageSize=100"), ("list, filtered", f"{JOBS}?{FILTERED}")):
            found = service.wrk(query, seconds)
            figures |= {f"{MANY:,} jobs, {what}, {name}": value for name, value in found.items()}
        return figures


def main() -> int:
    """Measure, print a table, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another checkout of this project")
    parser.add_argument("--seconds", type=int, default=5, help="of load (default: %(default)s)")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("error: this needs wrk: apt-get install wrk.", file=sys.stderr)
        return 2
    old = measure(args.baseline, args.seconds) if args.baseline else {}
    new = measure(ROOT, args.seconds)
    for name, value in new.items():
        ratio = f"   {old[name]:10.2f} before, {value / old[name]:.2f} times" if old.get(name) else ""
        print(f"{name:48s} {value:10.2f}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
