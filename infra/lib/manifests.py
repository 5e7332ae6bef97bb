"""Validates what the chart renders: python manifests.py SCHEMAS KUBERNETES FILE.yaml...

Kubernetes' own kinds go by its schemas (the package kubernetes-validate, strict: no unknown field), the others by SCHEMAS;
a kind that neither knows is an error. Besides: what a schema can't say of pods and their neighbours.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml


def validate(schemas, kubernetes, document):
    group_version, kind = document["apiVersion"], document["kind"]
    own = schemas / f"{group_version.replace('/', '-')}-{kind.lower()}.json"
    if own.exists():
        jsonschema.Draft7Validator(json.loads(own.read_text())).validate(document)
        return
    # Raises SchemaNotFoundError where the kind is not known.
    kubernetes_validate.validate(document, kubernetes, strict=True)


def relations(documents):
    """Yields what is wrong between the objects of one release."""
    workloads = [document for document in documents if document["kind"] in ("StatefulSet", "Deployment")]
    of_kind = lambda kind: [document for document in documents if document["kind"] == kind]
    selects = lambda selector, labels: selector and all(labels.get(key) == value for key, value in selector.items())
    for workload in workloads:
        name, pod = workload["metadata"]["name"], workload["spec"]["template"]
        labels = pod["metadata"]["labels"]
        if not selects(workload["spec"]["selector"]["matchLabels"], labels):
            yield f"{name} does not select its own pods"
        for kind, selector in (
            ("Service", lambda document: document["spec"]["selector"]),
            ("PodDisruptionBudget", lambda document: document["spec"]["selector"]["matchLabels"]),
            ("NetworkPolicy", lambda document: document["spec"]["podSelector"]["matchLabels"]),
        ):
            found = [document for document in of_kind(kind) if selects(selector(document), labels)]
            if len(found) != 1:
                yield f"{name} has {len(found)} of {kind}, not one"
        config = next(document for document in of_kind("ConfigMap") if "fraudline.yaml" in document["data"])
        drain = int(yaml.safe_load(config["data"]["fraudline.yaml"])["drain_timeout"].removesuffix("s"))
        if pod["spec"]["terminationGracePeriodSeconds"] <= drain:
            yield f"{name} is killed before it has drained ({drain} s)"
        for container in pod["spec"]["containers"]:
            security = container["securityContext"]
            if not security["readOnlyRootFilesystem"] or security["allowPrivilegeEscalation"]:
                yield f"{name} may write to its image, or gain privileges"
            for variable in container["env"]:
                if "PASSWORD" in variable["name"] and "value" in variable:
                    yield f"{name} has a password that is written out: {variable['name']}"
    scalers = {scaler["spec"]["scaleTargetRef"]["name"] for scaler in of_kind("ScaledObject")}
    for workload in workloads:
        if workload["metadata"]["name"] in scalers and "replicas" in workload["spec"]:
            yield f"{workload['metadata']['name']} has a fixed number of replicas and something that scales it"


def main():
    schemas, kubernetes, *files = sys.argv[1:]
    wrong = 0
    for file in files:
        documents = [document for document in yaml.safe_load_all(pathlib.Path(file).read_text()) if document]
        for document in documents:
            try:
                validate(pathlib.Path(schemas), kubernetes, document)
            except Exception as error:
                print(f"{file}: {document.get('kind')} {document['metadata'].get('name')}: {error}", file=sys.stderr)
                wrong += 1
        for problem in relations(documents):
            print(f"{file}: {problem}", file=sys.stderr)
            wrong += 1
        print(f"{file}: {len(documents)} objects")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
