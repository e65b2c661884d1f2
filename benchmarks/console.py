#!/usr/bin/env python3
"""The console with much to show: seconds and bytes of its pages, memory of the service and of the browser's tab.

    python benchmarks/console.py                  # six minutes: 10,000 jobs, a log of 1 GB that grows, long curves
    python benchmarks/console.py --watch=30       # seconds for which each tab is watched (120)

Needs chromium and playwright (requirements-dev.txt) and 1.1 GB on the disk. A tab's memory is what its JavaScript holds after a
collection, and what the processes that draw it have for themselves; both are taken at the start, in the middle and at the end.
"""

from __future__ import annotations

import argparse
import http.cookiejar
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from processes import ROOT
from service import Service

from vertex_local.local.store import Store

JOBS, RUNNING, LOG_BYTES, TAGS, POINTS = 10_000, 100, 1_000_000_000, 8, 5_000
LIVE = "1"  # the id of the job whose pages are watched
MIB = 1 << 20


def fill(state: Path, parent: str) -> None:
    """Keep 10,000 jobs, of which 100 run."""
    store = Store(state)
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": {"imageUri": "a/b:1", "command": ["x"]}}
    for number in range(1, JOBS + 1):
        state_name = "RUNNING" if number <= RUNNING else ("FAILED" if number % 7 == 0 else "SUCCEEDED")
        day = f"2026-{1 + number % 11:02d}-{1 + number % 28:02d}T{number % 24:02d}:{number % 60:02d}"
        document = {
            "name": f"{parent}/customJobs/{number}", "displayName": f"taxifare-{number}", "state": f"JOB_STATE_{state_name}",
            "createTime": f"{day}:00.000000Z", "startTime": f"{day}:01.000000Z", "updateTime": f"{day}:59.000000Z",
            "jobSpec": {"workerPoolSpecs": [pool]}, "labels": {"team": f"t{number % 9}"},
            **({} if state_name == "RUNNING" else {"endTime": f"{day}:59.000000Z"}),
        }  # fmt: skip
        store.add(document["name"], "customJobs", document)
    store.close()


def write_log(folder: Path) -> Path:
    """Write a gigabyte of structured lines."""
    path = folder / "logs" / "workerpool0-0.log"
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"severity": "INFO", "message": f"step {i}/5000: loss {5 / (i + 1):.5f}, 201,478 examples/s"}) for i in range(5000)]
    block = "".join(f"{line}\n" for line in lines).encode()
    with open(path, "wb") as file:
        for _ in range(LOG_BYTES // len(block)):
            file.write(block)
    return path


def write_curves(folder: Path) -> Path:
    """Write event files with long curves, and where they are."""
    path = folder / "tensorboard" / "train" / "events.out.tfevents.1.host"
    path.parent.mkdir(parents=True)
    for step in range(POINTS):
        add_points(path, step)
    result = {"outputs": {"AIP_TENSORBOARD_LOG_DIR": str(path.parents[1])}, "replicas": {}}
    (folder / "result.json").write_text(json.dumps(result))
    return path


def add_points(path: Path, step: int) -> None:
    """Add a point to every curve."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [summary_pb2.Summary.Value(tag=f"metric_{tag}", simple_value=1 / (1 + step + tag)) for tag in range(TAGS)]
    with open(path, "ab") as file:
        RecordWriter(file).write(event_pb2.Event(step=step, wall_time=step, summary=summary_pb2.Summary(value=values)).SerializeToString())


@contextmanager
def growing(log: Path, events: Path) -> Iterator[None]:
    """Let a log and curves grow five times a second while the block lasts."""
    over = threading.Event()
    line = b'{"severity": "INFO", "message": "one more line of those that come while the page is open"}\n'

    def work() -> None:
        for step in itertools.count(POINTS):
            if over.wait(0.2):
                return
            add_points(events, step)
            with open(log, "ab") as file:
                file.write(10 * line)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ------------------------------------------------------------------ pages as they are sent


def pages(service: Service, paths: dict[str, str]) -> None:
    """Print the milliseconds, the service's CPU and the bytes of pages."""
    jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=service.tls), jar)
    opener.open(service.endpoint.console_address()).read()
    for name, path in paths.items():
        seconds, size = [], 0
        before = service.cpu_seconds()
        for _ in range(30):
            begun = time.perf_counter()
            with opener.open(f"{service.endpoint.url}/console{path}") as answer:
                size = len(answer.read())
            seconds.append(time.perf_counter() - begun)
        used = (service.cpu_seconds() - before) / 30
        spent = f"{1e3 * statistics.median(seconds):8.1f} ms ({1e3 * seconds[0]:.1f} the first time)"
        print(f"{name:24s} {spent}, {1e3 * used:6.1f} ms of CPU, {size:9,} bytes", flush=True)


# ------------------------------------------------------------------ the tab


class Tab:
    """A page in a browser of its own."""

    def __init__(self, stack: ExitStack, chromium: Any):
        flags = ["--no-sandbox", "--disable-gpu"]
        self.browser = chromium.launch(executable_path=_chromium(), args=flags)
        stack.callback(self.browser.close)
        self.page = self.browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900}).new_page()
        self.session = self.page.context.new_cdp_session(self.page)
        self.session.send("Performance.enable")
        self.processes = self.browser.new_browser_cdp_session()

    def figures(self) -> dict[str, float]:
        """Return MiB of JavaScript and of the renderers, and the number of nodes, after a collection."""
        self.session.send("HeapProfiler.collectGarbage")
        found = {each["name"]: each["value"] for each in self.session.send("Performance.getMetrics")["metrics"]}
        renderers = [each["id"] for each in self.processes.send("SystemInfo.getProcessInfo")["processInfo"] if each["type"] == "renderer"]
        return {
            "heap": found["JSHeapUsedSize"] / MIB, "nodes": found["Nodes"], "listeners": found["JSEventListeners"],
            "renderer": max(map(_private, renderers)) / 1024,
        }  # fmt: skip


def _private(process: int) -> int:
    """Return what a process has for itself, in KiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def watch(service: Service, paths: dict[str, str], seconds: float) -> None:
    """Print what each page's tab holds while it follows the service."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        for name, path in paths.items():
            with ExitStack() as stack:
                tab = Tab(stack, playwright.chromium)
                asked = []
                tab.page.on("response", lambda answer, asked=asked: asked.append(answer.status))
                tab.page.goto(service.endpoint.console_address())
                tab.page.goto(f"{service.endpoint.url}/console{path}")
                taken = []
                for share in (0.0, 0.5, 0.5):
                    tab.page.wait_for_timeout(1e3 * max(3.0, share * seconds))
                    taken.append(tab.figures())
                rows = {key: " -> ".join(f"{each[key]:,.1f}" for each in taken) for key in ("heap", "renderer")}
                counts = " -> ".join(f"{each['nodes']:,.0f}" for each in taken)
                line = f"JavaScript {rows['heap']} MiB, renderer {rows['renderer']} MiB, nodes {counts}, {len(asked)} answers"
                print(f"tab: {name:19s} {line}", flush=True)


def main() -> int:
    """Measure, print a line each, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", type=float, default=120.0, help="seconds for which each tab is watched (default: %(default)s)")
    args = parser.parse_args()
    if _chromium() is None:
        print("error: this needs chromium: apt-get install chromium.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        service = Service(ROOT, Path(folder))
        stack.callback(service.stop)
        own, empty = service.state / "jobs" / LIVE, service.status("VmRSS")
        fill(service.state, f"projects/{service.endpoint.project}/locations/{service.endpoint.region}")
        log, events = write_log(own), write_curves(own)
        paths = {
            "home": "/", "list of jobs": "/customJobs", "list, filtered": "/customJobs?filter=fare-77",
            "log of 1 GB": f"/logs/{LIVE}/workerpool0-0", "search in the log": f"/logs/{LIVE}/workerpool0-0?search=no+such+text",
            "job with curves": f"/customJobs/{LIVE}",
        }  # fmt: skip
        pages(service, paths)
        with growing(log, events):
            watch(service, {name: paths[name] for name in ("home", "log of 1 GB", "job with curves")}, args.watch)
        print(f"service: {empty / 1024:.0f} MiB empty, {service.status('VmRSS') / 1024:.0f} MiB now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
