"""A Feast feature store on Redis, as users of Feast have it: applied, materialized from Parquet, then served or read.

    store.py materialize FOLDER REDIS_HOST:PORT [CARDS [FEATURES]]   # apply, and materialize into Redis
    store.py client URL                                             # Feast's client reads from a server at URL

`materialize` makes the views card_profile (a few values of each type) and wide (FEATURES numbers) of CARDS cards, in the project
`fraud`. `feast -c FOLDER serve` then answers from it.
"""

import json
import os
import sys
from datetime import datetime, timedelta, timezone

import numpy
import pandas
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Float64, Int64, String

SINCE = datetime(2018, 3, 1, tzinfo=timezone.utc)
UNTIL = SINCE + timedelta(days=1)


def write_config(folder, online_store):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "feature_store.yaml"), "w") as file:
        json.dump(
            {
                "project": "fraud",
                "provider": "local",
                "registry": os.path.join(folder, "registry.db"),
                "online_store": online_store,
                "entity_key_serialization_version": 3,
            },
            file,
        )
    return FeatureStore(repo_path=folder)


def definitions(folder, features):
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)

    def view(name, schema):
        source = FileSource(path=os.path.join(folder, f"{name}.parquet"), timestamp_field="event_timestamp")
        return FeatureView(name=name, entities=[card], schema=schema, source=source, ttl=timedelta(days=100_000))

    profile = view(
        "card_profile",
        [
            Field(name="credit_limit", dtype=Float64),
            Field(name="premium", dtype=Bool),
            Field(name="chargebacks", dtype=Int64),
            Field(name="segment", dtype=String),
        ],
    )
    wide = view("wide", [Field(name=f"value_{at:03}", dtype=Float32) for at in range(features)])
    service = FeatureService(name="profiles", features=[profile[["credit_limit", "chargebacks"]]])
    return [card, profile, wide, service]


def materialize(folder, redis, cards=1000, features=250):
    store = write_config(folder, {"type": "redis", "connection_string": redis})
    random = numpy.random.default_rng(0)
    keys = {"card_id": [str(card) for card in range(cards)], "event_timestamp": [SINCE] * cards}
    numbers = random.integers(1, 20, cards)
    profile = {
        "credit_limit": numbers * 500.0,
        "premium": numbers % 5 == 0,
        "chargebacks": numbers % 3,
        "segment": [f"s{number}" for number in numbers],
    }
    # A value that is not known.
    profile["credit_limit"][3] = numpy.nan
    pandas.DataFrame(keys | profile).to_parquet(os.path.join(folder, "card_profile.parquet"))
    values = {f"value_{at:03}": random.normal(size=cards).astype("float32") for at in range(features)}
    pandas.DataFrame(keys | values).to_parquet(os.path.join(folder, "wide.parquet"))
    store.apply(definitions(folder, features))
    store.materialize(SINCE - timedelta(days=1), UNTIL)
    # The same rows for `fraudline profiles load`.
    pandas.DataFrame(keys | values).rename(columns={"event_timestamp": "event_time"}).to_parquet(
        os.path.join(folder, "wide_profiles.parquet")
    )


def client(url):
    """What Feast's client gets from a server, as JSON: values and statuses by name, and how an unknown view is refused."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = write_config(folder, {"type": "remote", "path": url})
        keys = {"card_id": [], "event_timestamp": pandas.to_datetime([], utc=True)}
        for name, columns in {
            "card_profile": {"credit_limit": [0.0][:0], "premium": [True][:0], "chargebacks": [1][:0], "segment": [""][:0]},
            "wide": {},
        }.items():
            pandas.DataFrame(keys | columns).to_parquet(os.path.join(folder, f"{name}.parquet"))
        store.apply(definitions(folder, 1))
        rows = [{"card_id": "1"}, {"card_id": "2"}, {"card_id": "nobody"}]
        features = ["card_profile:credit_limit", "card_profile:chargebacks"]
        answer = store.get_online_features(features=features, entity_rows=rows, full_feature_names=True)
        by_service = store.get_online_features(features=store.get_feature_service("profiles"), entity_rows=rows)
        print(json.dumps({"values": answer.to_dict(), "by_service": by_service.to_dict()}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "materialize":
        materialize(*arguments[:2], *(int(argument) for argument in arguments[2:]))
    else:
        client(*arguments)
