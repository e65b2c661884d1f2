"""Download the published course's taxi trips from BigQuery's public table into CSV files.

The course samples rows by a hash of the pickup time: so each query gives the same rows, and all trips of one second are in
the same set. Training takes rows whose hash is 1 modulo 1,000, validation those whose hash is 2 modulo 10,000.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vertex_runtime.errors import FAILED, UserError, first_line
from vertex_runtime.reporting import log

ROWS = 250_000  # rows of a CSV file
COLUMNS = (
    "fare_amount", "pickup_datetime", "pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude",
    "passenger_count", "key",
)  # fmt: skip
QUERY = """\
SELECT tolls_amount + fare_amount AS fare_amount,
  FORMAT_TIMESTAMP('%F %T UTC', pickup_datetime) AS pickup_datetime,
  pickup_longitude, pickup_latitude, dropoff_longitude, dropoff_latitude, passenger_count, 'unused' AS key
FROM `{table}`
WHERE ABS(MOD(FARM_FINGERPRINT(CAST(pickup_datetime AS STRING)), {modulus})) = {remainder}
  AND trip_distance > 0 AND fare_amount >= 2.5
  AND pickup_longitude > -78 AND pickup_longitude < -70 AND dropoff_longitude > -78 AND dropoff_longitude < -70
  AND pickup_latitude > 37 AND pickup_latitude < 45 AND dropoff_latitude > 37 AND dropoff_latitude < 45
  AND passenger_count > 0
ORDER BY FARM_FINGERPRINT(FORMAT('%T', STRUCT(pickup_datetime, pickup_longitude, dropoff_longitude, fare_amount)))"""


def download(table: str, sample: int, project: str | None, folder: str) -> list[str]:
    """Run the queries and write `taxi-train-00001.csv` and so on; a set that an earlier start has finished is kept.

    Raises:
        UserError: the folder has files of another query, or the client library, the network or a permission is missing; the
            message says how to get the rows by hand.
    """
    if sample < 3:
        raise UserError(f"--sample must be 3 or more for taxifare, so that no trip is in both sets; got {sample}.")
    # A hash that is 2 modulo 10 N is also 2 modulo N, and training takes 1 modulo N: so the sets have no pickup time in common.
    queries = {
        "train": QUERY.format(table=table, modulus=sample, remainder=1),
        "valid": QUERY.format(table=table, modulus=10 * sample, remainder=2),
    }
    client, found, done = None, {}, {name: Path(folder, f".taxi-{name}.done") for name in queries}
    for name, query in queries.items():
        found[name] = sorted(Path(folder).glob(f"taxi-{name}-*.csv"))
        if found[name] and not _holds(done[name], query):
            remedy = "Train with it, or name another folder. Nothing was overwritten."
            raise UserError(f"--to: {found[name][0]} is not of this query, or was put there by hand. {remedy}")
    for name, query in queries.items():
        if found[name]:
            log("INFO", f"{folder}: taxi-{name} is here already, {len(found[name])} files")
            continue
        by_hand = _by_hand(query, name, folder)
        client = client or _client(project, by_hand)
        found[name] = write_shards(_rows(client, query, by_hand), Path(folder), name)
        done[name].write_text(query, encoding="utf-8")
    log("INFO", f"scripts/train taxifare --train_data_path='{folder}/taxi-train-*.csv' --eval_data_path='{folder}/taxi-valid-*.csv'")
    return [str(path) for paths in found.values() for path in paths]


def _holds(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") == text
    return False


def _by_hand(query: str, name: str, folder: str) -> str:
    text = " ".join(query.split()).replace("`", r"\`")
    rows = 2_000_000  # more than the default sample has
    return (
        f'Where there is a network and the bq command: bq query --nouse_legacy_sql --format=csv --max_rows={rows} "{text}" '
        f"> taxi-{name}-00001.csv, and put the file into {folder}."
    )


def _client(project: str | None, by_hand: str) -> Any:
    try:
        from google.cloud import bigquery
    except ImportError:
        raise UserError(f"taxifare needs google-cloud-bigquery: pip install '.[bigquery]'. {by_hand}") from None
    try:
        return bigquery.Client(project=project)
    except Exception as error:  # several types of google.auth's
        text = f"BigQuery cannot be asked: {first_line(error)}. Log in: gcloud auth application-default login. {by_hand}"
        raise UserError(text, FAILED) from None


def _rows(client: Any, query: str, by_hand: str) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows; first log how many bytes it reads, because that decides its price."""
    from google.cloud import bigquery

    try:
        dry = client.query(query, job_config=bigquery.QueryJobConfig(dry_run=True, use_query_cache=False))
        log("INFO", f"the query reads {dry.total_bytes_processed / 2**30:,.1f} GiB, which {client.project} pays for")
        for row in client.query(query).result():
            yield tuple(row[name] for name in COLUMNS)
    except Exception as error:  # google.api_core's, google.auth's, requests'
        raise UserError(f"BigQuery did not answer: {first_line(error)}. See --project and the network. {by_hand}", FAILED) from None


def write_shards(rows: Iterable[tuple[Any, ...]], folder: Path, name: str) -> list[Path]:
    """Write rows to CSV files with a header and return their paths; the files get their names only when all are complete.

    Raises:
        UserError: the folder cannot be written to, or there are no rows.
    """
    numbered, paths, count = enumerate(rows, 1), [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"taxi-{name}-*.csv.part"):  # by an earlier start that did not end
            left.unlink()
        for count, first in numbered:
            paths.append(folder / f"taxi-{name}-{len(paths) + 1:05d}.csv")
            with open(f"{paths[-1]}.part", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerows((COLUMNS, first))
                for count, row in itertools.islice(numbered, ROWS - 1):  # noqa: B007 - told below
                    writer.writerow(row)
                file.flush()
                os.fsync(file.fileno())
        if not count:
            raise UserError(f"--table: the query for taxi-{name} gave no rows. Name another table or a smaller --sample.", FAILED)
        for path in paths:
            os.replace(f"{path}.part", path)
    except OSError as error:
        raise UserError(f"--to: cannot write into {folder}: {error.strerror}. Name another folder.", FAILED) from None
    log("INFO", f"{folder}: taxi-{name}, {count:,} rows in {len(paths)} files")
    return paths
