"""`manifest.json` beside converted files: what they were made from, and each file's rows, bytes and checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from vertex_runtime import checksums
from vertex_runtime.errors import FAILED, UserError

NAME = "manifest.json"


def fingerprint(path: str) -> dict[str, Any]:
    """Flush a file to disk, and return its size in bytes and its SHA-256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    size, digest = checksums.of_files([path], whole=True, opened=partial(open, mode="rb"))
    return {"bytes": size, "sha256": digest}


def write(folder: str, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into a folder."""
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def verify(folder: str) -> dict[str, Any]:
    """Compare a folder's files with its manifest, and return the manifest.

    Raises:
        UserError: there is no manifest, a file is missing or differs, or the folder has further files.
    """
    path = os.path.join(folder, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        shards = {shard["name"]: shard for shard in manifest["shards"]}
        faults = [fault for fault in (_fault(folder, shard) for shard in shards.values()) if fault]
        others = sorted({name for name in os.listdir(folder) if not name.startswith((".", "_"))} - {NAME, *shards})
    except FileNotFoundError:
        raise UserError(f"--verify: {path} does not exist. Name a folder that scripts/convert_data wrote.") from None
    except OSError as error:
        raise UserError(f"--verify: cannot read {error.filename or path}: {error.strerror}. Mend its permissions.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--verify: {path} is not a manifest of scripts/convert_data. Convert the data again.", FAILED) from None
    faults += [f"{os.path.join(folder, name)} is not in {NAME}" for name in others]
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(f"--verify: {faults[0]}{more}. Copy the folder again, or convert the data again.", FAILED)
    return manifest


def _fault(folder: str, shard: Mapping[str, Any]) -> str | None:
    path = os.path.join(folder, shard["name"])
    try:
        size = os.path.getsize(path)
        if size != shard["bytes"]:
            return f"{path} has {size:,} bytes, not {shard['bytes']:,}"
        found = fingerprint(path)["sha256"]
    except FileNotFoundError:
        return f"{path} is missing"
    return None if found == shard["sha256"] else f"{path} has the sha256 {found[:12]}…, not {shard['sha256'][:12]}…"
