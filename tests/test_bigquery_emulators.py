"""BigQuery tables read from emulators that others wrote, each in an environment of its own (see test_compat.py).

Both keep their rows in DuckDB, whose extensions come as packages and are put where DuckDB looks for them: under the
environment's own home folder.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("google.cloud.bigquery_storage_v1", reason="google-cloud-bigquery-storage is not installed")
from google.auth.credentials import AnonymousCredentials  # noqa: E402
from google.cloud import bigquery as client_library  # noqa: E402
from test_batch_prediction import echo_model  # noqa: E402
from test_batch_tables import run  # noqa: E402
from test_bigquery import COLUMNS, PROJECTS, TABLE, by_value, expected, rows, trips  # noqa: E402
from test_compat import find_python, make_environment  # noqa: E402
from test_local_support import wait_for  # noqa: E402
from test_serve_support import echo_service  # noqa: E402

from vertex_runtime.errors import UserError  # noqa: E402
from vertex_runtime.formats import Reading, bigquery  # noqa: E402

pytestmark = pytest.mark.compat

ROWS = 250_000  # more than the streams of one emulator hold


@dataclass(frozen=True)
class Emulator:
    """How an emulator is installed and started; ports are filled into `command`."""

    pythons: tuple[int, ...]
    package: str
    beside: tuple[str, ...]  # what it needs; it is itself installed without asking for more, because it asks for another DuckDB
    extensions: tuple[str, ...]
    command: str


EMULATORS = {
    "local-bigquery": Emulator(
        (13, 14, 15),
        "local-bigquery==0.4.0",
        (
            "duckdb==1.5.5", "duckdb-extensions==1.5.5", "duckdb-extension-ducklake==1.5.5", "duckdb-extension-icu==1.5.5",
            "duckdb-extension-spatial==1.5.5", "fastapi", "fastavro", "google-cloud-bigquery-storage", "grpcio", "mini-racer", "numpy",
            "prompt-toolkit", "pyarrow", "pydantic-settings", "pygments", "sqlglot>=30.24,<31", "uvicorn",
        ),
        ("icu", "ducklake", "spatial"),
        "local-bigquery --host=127.0.0.1 --port={rest} --grpc-port={grpc} --project=p --dataset=taxi --data-dir={data} serve",
    ),
    "bqemulator": Emulator(
        (11, 12, 13),
        "bqemulator==1.4.0",
        ("bqemulator==1.4.0", "duckdb==1.5.5", "duckdb-extensions==1.5.5", "duckdb-extension-spatial==1.5.5", "numpy"),
        ("spatial",),
        "bqemulator start --rest-port={rest} --grpc-port={grpc} --project=p",
    ),
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def installed(emulator: Emulator) -> Path:
    """Return the folder of an environment that holds the emulator and its extensions."""
    python = find_python(emulator.pythons)
    if python is None:
        pytest.skip(f"{emulator.package} needs Python 3.{emulator.pythons[0]} or newer on PATH (or under PYENV_ROOT)")
    made = make_environment(python, emulator.beside)
    folder = Path(made).parents[1]
    subprocess.run([made, "-m", "pip", "install", "--quiet", "--no-deps", emulator.package], check=True)
    code = "import duckdb_extensions, sys; [duckdb_extensions.import_extension(name) for name in sys.argv[1:]]"
    subprocess.run([made, "-c", code, *emulator.extensions], check=True, env={**os.environ, "HOME": str(folder)})
    return folder


@pytest.fixture(scope="module", params=EMULATORS)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Run an emulator that holds the trips; give its name and the variables that lead to it."""
    chosen, data = EMULATORS[request.param], tmp_path_factory.mktemp("emulator")
    folder = installed(chosen)
    rest, grpc = free_port(), free_port()
    program, *flags = chosen.command.format(rest=rest, grpc=grpc, data=data / "data").split()
    with open(data / "log", "w") as log:
        started = subprocess.Popen(
            [folder / "bin" / program, *flags], cwd=data, env={**os.environ, "HOME": str(folder)}, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: (started.poll() is not None) or (answers(rest) and answers(grpc)), 90)
        assert started.poll() is None, (data / "log").read_text()[-3000:]
        address = f"http://127.0.0.1:{rest}"
        load(address)
        yield request.param, {"BIGQUERY_EMULATOR_HOST": address, "BIGQUERY_STORAGE_EMULATOR_HOST": f"127.0.0.1:{grpc}"}
    finally:
        started.terminate()
        started.wait(120)


def load(address: str) -> None:
    """Load the trips as one table and as two of an export."""
    client = client_library.Client("p", credentials=AnonymousCredentials(), client_options={"api_endpoint": address})
    client.create_dataset("taxi", exists_ok=True)
    table = trips(ROWS)
    for name, part in {"trips": table, "training_0": table.slice(0, 1000), "training_1": table.slice(1000, 500)}.items():
        client.create_table(client_library.Table(f"p.taxi.{name}", [
            client_library.SchemaField("note", "STRING"), client_library.SchemaField("payment", "STRING"),
            client_library.SchemaField("fare", "FLOAT64"), client_library.SchemaField("pickup", "TIMESTAMP"),
        ]))  # fmt: skip
        file = io.BytesIO()
        pq.write_table(part, file)
        file.seek(0)
        how = client_library.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_TRUNCATE")
        client.load_table_from_file(file, f"p.taxi.{name}", job_config=how).result()


@pytest.fixture
def service(emulator: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    for name in PROJECTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in emulator[1].items():
        monkeypatch.setenv(name, value)
    return emulator[0]


def test_every_row_is_read_once_and_in_the_same_order(service):
    first = rows()
    assert by_value(first) == expected(trips(ROWS))
    assert rows() == first
    assert bigquery.count(TABLE, Reading()) == ROWS


def test_a_filter_and_a_wildcard(service):
    found = rows(row_filter="fare > 10 AND payment = 'card'")
    assert by_value(found) == [row for row in expected(trips(ROWS)) if (row[0] or 0) > 10 and row[2] == "card"]
    assert by_value(rows("bq://p.taxi.training_*")) == expected(trips(ROWS).slice(0, 1500))


def test_a_stream_is_read_on_from_an_offset(service):
    """What goes on after a cut: the service's own rows from the offset on are those that it would have sent."""
    storage = bigquery._storage_client()
    (table,) = bigquery._find(bigquery._rest_client(TABLE, Reading())[1], TABLE, Reading(), COLUMNS[1:])
    session = bigquery._session(storage, table, "p", "")
    name = session.streams[0].name

    def numbers(offset: int) -> list:
        schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
        responses = storage.read_rows(read_stream=name, offset=offset, retry=None)
        batches = [pa.ipc.read_record_batch(pa.py_buffer(r.arrow_record_batch.serialized_record_batch), schema) for r in responses]
        return pa.Table.from_batches(batches)["pickup"].to_pylist()

    if service == "bqemulator":
        pytest.xfail("bqemulator 1.4 sends a stream from its beginning, whatever the offset")
    whole = numbers(0)
    assert numbers(1234) == whole[1234:]


@pytest.mark.parametrize("path, said", [("bq://p.taxi.trip", "it has training_0, training_1, trips."), ("bq://p.tax.trips", "tax of p")])
def test_what_is_not_there_is_said_so(service, path, said):
    with pytest.raises(UserError, match=f"^{path}: there is no such table in the dataset .*{said}"):
        rows(path)


def test_a_wrong_filter_is_said_so(service):
    said = "" if service == "bqemulator" else "--row_filter='fair > 1': BigQuery cannot read this "  # it says that there is no table
    with pytest.raises(UserError, match=f"^{TABLE}: {said}.*fair"):
        rows(row_filter="fair > 1")


def test_a_batch_prediction_goes_from_a_table_into_tables(service, emulator, tmp_path):
    local = echo_service(tmp_path, **emulator[1])
    try:
        source = {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": "bq://p.taxi.training_1"}}
        to = {"predictionsFormat": "bigquery", "bigqueryDestination": {"outputUri": "bq://p"}}
        job = {"displayName": "b", "model": echo_model(local), "inputConfig": source, "outputConfig": to}
        done = run(local, job, seconds=120)
        name = done["outputInfo"]["bigqueryOutputDataset"].removeprefix("bq://")
        client = client_library.Client("p", credentials=AnonymousCredentials())
        found = [dict(row) for row in client.list_rows(f"{name}.predictions")]
        wanted = {row["fare"] for row in trips(ROWS).slice(1000, 500).to_pylist()}
        assert len(found) == 500 and {row["fare"] for row in found} == wanted
        assert all(json.loads(row["prediction"])[2] == row["fare"] for row in found)
        assert client.get_table(f"{name}.errors").num_rows == 0
    finally:
        local.stop()


def test_bq_sees_the_same_tables(service, emulator, tmp_path):
    if shutil.which("bq") is None:
        pytest.skip("bq is not installed here: it comes with gcloud, and from no registry of Python packages")
    if service == "bqemulator":
        pytest.skip("bqemulator 1.4 answers bq with 404: bq asks it for a discovery document that it does not have")

    def bq(*words: str) -> str:
        variables = {"CLOUDSDK_CONFIG": str(tmp_path), "HOME": str(tmp_path), "CLOUDSDK_AUTH_ACCESS_TOKEN": "none"}
        command = ["bq", f"--api={emulator[1]['BIGQUERY_EMULATOR_HOST']}", "--project_id=p", "--headless", "--format=json", *words]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip().splitlines()[-1]

    assert {each["tableReference"]["tableId"] for each in json.loads(bq("ls", "taxi"))} == {"trips", "training_0", "training_1"}
    condition = "fare > 10 AND payment = 'card'"
    (answer,) = json.loads(bq("query", "--use_legacy_sql=false", f"SELECT COUNT(*) AS n FROM taxi.trips WHERE {condition}"))
    assert int(answer["n"]) == len(rows(row_filter=condition))
