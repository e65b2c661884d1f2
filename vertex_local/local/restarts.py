"""Which failures the service answers by starting again, and how often: its rules as pure functions.

Exit codes 1 to 127 mean the user's mistake and end the job. A replica ended by a signal (or by the code a shell makes of
one: 134, 137, 139, 143 …) was lost: it is restarted up to 5 times, then the whole job is tried again up to 3 times.
"""

from __future__ import annotations

import signal

MAX_RESTARTS, MAX_RETRIES = 5, 3
FAIL, RESTART, RESTART_ALL, RETRY_JOB = "fail", "restart", "restart_all", "retry_job"


def describe(code: int) -> str:
    """Return an exit code in words; a negative one is a signal's."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}" if code >= 0 else f"signal {number}"
    return f"signal {number} ({name})" if code < 0 else f"exit code {code} ({name})"


def is_transient(code: int) -> bool:
    """Tell a lost replica, ended by a signal or by a shell's code for one, from a program that gave up by itself."""
    return code < 0 or code - 128 in {number.value for number in signal.Signals}


def decide(
    code: int, restarts: int, retries: int, *, together: bool, disabled: bool, out_of_memory: bool = False
) -> tuple[str, str]:  # fmt: skip
    """Return (action, the rule it follows) for a replica that failed.

    Args:
        code: how it ended.
        restarts: how often it was restarted in this try of the job.
        retries: how often the job itself was tried again.
        out_of_memory: whether the kernel ended it because memory had run out.
    """
    if out_of_memory:
        return FAIL, f"{describe(code)} is permanent, for the kernel was out of memory: the job fails"
    if not is_transient(code):
        return FAIL, f"{describe(code)} is permanent (the program gave up by itself): the job fails"
    lost = f"{describe(code)} is transient"
    if disabled:
        return FAIL, f"{lost}, but scheduling.disableRetries is true: the job fails"
    if restarts < MAX_RESTARTS:
        count = f"restart {restarts + 1} of {MAX_RESTARTS}"
        if together:
            return RESTART_ALL, f"{lost}, scheduling.restartJobOnWorkerRestart is true: all replicas restart ({count})"
        return RESTART, f"{lost}: this replica restarts ({count})"
    if retries < MAX_RETRIES:
        return RETRY_JOB, f"{lost}, after {MAX_RESTARTS} restarts the job is tried again (retry {retries + 1} of {MAX_RETRIES})"
    return FAIL, f"{lost}, but {MAX_RESTARTS} restarts and {MAX_RETRIES} retries of the job are used up: the job fails"
