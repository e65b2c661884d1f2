"""The service's prebuilt TensorFlow images, and until when it promises them: the one place where these dates stand.

After its end of support an image gets no fixes; after its end of availability it may be gone from the registry and new
jobs may be refused. State of the table: `CHECKED`; rows whose date is not public are marked `gone`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

CHECKED = date(2026, 8, 22)
_PREBUILT = re.compile(r"(?:us|europe|asia)(-docker\.pkg\.dev/vertex-ai(?:-restricted)?/(?:training|prediction)/tf[\w.-]*?)(?::([\w.-]+))?")


@dataclass(frozen=True)
class Image:
    """A prebuilt image; `uri` is its address in the US, without a tag. A date is None where none is published."""

    uri: str
    role: str  # training or serving
    tensorflow: str
    accelerator: str  # cpu, gpu or tpu
    support_end: date | None = None
    availability_end: date | None = None

    @property
    def python(self) -> str | None:
        """The Python that it has; None where the documents do not say."""
        return "3.10" if self.role == "training" else None

    @property
    def gone(self) -> bool:
        """Whether it was past its end of availability when the table was checked, the day unknown."""
        return self.role == "training" and self.availability_end is None


# docs.cloud.google.com: Supported frameworks. TensorFlow -> ends of support and availability of the images for CPU and GPU
_TRAINING = {
    "2.17": (date(2025, 7, 11), date(2026, 7, 11)),
    "2.16": (date(2025, 6, 28), date(2026, 6, 28)),
    "2.15": (date(2024, 11, 14), date(2025, 11, 14)),
    "2.14": (date(2024, 9, 26), date(2025, 9, 26)),
    "2.13": (date(2024, 7, 5), date(2025, 7, 5)),
    "2.12": (date(2024, 6, 30), date(2025, 6, 30)),
    "2.11": (None, None),
}
# docs.cloud.google.com: Prebuilt containers for inference
_SERVING = {
    "2.15": (date(2026, 7, 14), date(2027, 1, 14)),
    "2.14": (None, date(2027, 1, 14)),
    "2.13": (date(2024, 11, 28), date(2025, 11, 28)),
}
_ROOT = "us-docker.pkg.dev/vertex-ai"
IMAGES = (
    Image(f"{_ROOT}/training/tf-tpu.2-15.cp310", "training", "2.15", "tpu", None, date(2025, 10, 23)),
    *(
        Image(f"{_ROOT}/training/tf-{kind}.{version.replace('.', '-')}.py310", "training", version, kind, *ends)
        for version, ends in _TRAINING.items() for kind in ("cpu", "gpu")
    ),
    *(
        Image(f"{_ROOT}/prediction/tf2-{kind}.{version.replace('.', '-')}", "serving", version, kind, *ends)
        for version, ends in _SERVING.items() for kind in ("cpu", "gpu")
    ),
    # docs.cloud.google.com: Optimized TensorFlow runtime
    *(Image(f"{_ROOT}-restricted/prediction/tf_opt-{kind}.2-17", "serving", "2.17", kind) for kind in ("cpu", "gpu", "tpu")),
)  # fmt: skip
_BY_URI = {image.uri: image for image in IMAGES}


def find(uri: str) -> Image | None:
    """Return the table's row for an image's address, in whatever region and with whatever tag."""
    match = _PREBUILT.fullmatch(uri)
    return _BY_URI.get(f"us{match[1]}") if match else None


def warning(uri: str, today: date) -> str | None:
    """Return one line on what is past, or soon will be, for a prebuilt image; None for one's own images."""
    match, image = _PREBUILT.fullmatch(uri), find(uri)
    if not match:
        return None
    remedy = "use a container of your own (scripts/build_image)" if "/training/" in uri else "serve with a container of your own"
    if image is None:
        return f"{uri}: not among the prebuilt images known on {CHECKED} (vertex_local/job/images.py); see whether it exists, or {remedy}."
    if image.gone or image.availability_end and image.availability_end <= today:
        when = image.availability_end or f"a day before {CHECKED}"
        return f"{uri}: past its end of availability ({when}): it may be gone, and new jobs may be refused; {remedy}."
    if image.support_end and image.support_end <= today:
        return f"{uri}: past its end of support ({image.support_end}), available until {image.availability_end}; {remedy}."
    if match[2] and image.role == "training" and match[2] != "latest":
        return f"{uri}: prebuilt training images have the tag latest only; got {match[2]!r}."
    return None
