"""A Feast feature store on Redis, as users of Feast have it: applied, materialized from Parquet, then served or read.

    store.py materialize FOLDER REDIS_HOST:PORT PROJECT [CARDS [FEATURES]]   # apply, and materialize into Redis
    store.py client URL                                                      # Feast's client reads from a server at URL

`materialize` makes the views card_profile (a few values of each type) and wide (FEATURES numbers) of CARDS cards, and writes what Feast reads of
card_profile to card_profile.json. `feast -c FOLDER serve` then answers from it. The client
is tried on `fraudline up`.
"""

import json
import os
import sys
import tempfile
from datetime import datetime, timedelta, timezone

import numpy
import pandas
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import FeatureViewNotFoundException
from feast.types import Bool, Float32, Float64, Int64, String

SINCE = datetime(2018, 3, 1, tzinfo=timezone.utc)
UNTIL = SINCE + timedelta(days=1)


def write_config(folder, project, online_store):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "feature_store.yaml"), "w") as file:
        json.dump(
            {
                "project": project,
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


def materialize(folder, redis, project, cards=1000, features=250):
    store = write_config(folder, project, {"type": "redis", "connection_string": redis})
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
    # What Feast reads back, by card.
    features = ["card_profile:credit_limit", "card_profile:premium", "card_profile:chargebacks"]
    read = store.get_online_features(features=features, entity_rows=[{"card_id": card} for card in keys["card_id"]]).to_dict()
    with open(os.path.join(folder, "card_profile.json"), "w") as file:
        # JSON has no NaN.
        columns = {name: [None if value != value else value for value in values] for name, values in read.items()}
        json.dump(columns, file)


def client(url):
    """What Feast's client gets from a server with the Handbook's definitions, as JSON: values by name, and how an unknown view is refused."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_config(folder, "fraud", {"type": "remote", "path": url})
        card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
        terminal = Entity(name="terminal", join_keys=["terminal_id"], value_type=ValueType.STRING)

        def view(name, entity, features):
            key = entity.join_key
            source = FileSource(path=os.path.join(folder, f"{name}.parquet"), timestamp_field="event_timestamp")
            columns = {key: ["0"], "event_timestamp": [SINCE]} | {feature: [0.0] for feature in features}
            pandas.DataFrame(columns).to_parquet(source.path)
            schema = [Field(name=feature, dtype=Float64) for feature in features]
            return FeatureView(name=name, entities=[entity], schema=schema, source=source)

        days = [1, 7, 30]
        cards = view("card", card, [f"CUSTOMER_ID_NB_TX_{day}DAY_WINDOW" for day in days])
        terminals = view("terminal", terminal, [f"TERMINAL_ID_RISK_{day}DAY_WINDOW" for day in days])
        unknown = view("unknown", card, ["A"])
        service = FeatureService(name="fraud", features=[cards, terminals])
        store.apply([card, terminal, cards, terminals, unknown, service])
        rows = [{"card_id": "1", "terminal_id": "1"}, {"card_id": "nobody", "terminal_id": "nowhere"}]
        features = ["card:CUSTOMER_ID_NB_TX_7DAY_WINDOW", "terminal:TERMINAL_ID_RISK_7DAY_WINDOW"]
        answer = store.get_online_features(features=features, entity_rows=rows, full_feature_names=True)
        by_service = store.get_online_features(features=store.get_feature_service("fraud"), entity_rows=rows)
        try:
            store.get_online_features(features=["unknown:A"], entity_rows=[{"card_id": "1"}])
            refused = None
        except FeatureViewNotFoundException as error:
            refused = str(error)
        print(json.dumps({"values": answer.to_dict(), "by_service": by_service.to_dict(), "refused": refused}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "materialize":
        materialize(*arguments[:3], *(int(argument) for argument in arguments[3:]))
    else:
        client(*arguments)
