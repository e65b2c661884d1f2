"""Packaging: one distribution with every trainer, or a narrowed one that also installs its trainer as `trainer`.

    python setup.py sdist --formats=gztar                          # start with: python3 -m taxifare.trainer.task
    VERTEX_TRAINER=taxifare python setup.py sdist --formats=gztar  # that, or:   python3 -m trainer.task

A trainer is a folder with a trainer/task.py in it, and is listed nowhere. The narrowed distribution holds it and
vertex_runtime, which it runs on: neither vertex_local, which stands in for the service on one's own machine, nor
vertex_submit, which sends jobs to it.

The training service runs this file again when it installs the sdist, without VERTEX_TRAINER, and gcloud's generated
Dockerfile runs it with no other file beside it: so it reads no file and decides by the folders that are there.
TensorFlow is never required: the prebuilt containers bring their own, which pip must not replace.
"""

import os
from glob import glob

from setuptools import find_packages, setup
from setuptools.command.egg_info import egg_info

EXTRAS = {
    "tf": ["tensorflow>=2.17"],
    "cloud": ["google-cloud-aiplatform>=1.60", "google-cloud-storage>=2.16", "packaging>=23.0", "PyYAML>=6.0"],
    "gcs": ["google-cloud-storage>=2.16"],  # the lock of outputs in a bucket; prebuilt containers bring it
    "bigquery": ["google-cloud-bigquery>=3.20", "google-cloud-bigquery-storage>=2.24"],
    "serve": [
        "certifi>=2024.2.2", "cronsim>=2.6", "google-cloud-aiplatform>=1.72", "google-cloud-storage>=2.16", "h11>=0.14", "jinja2>=3.1",
        "optuna>=5.0", "PyYAML>=6.0", "rich>=13.0", "starlette>=0.37", "trustme>=1.1", "uvicorn>=0.29", "werkzeug>=3.0",
    ],  # fmt: skip
    "tune": ["google-cloud-aiplatform>=1.60", "optuna>=5.0", "plotly>=5.20", "PyYAML>=6.0", "rich>=13.0"],
    "debug": ["debugpy>=1.8"],  # `vertex_local run --debug`
    "docs": ["furo>=2024.8.6", "myst-parser>=4.0", "sphinx>=8.1"],  # `scripts/docs`
    "pictures": ["drawsvg>=2.4"],  # docs/pictures/make.py
    # vertex_local checks job files with the types of google-cloud-aiplatform, benchmarks compare with scikit-learn,
    # ipykernel and nbclient execute docs/notebook.ipynb, the documents are built (furo, myst-parser, sphinx) and their commands run.
    # The service takes the API's paths from the SDK, which has had them as tables since 1.72.
    "test": [
        "certifi>=2024.2.2", "cronsim>=2.6", "debugpy>=1.8", "drawsvg>=2.4", "furo>=2024.8.6", "google-cloud-aiplatform>=1.72",
        "google-cloud-bigquery>=3.20", "google-cloud-bigquery-storage>=2.24", "h11>=0.14", "ipykernel>=6.29", "jinja2>=3.1",
        "markdown-it-py>=3.0", "myst-parser>=4.0", "nbclient>=0.10", "optuna>=5.0", "packaging>=23.0", "pandas>=2.0", "plotly>=5.20",
        "pytest>=8.0", "PyYAML>=6.0", "rich>=13.0", "scikit-learn>=1.4", "setuptools>=65.0", "sphinx>=8.1", "starlette>=0.37",
        "trustme>=1.1", "uvicorn>=0.29", "werkzeug>=3.0", "wheel",
    ],  # fmt: skip
}
EXTRAS["all"] = sorted({package for name, packages in EXTRAS.items() if name != "tf" for package in packages})

trainers = sorted(name for name in (path.split(os.sep)[0] for path in glob("*/trainer/task.py")) if name.isidentifier())
wanted = os.environ.get("VERTEX_TRAINER")
if wanted and wanted not in trainers:
    raise SystemExit(f"VERTEX_TRAINER must be one of {', '.join(trainers) or 'no trainer: there is none here'}; got {wanted!r}.")
kept = [wanted] if wanted else trainers
ours = ["vertex_runtime"] if wanted else ["vertex_runtime", "vertex_local", "vertex_submit"]
packages = find_packages(include=[pattern for name in ours for pattern in (name, f"{name}.*")])
for name in kept:
    inner = {"trainer", *find_packages(name, exclude=["tests", "tests.*"])}
    packages += [name, *(f"{name}.{each}" for each in sorted(inner))]
# Where one trainer is there (an unpacked narrowed sdist), `trainer` is a second name of its code.
alias = {"trainer": f"{kept[0]}/trainer"} if len(kept) == 1 else {}
if alias:
    packages += [name.partition(".")[2] for name in packages if f"{name}.".startswith(f"{kept[0]}.trainer.")]


class FreshEggInfo(egg_info):
    """Lists the files of this build only: setuptools also takes what an earlier build in this folder listed."""

    def find_sources(self):
        listed = os.path.join(self.egg_info, "SOURCES.txt")
        if os.path.exists(listed):
            os.remove(listed)
        super().find_sources()


setup(
    name="vertex-trainer",
    version="0.1.0",
    description="Reference trainer package for TensorFlow on Vertex AI custom training",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The floors are what TensorFlow 2.17's prebuilt container satisfies; a ceiling would fight later containers.
    install_requires=["cloudml-hypertune>=0.1.0.dev6", "numpy>=1.26", "pyarrow>=14.0.1", "tensorboard>=2.17", "tqdm>=4.65"],
    extras_require=EXTRAS,
    packages=packages,
    package_dir=alias,
    package_data={
        **{trainer: ["tests/data/*", "tests/data/**/*"] for trainer in kept},
        "vertex_local.check": ["*.yaml"],
        "vertex_local.console": ["templates/*", "static/*"],
    },
    cmdclass={"egg_info": FreshEggInfo},
    zip_safe=False,
)
