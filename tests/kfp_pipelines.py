"""Pipelines for the tests of `vertex_local pipeline`: a program for the pipelines' environment, which compiles each into FOLDER.

    python tests/kfp_pipelines.py FOLDER
"""

import sys
from pathlib import Path
from typing import List, NamedTuple, Optional  # noqa: UP035 - as kfp reads annotations

from kfp import compiler, dsl
from kfp.dsl import Artifact, Dataset, Input, Output

PYTHON = "python:3.11"


@dsl.component(base_image=PYTHON)
def nothing():
    pass


@dsl.component(base_image=PYTHON)
def add(a: int, b: int = 2) -> int:
    print(f"adding {a!r} and {b!r}")
    return a + b


@dsl.component(base_image=PYTHON)
def same(text: str) -> str:
    return text


@dsl.component(base_image=PYTHON)
def show(value: list) -> str:
    return repr(value)


@dsl.component(base_image=PYTHON)
def show_or(text: Optional[str] = "nothing was given") -> str:  # noqa: UP045
    return repr(text)


@dsl.component(base_image=PYTHON)
def write(text: str, out: Output[Dataset]):
    out.metadata["rows"] = 3
    with open(out.path, "w") as file:
        file.write(text)


@dsl.component(base_image=PYTHON)
def read(data: Input[Artifact]) -> str:
    return open(data.path).read()


@dsl.component(base_image=PYTHON)
def numbers() -> NamedTuple("Numbers", [("items", list), ("n", int), ("share", float)]):
    return [1, 2, 3], 7, float("nan")


@dsl.component(base_image=PYTHON)
def flaky(counter: str) -> int:
    """Fail until the third attempt."""
    with open(counter, "a+") as file:
        file.write("x")
        file.seek(0)
        tries = len(file.read())
    if tries < 3:
        raise RuntimeError(f"attempt {tries} is not enough")
    return tries


@dsl.component(base_image=PYTHON)
def fails(text: str):
    print("before the end")
    raise ValueError(text)


@dsl.component(base_image=PYTHON)
def last(status: dsl.PipelineTaskFinalStatus) -> str:
    return f"{status.state} | {status.error_message} | {status.pipeline_job_resource_name}"


@dsl.component(base_image=PYTHON)
def sleeps():
    import time

    print("asleep", flush=True)
    time.sleep(600)


@dsl.container_component
def shell(text: str, out: dsl.OutputPath(str), made: Output[Artifact]):
    script = 'printf "%s by $(basename $(command -v python))" "$0" > "$1"; mkdir -p "$(dirname "$2")"; printf made > "$2"'
    return dsl.ContainerSpec(image="busybox", command=["sh", "-c", script], args=[text, out, made.path])


@dsl.pipeline
def add_and_read(x: int, data: Input[Artifact]) -> int:
    read(data=data)
    return add(a=x).output


@dsl.pipeline
def only_read(data: Input[Artifact]) -> str:
    return read(data=data).output


@dsl.pipeline
def read_each(items: Input[List[Dataset]]):  # noqa: UP006
    with dsl.ParallelFor(items) as each:
        read(data=each)


@dsl.pipeline(name="five")
def five():
    step = nothing()
    for _ in range(4):
        step = nothing().after(step)


@dsl.pipeline(name="chain")
def chain(text: str = "first", n: int = 3) -> int:
    data = write(text=text).set_caching_options(True)
    read(data=data.output)
    return add(a=n, b=4).output


@dsl.pipeline(name="branches")
def branches(side: str = "heads", n: int = 3, maybe: Optional[str] = None):  # noqa: UP045
    thrown = same(text=side)
    with dsl.If(thrown.output == "heads"):
        a = write(text="it's heads")
    with dsl.Elif(thrown.output == "tails"):
        b = write(text="it's tails")
    with dsl.Else():
        c = write(text="it's neither")
    one = dsl.OneOf(a.outputs["out"], b.outputs["out"], c.outputs["out"])
    only_read(data=one)
    add_and_read(x=n, data=one)
    many = numbers()
    with dsl.If(n > 2):
        with dsl.If(many.outputs["n"] < 3):
            nothing()
        nothing()
    show_or(text=maybe)


@dsl.pipeline(name="loops")
def loops():
    many = numbers()
    with dsl.ParallelFor(many.outputs["items"]) as item:
        total = add(a=item, b=many.outputs["n"])
        made = write(text="a row")
    show(value=dsl.Collected(total.output))
    with dsl.ParallelFor([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) as pair:
        add(a=pair.a, b=pair.b)
    read_each(items=dsl.Collected(made.outputs["out"]))


@dsl.pipeline(name="containers")
def containers(file: str = "gs://bucket/in/file.txt"):
    done = shell(text="written")
    same(text=done.outputs["out"])
    read(data=done.outputs["made"])
    read(data=dsl.importer(artifact_uri=file, artifact_class=Dataset, reimport=True).output)


@dsl.pipeline(name="exits")
def exits(counter: str, fail: bool = True):
    with dsl.ExitHandler(last()):
        flaky(counter=counter).set_retry(3, backoff_duration="0s")
        with dsl.If(fail == True):  # noqa: E712 - compiled, not compared
            nothing().after(fails(text="as it should"))
        same(text="untouched")


@dsl.pipeline(name="sleepy")
def sleepy():
    sleeps()


if __name__ == "__main__":
    for pipeline in (five, chain, branches, loops, containers, exits, sleepy):
        compiler.Compiler().compile(pipeline, str(Path(sys.argv[1], f"{pipeline.name}.yaml")))
