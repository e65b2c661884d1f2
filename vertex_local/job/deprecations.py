"""What the service ends, and when: the one place where these dates stand. Images have theirs in images.py."""

from __future__ import annotations

from datetime import date

# docs.cloud.google.com: Configure feature-based explanations
EXPLANATIONS_DEPRECATED = date(2026, 3, 16)
EXPLANATIONS_END = date(2027, 3, 16)  # or later


def explanations(today: date) -> str:
    """Return one line on the end of the service's explanations, and what goes on."""
    when = "ends them on or after" if today < EXPLANATIONS_END else "may refuse them since"
    remedy = "leave them out: scripts/predict MODEL --explain, scripts/evaluate and the local service go on explaining"
    return f"Vertex AI has deprecated explanations since {EXPLANATIONS_DEPRECATED} and {when} {EXPLANATIONS_END}; {remedy}."
