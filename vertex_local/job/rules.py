"""What the API's types cannot say of a CustomJobSpec: the one list of rules, for files, requests and jobs to be submitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import quoted
from . import buckets
from .pools import ROLES, Pool

MOST_VARIABLES = 100
MOST_CHARACTERS = 100_000  # of a pool's arguments

# Makes the error for a field of the CustomJobSpec, such as ("workerPoolSpecs", 0, "replicaCount"), of what is wrong with it.
Error = Callable[[tuple, str], Exception]


def check(spec: Any, error: Error) -> None:
    """Raise what `error` makes of the first rule that a CustomJobSpec breaks."""
    pools = [Pool(message, index) for index, message in enumerate(spec.worker_pool_specs[: len(ROLES)])]
    at = ("workerPoolSpecs",)
    if not pools or not pools[0].message.ByteSize():
        raise error(at, "the first pool holds the chief; it must be there and not be empty.")
    if len(spec.worker_pool_specs) > len(ROLES):
        raise error((*at, len(ROLES)), f"at most {len(ROLES)} pools ({', '.join(ROLES)}); got {len(spec.worker_pool_specs)}.")
    for pool in pools:
        if pool.message.ByteSize():
            _check_pool(pool, (*at, pool.index), error)
    if pools[0].replicas != 1:
        problem = f"the chief's pool takes 1 replica; got {pools[0].replicas}: put the others into the second pool."
        raise error((*at, 0, "replicaCount"), problem)
    if output := spec.base_output_directory.output_uri_prefix:
        try:
            buckets.check_folder(output)
        except buckets.BucketError as problem:
            raise error(("baseOutputDirectory", "outputUriPrefix"), str(problem)) from None


def _check_pool(pool: Pool, path: tuple, error: Error) -> None:
    if pool.task is None:
        raise error(path, "needs containerSpec or pythonPackageSpec; an unused pool is written {}.")
    at = (*path, pool.task_field)
    required = {"packageUris": pool.package_uris, "pythonModule": pool.module} if pool.is_package else {"imageUri": pool.image}
    for name, value in required.items():
        if not value:
            raise error((*at, name), "is required and must not be empty.")
    if len(pool.env) > MOST_VARIABLES:
        raise error((*at, "env"), f"at most {MOST_VARIABLES} variables; got {len(pool.env)}.")
    for i, (name, _) in enumerate(pool.env):
        if not name or "=" in name:
            raise error((*at, "env", i), f"needs a name without '='; got {quoted(name)}.")
    if any("\0" in text for text in (*pool.command, *pool.args, *(part for pair in pool.env for part in pair))):
        raise error(at, "holds a NUL character, which no program can be given; take it out.")
    if sum(map(len, pool.args)) > MOST_CHARACTERS:
        raise error((*at, "args"), f"at most {MOST_CHARACTERS:,} characters in all.")
    if pool.replicas < 1:
        raise error((*path, "replicaCount"), f"takes 1 or more; got {pool.replicas}: an unused pool is written {{}}.")
