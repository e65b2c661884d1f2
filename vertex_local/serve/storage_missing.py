"""Features of Cloud Storage that the local service lacks: a request that asks for one is refused by the feature's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rest import ApiError

_ACCESS, _KEYS = "Access control lists", "Encryption keys"
OF_HEADERS = {"X-Goog-Encryption-Key": "Customer-supplied encryption keys"}
OF_QUERIES = {
    "softDeleted": "Soft delete", "matchGlob": "Lists by matchGlob (list by prefix and delimiter)", "predefinedAcl": _ACCESS,
    "destinationPredefinedAcl": _ACCESS, "kmsKeyName": _KEYS, "destinationKmsKeyName": _KEYS,
}  # fmt: skip
OF_BUCKETS = {  # by the field of a bucket
    "versioning": "Object versioning", "softDeletePolicy": "Soft delete", "lifecycle": "Object lifecycle management",
    "retentionPolicy": "Bucket Lock", "objectRetention": "Retention", "hierarchicalNamespace": "Hierarchical namespaces",
    "encryption": _KEYS, "autoclass": "Autoclass", "logging": "Usage logs", "website": "Static websites", "cors": "CORS",
    "billing": "Requester pays", "acl": _ACCESS, "defaultObjectAcl": _ACCESS, "defaultEventBasedHold": "Holds",
    "rpo": "Turbo replication", "customPlacementConfig": "Dual regions", "ipFilter": "IP filters",
}  # fmt: skip
OF_OBJECTS = {  # by the field of an object
    "acl": _ACCESS, "kmsKeyName": _KEYS, "retention": "Retention", "temporaryHold": "Holds", "eventBasedHold": "Holds",
    "contexts": "Object contexts",
}  # fmt: skip
OF_PATHS = {  # by the word after a bucket's name in a path
    "acl": _ACCESS, "anywhereCaches": "Anywhere Cache", "defaultObjectAcl": _ACCESS, "folders": "Folders of hierarchical namespaces",
    "iam": "IAM policies", "lockRetentionPolicy": "Bucket Lock", "managedFolders": "Managed folders",
    "notificationConfigs": "Pub/Sub notifications", "operations": "Long-running operations of buckets", "relocate": "Bucket relocation",
    "restore": "Soft delete",
}  # fmt: skip
_OFF = ("false", {"enabled": False}, {"retentionDurationSeconds": "0"})  # how a client says that it does not want a feature


def not_imitated(feature: str, field: str | None = None) -> ApiError:
    """Return the error for a feature that is missing here; `field` is what asks for it."""
    return ApiError("UNIMPLEMENTED", f"{feature}: not imitated by the local service{f'; leave {field} out' if field else ''}.", field)


def refuse(given: Mapping[str, Any], features: Mapping[str, str]) -> None:
    """Raise an ApiError if a request's fields ask for one of the features."""
    for key, feature in features.items():
        if given.get(key) and given[key] not in _OFF:
            raise not_imitated(feature, key)
