"""Times and durations: protobuf's own types, the API's text, and seconds; texts are read by protobuf's own rules."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any


def now() -> str:
    """Return the time as the API writes it: RFC 3339 in UTC."""
    return text(time.time())


def text(seconds: float) -> str:
    """Return seconds since 1970 as the API writes times, with microseconds."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(when: Any) -> float:
    """Return a time, the API's text or a Timestamp, in seconds since 1970; raise a ValueError for a text that is none."""
    if isinstance(when, str):
        from google.protobuf import timestamp_pb2

        stamp = timestamp_pb2.Timestamp()
        stamp.FromJsonString(when)
        when = stamp
    return when.seconds + when.nanos / 1e9


def duration(value: Any) -> float:
    """Return a duration, the API's text or a Duration, in seconds."""
    if isinstance(value, str):
        return float(value.removesuffix("s"))
    return value.seconds + value.nanos / 1e9


def spent(document: Mapping[str, Any]) -> float:
    """Return how many seconds a job or a trial has taken from its startTime to its endTime, or until now."""
    end = document.get("endTime")
    return (seconds(end) if end else time.time()) - seconds(document["startTime"])


def describe(spent: float) -> str:
    """Return a duration in seconds for people: `8.3 s`, `12.5 min`, `3.1 h`."""
    if spent < 90:
        return f"{spent:.1f} s"
    return f"{spent / 60:.1f} min" if spent < 5400 else f"{spent / 3600:.1f} h"
