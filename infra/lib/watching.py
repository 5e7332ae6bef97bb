"""Rules and dashboards against running processes: python watching.py FRAUDLINE

Starts `fraudline up`, and where Kafka and Redis answer (FRAUDLINE_TEST_KAFKA, FRAUDLINE_TEST_REDIS) the services too: a
materializer, a feature server, and a scorer that follows a model registry and was asked for a GPU that is not there. Prometheus
scrapes them all with infra/prometheus/rules.yaml. Then:

- every metric that rules, dashboards and runbooks name is one that a process shows;
- Prometheus evaluates each rule without an error, and the lost GPU fires its alert;
- each expression of each dashboard returns data;
- each dashboard is one by Grafana's own types: nothing is lost when it is read and written by them.

Without the services, names and expressions that need them are skipped, by name; FRAUDLINE_SERVICES=required makes that a
failure.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

INFRA = pathlib.Path(__file__).resolve().parent.parent
METRIC = re.compile(r"\bfraudline_[a-z0-9_]+")
DASHBOARDS = ("on-call", "fraud-team")
WARM_UP_S = 25
DEADLINE_S = 90


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def answers(address):
    host, port = address.split("://")[-1].split(",")[0].rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


class Processes:
    """Child processes, each with its log; all end with the block."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, command, **environment):
        log = (self.folder / f"{name}.log").open("w")
        # Of the surroundings nothing but this is to reach them.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FRAUDLINE_")}
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean | environment)
        self.running.append((name, process))

    def check(self):
        for name, process in self.running:
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text()[-2000:]
                raise SystemExit(f"{name} ended with {process.returncode}:\n{log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in self.running:
            process.terminate()
        for _, process in self.running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(processes, what, ready):
    deadline = time.monotonic() + DEADLINE_S
    while True:
        processes.check()
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} was not ready within {DEADLINE_S} s")
        time.sleep(0.3)


def is_ready(port):
    def ready():
        get(f"http://127.0.0.1:{port}/ready")
        return True

    return ready


def start_services(processes, fraudline, folder, kafka, redis):
    """Starts the services; returns their ports."""
    registry = folder / "models"
    registry.mkdir()
    add = [fraudline, "model", "add", str(INFRA.parent / "models/artifacts/default"), "--registry", str(registry)]
    for version, alias in ((1, "champion"), (2, "challenger")):
        subprocess.run([*add, "--as", f"fraud@{version}", "--alias", alias], check=True, stdout=subprocess.DEVNULL)
    config = folder / "fraudline.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "kafka": {"brokers": kafka, "topic_prefix": f"watching-{os.getpid()}."},
                "topics": {"partitions": 4},
                "store": {"redis": {"urls": [redis], "key_prefix": f"fraudline:watching-{os.getpid()}"}},
                "model": {
                    "registry": str(registry),
                    "name": "fraud",
                    "challenger": "challenger",
                    "device": "cuda:0",
                    "fallback": "cpu",
                },
            }
        )
    )
    ports = []
    for command in ("materialize", "score", "serve"):
        ports.append(free_port())
        arguments = [fraudline, command, "--http", f"127.0.0.1:{ports[-1]}"]
        # The GPU is not there on any machine.
        processes.start(command, arguments, FRAUDLINE_CONFIG=str(config), CUDA_VISIBLE_DEVICES="-1")
        wait(processes, f"fraudline {command}", is_ready(ports[-1]))
    processes.start("simulate", [fraudline, "simulate", "--to", "kafka", "--rate", "200"], FRAUDLINE_CONFIG=str(config))
    return ports


def look_up(port):
    """Asks the feature server for something, so that it has something to count."""
    body = {"features": ["terminal:TERMINAL_ID_RISK_30DAY_WINDOW"], "entities": {"terminal_id": ["1", "2"]}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/get-online-features", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["results"], "a lookup was answered with nothing"


def start_prometheus(processes, folder, ports):
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "fraudline", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        ],
    }
    # The rules as they are, evaluated each second.
    rules = (INFRA / "prometheus/rules.yaml").read_text()
    (folder / "rules.yaml").write_text(rules.replace("interval: 15s", "interval: 1s"))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    processes.start("prometheus", ["prometheus", *arguments, f"--web.listen-address=127.0.0.1:{port}"])
    url = f"http://127.0.0.1:{port}"
    wait(processes, "prometheus", lambda: get(f"{url}/-/ready"))
    return url


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def lost(before, after, path=""):
    """Yields where a dashboard differs after it was read and written by Grafana's types."""
    if isinstance(before, dict):
        for key, value in before.items():
            if not isinstance(after, dict) or key not in after:
                yield f"{path}.{key}"
            else:
                yield from lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list):
        if not isinstance(after, list) or len(after) != len(before):
            yield path
        else:
            for index, pair in enumerate(zip(before, after)):
                yield from lost(*pair, f"{path}[{index}]")
    elif before is not None and before != after:
        yield path


def main():
    fraudline = str(pathlib.Path(sys.argv[1]).resolve())
    kafka = os.environ.get("FRAUDLINE_TEST_KAFKA", "127.0.0.1:19092")
    redis = os.environ.get("FRAUDLINE_TEST_REDIS", "redis://127.0.0.1:16379")
    with_services = answers(kafka) and answers(redis)
    if not with_services:
        missing = f"Kafka at {kafka} and Redis at {redis}; `infra/local/services start kafka redis` starts them"
        if os.environ.get("FRAUDLINE_SERVICES") == "required":
            raise SystemExit(f"no {missing}")
        print(f"skipped: what only the services show: no {missing}")
    wrong = []
    dashboards = {name: json.loads((INFRA / f"grafana/{name}.json").read_text()) for name in DASHBOARDS}
    for name, dashboard in dashboards.items():
        again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))
        wrong += [f"dashboard {name}: Grafana knows no {place}" for place in lost(dashboard, again)]
    with tempfile.TemporaryDirectory() as temporary, Processes(pathlib.Path(temporary)) as processes:
        folder = pathlib.Path(temporary)
        ports = [free_port()]
        up = [fraudline, "up", "--rate", "500", "--data-dir", str(folder / "up"), "--http", f"127.0.0.1:{ports[0]}"]
        processes.start("up", up)
        wait(processes, "fraudline up", is_ready(ports[0]))
        if with_services:
            ports += start_services(processes, fraudline, folder, kafka, redis)
        prometheus = start_prometheus(processes, folder, ports)
        for _ in range(WARM_UP_S):
            if with_services:
                look_up(ports[-1])
            processes.check()
            time.sleep(1)

        shown = set()
        for port in ports:
            names = METRIC.findall(get(f"http://127.0.0.1:{port}/metrics"))
            shown.update(name for name in names)
        files = [INFRA / "prometheus/rules.yaml", *INFRA.glob("grafana/*.json"), *INFRA.glob("runbooks/*.md")]
        named = {name: file.name for file in files for name in METRIC.findall(file.read_text())}
        unknown = sorted(set(named) - shown)
        # Runbooks may name a metric without its _total, _sum and so on only if it is written so nowhere else.
        if with_services:
            wrong += [f"{named[name]} names {name}, which no process shows" for name in unknown]
        elif unknown:
            print(f"skipped: not checked without the services: {', '.join(unknown)}")

        rules = json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        for rule in (rule for group in rules for rule in group["rules"]):
            if rule["health"] != "ok":
                wrong.append(f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
        alerts = json.loads(get(f"{prometheus}/api/v1/alerts"))["data"]["alerts"]
        firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
        if with_services and firing != {"FraudlineDeviceLost"}:
            wrong.append(f"a lost GPU fires FraudlineDeviceLost and nothing else, not {sorted(firing)}")

        asked = without = 0
        for name, dashboard in dashboards.items():
            for title, expression in expressions(dashboard):
                query = expression.replace("$namespace", ".*").replace("$__rate_interval", "30s")
                parameters = urllib.parse.urlencode({"query": query})
                asked += 1
                try:
                    answer = json.loads(get(f"{prometheus}/api/v1/query?{parameters}"))["data"]["result"]
                except urllib.error.HTTPError as error:
                    wrong.append(f"dashboard {name}, {title}: {error.read().decode()}: {expression}")
                    continue
                if not answer and (with_services or not set(METRIC.findall(expression)) & set(unknown)):
                    wrong.append(f"dashboard {name}, {title}: no data: {expression}")
                without += not answer
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(f"{len(shown)} metrics shown, {len(named)} named; {len(firing)} alert fires; {asked} expressions, {without} without data")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
