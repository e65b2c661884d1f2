"""Kill drills: which replica is killed, at which place of its run, and by which signal."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError, quoted

PHASES = ("checkpoint", "evaluation", "export")
SIGNALS = ("KILL", "TERM", "ABRT", "SEGV")  # those that end replicas on the service
_FORM = "workerpool1-0@step=40,signal=KILL"
_KILL = re.compile(r"(workerpool[0-3]-\d+)@(\w+)=(\d+(?:\.\d+)?)(?:,signal=(?:SIG)?([A-Z]+))?")


@dataclass(frozen=True)
class Kill:
    """End `replica` in its first attempt: at step n, in the n-th phase of a kind, or after n seconds."""

    replica: str
    place: str
    at: float
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.replica}@{self.place}={self.at:g},signal={signal.Signals(self.signal).name[3:]}"

    @property
    def for_trainer(self) -> str:
        """The value of `TRAINER_KILL`, which makes the trainer end itself exactly there; empty if it is killed after some seconds."""
        return "" if self.place == "seconds" else str(self).partition("@")[2]


def parse(text: str) -> Kill:
    """Read `workerpool1-0@step=40,signal=KILL`; the place may also be checkpoint, evaluation, export or seconds."""
    match = _KILL.fullmatch(text)
    places = ("step", *PHASES, "seconds")
    if match is None or match[2] not in places or (match[2] != "seconds" and (not match[3].isdigit() or match[3] == "0")):
        raise UserError(f"--kill takes a form such as {_FORM} (places: {', '.join(places)}; from 1 on); got {quoted(text)}.")
    name = match[4] or "KILL"
    if name not in SIGNALS:
        raise UserError(f"--kill takes one of the signals {', '.join(SIGNALS)}; got {quoted(text)}.")
    return Kill(match[1], match[2], float(match[3]), signal.Signals[f"SIG{name}"])


def draw(seen: Mapping[str, Mapping[str, float]], count: int, seed: int) -> list[list[Kill]]:
    """Draw `count` drills from what an unbroken run went through.

    `seen` maps each replica to how far it came: its last step, its numbers of checkpoints, evaluations and exports, and
    its seconds, which are used only if the program reports nothing else. The kinds of places take turns. Every fifth
    drill kills two replicas at once.
    """
    dice = random.Random(seed)
    places = sorted({place for reached in seen.values() for place, most in reached.items() if place != "seconds" and most >= 1})
    places = places or ["seconds"]
    drills = []
    for number in range(count):
        place = places[number % len(places)]
        able = sorted(name for name, reached in seen.items() if reached.get(place, 0) > 0)
        first = dice.choice(able)
        at = dice.uniform(0, seen[first][place]) if place == "seconds" else dice.randint(1, int(seen[first][place]))
        victims = [first]
        if number % 5 == 4 and len(seen) > 1:
            victims.append(dice.choice(sorted(set(seen) - {first})))
        drills.append([_at(name, place, round(at, 2), seen) for name in victims])
    return drills


def _at(replica: str, place: str, at: float, seen: Mapping[str, Mapping[str, float]]) -> Kill:
    reached = seen[replica].get(place, 0)
    return Kill(replica, place, min(at, reached)) if reached else Kill(replica, "step", 1)
