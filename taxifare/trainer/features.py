"""What a trip's raw inputs say: time, place, route and tariff as numbers, in TensorFlow operations only.

`features="city"` (default) turns a trip into facts a meter knows: street distance, tariff, airports, rivers, city limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Kilometres per degree at the latitude of New York, and the origin of all coordinates (Midtown).
KM_PER_LON, KM_PER_LAT, LON_0, LAT_0 = 84.3, 111.2, -73.98, 40.75
# Beyond this many km from the origin a position is taken for a broken GPS fix: cabs do not go there.
SERVICE_RADIUS = 50.0
# The cells of the crosses cover this half-width (km); a wider box would put all trips into few cells.
CELL_RANGE = 16.0
MAX_CELL_PAIRS = 1 << 16
AIRPORTS = {"jfk": (-73.7822, 40.6441), "lga": (-73.8720, 40.7740), "ewr": (-74.1770, 40.6925)}
CENTRES = {"midtown": (-73.9857, 40.7577), "downtown": (-74.0090, 40.7100)}


COORDINATES = ("pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude")

Point = tuple[tf.Tensor, tf.Tensor]


def _digits(stamps: tf.Tensor) -> tf.Tensor:
    """`2011-01-28 20:42:59...` -> int32 [n, 19] of character code minus `0`; anything after is ignored."""
    return tf.cast(tf.io.decode_raw(stamps, tf.uint8, fixed_length=19), tf.int32) - ord("0")


def _number(digits: tf.Tensor, start: int, end: int) -> tf.Tensor:
    value = digits[:, start]
    for column in range(start + 1, end):
        value = value * 10 + digits[:, column]
    return value


def _day_number(year: Any, month: Any, day: Any, before_march: Any) -> Any:
    """Days since 1 March of year 0, for ints and int tensors. Years start in March so that leap days come last."""
    year, month = year - before_march, (month + 9) % 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1


# On this day the fare per mile rose by a quarter and the flat fare to JFK from $45 to $52.
FARE_RISE = _day_number(2012, 9, 4, False)


def _time_features(stamps: tf.Tensor) -> dict[str, tf.Tensor]:
    digits = _digits(stamps)
    month = _number(digits, 5, 7)
    days = _day_number(_number(digits, 0, 4), month, _number(digits, 8, 10), tf.cast(month < 3, tf.int32))
    hour = tf.cast(_number(digits, 11, 13), tf.float32) + tf.cast(_number(digits, 14, 16), tf.float32) / 60.0
    workday = (days + 2) % 7 < 5  # Monday is 0
    values = {
        "after_rise": tf.cast(days >= FARE_RISE, tf.float32),
        "years": tf.cast(days - FARE_RISE, tf.float32) / 365.25,
        "workday": tf.cast(workday, tf.float32),
        "busy": tf.cast(workday & (hour >= 8) & (hour < 19), tf.float32),
        "evening": tf.cast(workday & (hour >= 16) & (hour < 20), tf.float32),  # $1 surcharge
        "night": tf.cast((hour >= 20) | (hour < 6), tf.float32),  # $0.50 surcharge
    }
    for harmonic in (1, 2):
        angle = hour * (2 * math.pi * harmonic / 24)
        values |= {f"sin_{harmonic}": tf.sin(angle), f"cos_{harmonic}": tf.cos(angle)}
    return values


def _kilometres(raw: Mapping[str, tf.Tensor]) -> tuple[Point, Point, tf.Tensor]:
    """Both ends in km east and north of Midtown; an end that cannot be true is put where the other end is."""
    ends, known = [], []
    for end in ("pickup", "dropoff"):
        east = (raw[f"{end}_longitude"] - LON_0) * KM_PER_LON
        north = (raw[f"{end}_latitude"] - LAT_0) * KM_PER_LAT
        known.append(east * east + north * north < SERVICE_RADIUS**2)  # false for NaN, too
        zeros = tf.zeros_like(east)
        ends.append((tf.where(known[-1], east, zeros), tf.where(known[-1], north, zeros)))
    pickup, dropoff = ends
    new_pickup = tuple(tf.where(known[0], mine, other) for mine, other in zip(pickup, dropoff, strict=True))
    new_dropoff = tuple(tf.where(known[1], mine, other) for mine, other in zip(dropoff, pickup, strict=True))
    return new_pickup, new_dropoff, 1.0 - tf.cast(known[0] & known[1], tf.float32)


def _distance(point: Point, place: tuple[float, float]) -> tf.Tensor:
    east, north = (place[0] - LON_0) * KM_PER_LON, (place[1] - LAT_0) * KM_PER_LAT
    return tf.sqrt((point[0] - east) ** 2 + (point[1] - north) ** 2 + 1e-6)


def _regions(point: Point) -> dict[str, tf.Tensor]:
    """Where the tariff differs: Manhattan, Staten Island, km into New Jersey, km beyond the city to the north/east."""
    lon, lat = point[0] / KM_PER_LON + LON_0, point[1] / KM_PER_LAT + LAT_0
    hudson = -74.013 + (lat - 40.76) * tf.where(lat > 40.76, 0.675, 0.23)
    east_river = tf.minimum(-73.972 + 0.62 * tf.nn.relu(lat - 40.735), -73.928)
    battery = 40.70 + 0.3 * tf.nn.relu(lon + 74.01)
    inside = tf.minimum((east_river - lon) * KM_PER_LON, (lon - hudson) * KM_PER_LON)
    inside = tf.minimum(inside, tf.minimum(lat - battery, 40.88 - lat) * KM_PER_LAT)
    south = tf.sigmoid((40.645 - lat) * KM_PER_LAT / 0.3)
    return {
        "manhattan": tf.sigmoid(inside / 0.15),
        "staten_island": tf.sigmoid((-74.05 - lon) * KM_PER_LON / 0.3) * south,
        "jersey": tf.nn.relu(hudson - lon) * KM_PER_LON * (1.0 - south),
        "suburb": tf.nn.relu(lon + 73.72) * KM_PER_LON + tf.nn.relu(lat - 40.905) * KM_PER_LAT,
    }


def _trip_features(pickup: Point, dropoff: Point) -> dict[str, tf.Tensor]:
    east, north = dropoff[0] - pickup[0], dropoff[1] - pickup[1]
    cosine, sine = math.cos(math.radians(29)), math.sin(math.radians(29))  # the avenues run 29 degrees off north
    along, across = tf.abs(east * sine + north * cosine), tf.abs(east * cosine - north * sine)
    straight = tf.sqrt(east * east + north * north + 1e-6)
    values = {"east": east, "north": north, "along": along, "across": across, "straight": straight}
    values |= {"blocks": along + across, "log_straight": tf.math.log1p(4.0 * straight)}
    regions = [_regions(point) for point in (pickup, dropoff)]
    for end, point, region in zip(("pickup", "dropoff"), (pickup, dropoff), regions, strict=True):
        values |= {f"{end}_east": point[0], f"{end}_north": point[1], f"{end}_manhattan": region["manhattan"]}
        for name, place in CENTRES.items():
            values[f"{end}_{name}"] = tf.math.log(_distance(point, place) + 0.3)
        for name, place in AIRPORTS.items():
            values[f"{end}_{name}"] = tf.sigmoid((2.2 - _distance(point, place)) / 0.3)
    first, second = regions
    values["within_manhattan"] = first["manhattan"] * second["manhattan"]
    for name in ("staten_island", "jersey", "suburb"):
        values[f"{name}_change"] = tf.abs(first[name] - second[name])
        if name != "staten_island":
            values[f"{name}_both"] = tf.minimum(first[name], second[name])
    return values


def _tariff(trip: Mapping[str, tf.Tensor], time: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A taxi meter by rule of thumb: the network starts from it and learns what is left."""
    to_jfk = trip["pickup_jfk"] * trip["dropoff_manhattan"] + trip["dropoff_jfk"] * trip["pickup_manhattan"]
    newark = tf.maximum(trip["pickup_ewr"], trip["dropoff_ewr"])
    street = 0.5 * trip["blocks"] + 0.65 * trip["straight"]
    slow = 0.5 * street * (1.0 + time["busy"]) * trip["within_manhattan"]  # the meter also runs in traffic
    outside = trip["suburb_change"] + 0.8 * trip["jersey_change"]  # charged double beyond the city
    meter = 2.5 + (1.243 + 0.311 * time["after_rise"]) * (street + outside) + slow
    meter += newark * (15.0 + 2.5 * time["after_rise"])
    flat = to_jfk * (45.0 + 7.0 * time["after_rise"])
    return {"flat_fare": flat, "tariff": (1.0 - to_jfk) * meter + flat}


def pair_count(cells: int) -> int:
    return min(cells * cells, MAX_CELL_PAIRS)


def crosses(scaled: list[tf.Tensor], nbuckets: int) -> list[tf.Tensor]:
    """Four coordinates (0..1 within the map) -> ids of the pickup cell, of the dropoff cell and of both together."""
    edges = np.linspace(0.0, 1.0, nbuckets).tolist()
    lon_1, lat_1, lon_2, lat_2 = (tf.raw_ops.Bucketize(input=value, boundaries=edges) for value in scaled)
    pickup, dropoff = lon_1 * (nbuckets + 1) + lat_1, lon_2 * (nbuckets + 1) + lat_2
    cells = (nbuckets + 1) ** 2
    pair = tf.cast(pickup, tf.int64) * cells + tf.cast(dropoff, tf.int64)
    if cells * cells > MAX_CELL_PAIRS:  # too many to keep a row for each: hash
        pair = tf.math.floormod(pair * 2654435761, 2**31 - 1) % MAX_CELL_PAIRS
    return [pickup, dropoff, tf.cast(pair, tf.int32)]


def city_features(raw: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Point, Point]:
    """float32 [n, 43], not yet standardised, and both ends of the trip in km."""
    pickup, dropoff, unknown = _kilometres(raw)
    time, trip = _time_features(raw["pickup_datetime"]), _trip_features(pickup, dropoff)
    passengers = tf.clip_by_value(raw["passenger_count"], 0.0, 9.0)
    values = [*time.values(), *trip.values(), *_tariff(trip, time).values(), unknown, passengers]
    return tf.stack(values, axis=1), pickup, dropoff
