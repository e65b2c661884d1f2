"""Packages, images and jobs on their way to Vertex AI: what `scripts/submit_job` and its like call."""

import warnings

# What Google's libraries say of the Python at hand, and of a quota project: an error names the remedy where it matters.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")
warnings.filterwarnings("ignore", category=UserWarning, module=r"google\.auth\.")
