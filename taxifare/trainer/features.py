"""What a trip's raw inputs say of its fare: time, place, route and map cells, in TensorFlow operations only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

COORDINATES = ("pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude")
KM_PER_LON, KM_PER_LAT, LON_0, LAT_0 = 84.3, 111.2, -73.98, 40.75  # at the latitude of New York; origin in Midtown
SERVICE_RADIUS = 50.0  # km from the origin; a position further off is taken for a broken GPS fix
CELL_RANGE = 16.0  # km each way covered by the cells of the crosses; a wider map would leave most cells empty
MAX_CELL_PAIRS = 1 << 16  # rows of an embedding at most; pairs of cells beyond that are hashed
PLACES = {"jfk": (-73.7822, 40.6441), "lga": (-73.8720, 40.7740), "ewr": (-74.1770, 40.6925)}  # flat fares, surcharges
PLACES |= {"midtown": (-73.9857, 40.7577), "downtown": (-74.0090, 40.7100)}  # slow traffic

Features = dict[str, tf.Tensor]
Point = tuple[tf.Tensor, tf.Tensor]  # km east and km north of the origin


def _digits(stamps: tf.Tensor) -> tf.Tensor:
    """`2011-01-28 20:42:59...` -> int32 [n, 19]: character codes less that of `0`; what follows is ignored."""
    return tf.cast(tf.io.decode_raw(stamps, tf.uint8, fixed_length=19), tf.int32) - ord("0")


def _number(digits: tf.Tensor, start: int, end: int) -> tf.Tensor:
    """The number written in columns `start` to `end` (exclusive)."""
    value = digits[:, start]
    for column in range(start + 1, end):
        value = value * 10 + digits[:, column]
    return value


def _day_number(year: Any, month: Any, day: Any) -> Any:
    """Days since 1 March of year 0, for ints and int tensors; years that start in March have the leap day last."""
    march_month, year = (month + 9) % 12, year - (14 - month) // 12  # January and February belong to the year before
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * march_month + 2) // 5 + day - 1


FARE_RISE = _day_number(2012, 9, 4)  # the fare per mile rose by a quarter, the flat fare to JFK from $45 to $52


def _time_features(stamps: tf.Tensor) -> Features:
    """What the clock changes: the tariff in force, and traffic."""
    digits = _digits(stamps)
    days = _day_number(_number(digits, 0, 4), _number(digits, 5, 7), _number(digits, 8, 10))
    hour = tf.cast(_number(digits, 11, 13), tf.float32) + tf.cast(_number(digits, 14, 16), tf.float32) / 60.0
    workday = (days + 2) % 7 < 5  # Monday is 0
    angle = hour * (2 * math.pi / 24)
    return {
        "after_rise": tf.cast(days >= FARE_RISE, tf.float32),
        "busy": tf.cast(workday & (hour >= 8) & (hour < 19), tf.float32),
        "sine": tf.sin(angle),
        "cosine": tf.cos(angle),
    }


def _ends(raw: Mapping[str, tf.Tensor]) -> tuple[Point, Point, tf.Tensor]:
    """Both ends of the trip, and 1.0 where one cannot be true: that one is put where the other is."""
    points, known = [], []
    for end in ("pickup", "dropoff"):
        east = (raw[f"{end}_longitude"] - LON_0) * KM_PER_LON
        north = (raw[f"{end}_latitude"] - LAT_0) * KM_PER_LAT
        points.append(tf.stack([east, north]))
        known.append(east * east + north * north < SERVICE_RADIUS**2)  # false for NaN, too
    pickup = tf.where(known[0], points[0], tf.where(known[1], points[1], 0.0))
    dropoff = tf.where(known[1], points[1], pickup)
    return tuple(tf.unstack(pickup)), tuple(tf.unstack(dropoff)), 1.0 - tf.cast(known[0] & known[1], tf.float32)


def _regions(point: Point) -> Features:
    """Where other tariffs hold: Manhattan (0..1), km into New Jersey, km past the city to the north and east."""
    lon, lat = point[0] / KM_PER_LON + LON_0, point[1] / KM_PER_LAT + LAT_0
    hudson = -74.013 + (lat - 40.76) * tf.where(lat > 40.76, 0.675, 0.23)
    east_river = tf.minimum(-73.972 + 0.62 * tf.nn.relu(lat - 40.735), -73.928)
    south_end = 40.70 + 0.3 * tf.nn.relu(lon + 74.01)
    inland = tf.minimum(tf.minimum(east_river - lon, lon - hudson) * KM_PER_LON, (lat - south_end) * KM_PER_LAT)
    return {
        "manhattan": tf.sigmoid(tf.minimum(inland, (40.88 - lat) * KM_PER_LAT) / 0.15),
        "jersey": tf.where(lat > 40.645, tf.nn.relu(hudson - lon) * KM_PER_LON, 0.0),  # south of it: Staten Island
        "suburb": tf.nn.relu(lon + 73.72) * KM_PER_LON + tf.nn.relu(lat - 40.905) * KM_PER_LAT,
    }


def _trip_features(pickup: Point, dropoff: Point) -> Features:
    """How far, between which places."""
    east, north = dropoff[0] - pickup[0], dropoff[1] - pickup[1]
    cosine, sine = math.cos(math.radians(29)), math.sin(math.radians(29))  # the avenues run 29 degrees off north
    along, across = tf.abs(east * sine + north * cosine), tf.abs(east * cosine - north * sine)
    straight = tf.sqrt(east * east + north * north + 1e-6)
    values = {"east": east, "north": north, "along": along, "across": across, "blocks": along + across}
    values |= {"straight": straight, "log_straight": tf.math.log1p(4.0 * straight)}
    first, second = _regions(pickup), _regions(dropoff)
    for end, point, region in (("pickup", pickup, first), ("dropoff", dropoff, second)):
        values |= {f"{end}_east": point[0], f"{end}_north": point[1], f"{end}_manhattan": region["manhattan"]}
        for name, (lon, lat) in PLACES.items():
            x, y = point[0] - (lon - LON_0) * KM_PER_LON, point[1] - (lat - LAT_0) * KM_PER_LAT
            away = tf.sqrt(x * x + y * y)
            values[f"{end}_from_{name}"] = tf.math.log(away + 0.3)
            values[f"{end}_at_{name}"] = tf.sigmoid((2.2 - away) / 0.3)
    values["within_manhattan"] = first["manhattan"] * second["manhattan"]
    return values | {f"{name}_change": tf.abs(first[name] - second[name]) for name in ("jersey", "suburb")}


def city_features(raw: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Point, Point]:
    """float32 [n, 43], not standardised yet, and both ends of the trip."""
    pickup, dropoff, unknown = _ends(raw)
    time, trip = _time_features(raw["pickup_datetime"]), _trip_features(pickup, dropoff)
    passengers = tf.where(raw["passenger_count"] > 0.0, tf.minimum(raw["passenger_count"], 9.0), 0.0)  # NaN: 0
    to_jfk = trip["pickup_at_jfk"] * trip["dropoff_manhattan"] + trip["dropoff_at_jfk"] * trip["pickup_manhattan"]
    flat_fare = to_jfk * (45.0 + 7.0 * time["after_rise"])
    return tf.stack([*time.values(), *trip.values(), flat_fare, unknown, passengers], axis=1), pickup, dropoff


def lab_features(raw: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """float32 [n, 5], not standardised yet: what the published course feeds its network, coordinates and distance."""
    lon_1, lat_1, lon_2, lat_2 = (raw[name] for name in COORDINATES)
    return tf.stack([lon_1, lat_1, lon_2, lat_2, tf.sqrt((lon_2 - lon_1) ** 2 + (lat_2 - lat_1) ** 2)], axis=1)


def cell_pairs(scaled: list[tf.Tensor], nbuckets: int) -> tf.Tensor:
    """Four coordinates, 0..1 across the map -> int32 [n, 1]: id of the pair of pickup cell and dropoff cell."""
    edges = np.linspace(0.0, 1.0, nbuckets).tolist()
    lon_1, lat_1, lon_2, lat_2 = (tf.raw_ops.Bucketize(input=value, boundaries=edges) for value in scaled)
    pickup, dropoff = lon_1 * (nbuckets + 1) + lat_1, lon_2 * (nbuckets + 1) + lat_2
    pair = tf.cast(pickup, tf.int64) * (nbuckets + 1) ** 2 + tf.cast(dropoff, tf.int64)
    if (nbuckets + 1) ** 4 > MAX_CELL_PAIRS:
        pair = (pair % (2**31 - 1)) * 2654435761 // 2**16 % MAX_CELL_PAIRS  # multiplicative hash; stays below 2^63
    return tf.cast(pair, tf.int32)[:, None]
