"""Prints Kubernetes manifests for AgentGym's environment servers: a Deployment and a Service each, locked in.

    python cluster/kuberay/environments.py | kubectl apply -f -

These servers evaluate text that models wrote, so each pod has no service account, no privileges and, unless its tools
ask the outside world, no way out; only pods of the cluster reach it. Recipes name them by their services:
`environments: {servers: {maze: ["http://atlas-lmrlgym:8000"]}}`.
"""

from __future__ import annotations

from typing import Any

import yaml

# command of AgentGym's server: (memory, replicas, whether its tools ask live services)
SERVERS: dict[str, tuple[str, int, bool]] = {
    "lmrlgym": ("2Gi", 2, False),  # maze and wordle
    "textcraft": ("1Gi", 2, False),
    "babyai": ("2Gi", 2, False),
    "sciworld": ("16Gi", 4, False),  # a Java machine an episode
    "alfworld": ("16Gi", 2, False),
    "webshop": ("16Gi", 2, False),
    "weather": ("2Gi", 1, True),
    "movie": ("2Gi", 1, True),
    "academia": ("2Gi", 1, True),
    "todo": ("2Gi", 1, True),
    "sheet": ("2Gi", 1, True),
}
PORT = 8000
# keys of live services, by reference
SECRETS = {"movie": "TMDB_API_KEY", "todo": "TODO_KEY", "sheet": "SHEET_EMAIL"}


def manifests() -> list[dict[str, Any]]:
    """All of them, in the order in which they are applied."""
    found = [*_policies()]
    for name, (memory, replicas, _) in SERVERS.items():
        found += [_deployment(name, memory, replicas), _service(name)]
    return found


def _labels(name: str) -> dict[str, str]:
    outside = "yes" if SERVERS[name][2] else "no"
    return {"app": f"atlas-{name}", "atlas-ray": "environment", "atlas-ray-outside": outside}


def _deployment(name: str, memory: str, replicas: int) -> dict[str, Any]:
    size = {"cpu": "2", "memory": memory, "ephemeral-storage": "4Gi"}
    container: dict[str, Any] = {
        "name": name,
        "image": f"agentgym-{name}",
        "command": [name, "--host", "0.0.0.0", "--port", str(PORT)],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 5, "failureThreshold": 3},
        "resources": {"requests": size, "limits": size},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if name in SECRETS:
        key = SECRETS[name]
        source = {"secretKeyRef": {"name": "atlas-environments", "key": key, "optional": True}}
        container["env"] = [{"name": key, "valueFrom": source}]
    pod = {"automountServiceAccountToken": False, "enableServiceLinks": False, "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"atlas-{name}", "labels": _labels(name)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": f"atlas-{name}"}},
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }


def _service(name: str) -> dict[str, Any]:
    """Episodes live in one pod's memory, so a client stays with the pod that it began with."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"atlas-{name}"},
        "spec": {
            "selector": {"app": f"atlas-{name}"},
            "sessionAffinity": "ClientIP",
            "ports": [{"port": PORT, "targetPort": PORT}],
        },
    }


def _policies() -> list[dict[str, Any]]:
    cluster = {"podSelector": {"matchLabels": {"ray.io/cluster": "atlas"}}}
    names = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    https = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"]}}]}
    environments = {"matchLabels": {"atlas-ray": "environment"}}
    inside = {
        "podSelector": environments,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [cluster], "ports": [{"port": PORT, "protocol": "TCP"}]}],
        "egress": [],
    }
    outside = {
        "podSelector": {"matchLabels": {"atlas-ray-outside": "yes"}},
        "policyTypes": ["Egress"],
        "egress": [names, https | {"ports": [{"port": 443, "protocol": "TCP"}]}],
    }
    # Ray's own ports: the cluster's pods, and the operator that submits and watches
    labelled = ["kuberay", "kuberay-operator"]  # as kustomize and as Helm label the operator
    label = {"key": "app.kubernetes.io/name", "operator": "In", "values": labelled}
    operator = {"namespaceSelector": {}, "podSelector": {"matchExpressions": [label]}}
    ray = {
        "podSelector": {"matchLabels": {"ray.io/cluster": "atlas"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [cluster, operator, {"podSelector": {"matchLabels": {"ray.io/submitter": "atlas"}}}]}],
    }
    every = {"atlas-environments": inside, "atlas-environments-outside": outside, "atlas-cluster": ray}
    return [
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec}
        for name, spec in every.items()
    ]


if __name__ == "__main__":
    print(yaml.safe_dump_all(manifests(), sort_keys=False))
