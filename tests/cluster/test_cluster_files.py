"""The files under cluster/: Ray's schema, KubeRay's definitions, and what none asks for: tokens, isolation, secrets."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = Path(__file__).parents[3] / "shared" / "data" / "kuberay"
CLOUDS = ["aws", "gcp"]
GROUPS = {"head", "train", "rollout", "environment"}


def cloud(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def check_cloud(config: dict[str, Any]) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


def environments() -> list[dict[str, Any]]:
    return runpy.run_path(str(CLUSTER / "kuberay" / "environments.py"))["manifests"]()


@functools.cache
def definition(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind, closed: Kubernetes drops unknown keys in silence."""
    file = KUBERAY / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's definitions {file} are not here")
    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(file.read_text(), safe)["spec"]["versions"]  # noqa: S506
    schema = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]

    def close(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                close(item)
        if not isinstance(node, dict):
            return
        if node.pop("x-kubernetes-int-or-string", False):
            node.pop("type", None)
            node["type"] = ["integer", "string"]
        if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for value in list(node.values()):
            close(value)

    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def check_kuberay(document: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(definition(document["kind"])).validate(document)  # its own schema is not checked


def check_pod(pod: dict[str, Any]) -> None:
    """A pod's template against the one that KubeRay's definition holds."""
    groups = definition("RayCluster")["properties"]["spec"]["properties"]["workerGroupSpecs"]
    template = groups["items"]["properties"]["template"]
    closed = template | {"properties": template["properties"] | {"metadata": {"type": "object"}}}
    jsonschema.Draft7Validator(closed).validate(pod)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    (ray,), (job,), (fetch,) = documents("raycluster.yaml"), documents("rayjob.yaml"), documents("fetch.yaml")
    yield "head", ray["spec"]["headGroupSpec"]["template"]
    for group in ray["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield "submitter", job["spec"]["submitterPodTemplate"]
    yield "fetch", fetch["spec"]["template"]
    for document in environments():
        if document["kind"] == "Deployment":
            yield document["metadata"]["name"], document["spec"]["template"]


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_up_takes_the_file(name: str) -> None:
    config = cloud(name)
    check_cloud(config)
    assert set(config["available_node_types"]) == GROUPS
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}  # nothing but Ray


@pytest.mark.parametrize("name", CLOUDS)
def test_tokens_are_asked_for_and_the_dashboard_is_on_loopback(name: str) -> None:
    config = cloud(name)
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in config[key]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    # (timeout + period) x failures
    period, timeout, failures = (
        int(re.search(rf"RAY_health_check_{what}=(\d+)", starts[0])[1])  # type: ignore[index]
        for what in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert (period + timeout) * failures <= 20_000


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    "mistake",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c["available_node_types"]["train"].update(max_wokers=2),
        lambda c: c.update(idle_timeout_minutes="soon"),
        lambda c: c["available_node_types"]["train"].pop("node_config"),
        lambda c: c.pop("provider"),
    ],
)
def test_a_mistake_in_a_cluster_file_is_found(name: str, mistake: Callable[[dict[str, Any]], Any]) -> None:
    config = cloud(name)
    mistake(config)
    with pytest.raises(jsonschema.ValidationError):
        check_cloud(config)


def test_kuberay_takes_the_manifests() -> None:
    (ray,), (job,) = documents("raycluster.yaml"), documents("rayjob.yaml")
    check_kuberay(ray)
    check_kuberay(job)
    assert {"head", *(group["groupName"] for group in ray["spec"]["workerGroupSpecs"])} == GROUPS
    assert ray["spec"]["authOptions"]["mode"] == "token"
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == ray["metadata"]["name"]


@pytest.mark.parametrize(
    ("file", "mistake"),
    [
        ("raycluster.yaml", lambda d: d["spec"]["workerGroupSpecs"][0].update(replica=1)),
        ("raycluster.yaml", lambda d: d["spec"]["workerGroupSpecs"][0].pop("groupName")),
        ("raycluster.yaml", lambda d: d["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name")),
        ("raycluster.yaml", lambda d: d["spec"]["workerGroupSpecs"][1].update(maxReplicas="many")),
        ("raycluster.yaml", lambda d: d["spec"]["authOptions"].update(mode="tokens")),
        ("rayjob.yaml", lambda d: d["spec"].update(entrypont=d["spec"].pop("entrypoint"))),
        ("rayjob.yaml", lambda d: d["spec"].update(backoffLimit="none")),
    ],
)
def test_a_mistake_in_a_manifest_is_found(file: str, mistake: Callable[[dict[str, Any]], Any]) -> None:
    document = copy.deepcopy(documents(file)[0])
    mistake(document)
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay(document)


def test_pods_are_well_formed_bounded_and_without_privileges() -> None:
    for name, pod in pods():
        check_pod(pod)
        assert pod["spec"]["automountServiceAccountToken"] is (name == "head"), name
        for container in pod["spec"]["containers"]:
            assert container["resources"]["limits"], name
            locked = container["securityContext"]
            assert (locked["allowPrivilegeEscalation"], locked["runAsNonRoot"]) == (False, True), name


def test_gpu_groups_hold_their_models_offline() -> None:
    for name, pod in pods():
        (container,) = pod["spec"]["containers"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"], name
            assert "/models" in [mount["mountPath"] for mount in container["volumeMounts"]], name


def test_every_agentgym_server_is_ready_before_it_is_asked_and_locked_in() -> None:
    from atlas_ray.environments import registry

    found = environments()
    deployments = {d["metadata"]["name"]: d for d in found if d["kind"] == "Deployment"}
    apart = {"maze", "wordle", "jericho", "pddl", "blocksworld"}  # two in one server, the others have none
    assert set(deployments) == {"atlas-lmrlgym", *(f"atlas-{env}" for env in set(registry.ENVIRONMENTS) - apart)}
    policies = {d["metadata"]["name"]: d["spec"] for d in found if d["kind"] == "NetworkPolicy"}
    inside, outside = policies["atlas-environments"], policies["atlas-environments-outside"]
    assert inside["policyTypes"] == ["Ingress", "Egress"]
    assert inside["egress"] == []
    assert [peer["podSelector"]["matchLabels"] for peer in inside["ingress"][0]["from"]] == [
        {"ray.io/cluster": "atlas"}
    ]
    for deployment in deployments.values():
        pod = deployment["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"]["port"] == container["ports"][0]["containerPort"]
        labels = pod["metadata"]["labels"].items()
        assert inside["podSelector"]["matchLabels"].items() <= labels
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
        if deployment["metadata"]["name"] in ("atlas-babyai", "atlas-sciworld", "atlas-webshop", "atlas-alfworld"):
            assert not outside["podSelector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("script", ["slurm.sh", "fetch.sh", "aws-roles.sh"])
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., list[str]]:
    """`fetch.sh` with an `hf` that fails for a model named `none`; gives the arguments of all calls so far."""
    hf = tmp_path / "hf"
    hf.write_text(f'#!/bin/sh\necho "$HF_HUB_OFFLINE$@" >> {tmp_path}/called\n[ "$2" != none ]\n')
    hf.chmod(0o755)

    def run(*names: str, code: int = 0, **variables: str) -> list[str]:
        (tmp_path / "called").unlink(missing_ok=True)
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {
            "PATH": path,
            "PYTHONPATH": str(CLUSTER.parent),
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": "hush",
            **variables,
        }
        done = subprocess.run([CLUSTER / "fetch.sh", *names], env=given, cwd=tmp_path, check=False)
        assert done.returncode == code
        return (tmp_path / "called").read_text().splitlines()

    return run


def test_all_that_the_paper_s_recipe_reads_of_the_hub_is_fetched(fetch: Callable[..., list[str]]) -> None:
    from atlas_ray.recipes.settings import load_recipe

    recipe = load_recipe(str(CLUSTER.parent / "jobs" / "paper.yaml"))
    calls = fetch()
    models = {call.split()[1] for call in calls if "--repo-type" not in call}
    as_they_are = {m.path for m in recipe.models.values() if not isinstance(m, str) and m.endpoint is None}
    assert {recipe.base, *recipe.backbones.values()} <= models
    assert len(as_they_are) == 8
    assert as_they_are <= models  # table 1's
    assert "meta-llama/Llama-3.1-70B-Instruct" in models  # table 5's judge
    assert not any("gpt-" in model or "claude" in model for model in models)
    data = {call.split()[1] for call in calls if call.endswith("--repo-type dataset")}
    assert data == {recipe.expert.path, recipe.evaluate["items"]["path"]}  # type: ignore[union-attr]
    assert all(call.startswith("download ") for call in calls)  # and the hub is asked, whatever the nodes' own setting
    assert "hush" not in " ".join(calls)


def test_what_is_fetched_can_be_named_and_a_failure_is_one(fetch: Callable[..., list[str]], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nexpert: {path: me/data, revision: v2}\nbase: me/base\narms: {all: {name: all}}\ncritical: all\n"
        "models: {rival: {path: you/rival, revision: abc123}}\nevaluate: {tasks: {maze: 1}}\n"
    )
    *models, data, further = fetch(str(recipe), "my/model", WEIGHTS="no")
    assert [model.partition(" --exclude")[0] for model in models] == [
        "download me/base --revision main",
        "download you/rival --revision abc123",
    ]
    assert data == "download me/data --revision v2 --repo-type dataset"
    assert further.startswith("download my/model --revision main ")
    assert "*.safetensors" in further
    assert "*.safetensors" not in fetch("my/model")[0]
    assert len(fetch("none", "my/model", code=1)) == 1  # nothing more is tried
    recipe.write_text("nonsense: 1\n")
    (tmp_path / "called").write_text("")
    done = subprocess.run(
        [CLUSTER / "fetch.sh", recipe, "my/model"],
        env={
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(CLUSTER.parent),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, (tmp_path / "called").read_text()) == (2, "")
    assert "unknown key `nonsense`" in done.stderr


def test_models_are_there_before_a_node_with_gpus_joins() -> None:
    for name in CLOUDS:
        config = cloud(name)
        types = config["available_node_types"]
        [command] = config["worker_setup_commands"]
        assert command.split()[0] == "bash"
        assert command.endswith("/cluster/fetch.sh jobs/paper.yaml")
        # one of its own would stand in its place
        assert "worker_setup_commands" not in types["train"] | types["rollout"]
        assert types["environment"]["worker_setup_commands"] == [f"WEIGHTS=no {command}"]
        assert "HF_HUB_OFFLINE=1" in config["worker_start_ray_commands"][-1]
        assert "/home/ray/.cache/huggingface/token" in config["file_mounts"]
    slurm = (CLUSTER / "slurm.sh").read_text()
    assert slurm.index("HF_HUB_OFFLINE") < slurm.index('srun --nodes=1 --ntasks=1 -w "$head" "$ray" start')


def test_no_file_holds_a_secret() -> None:
    literal = re.compile(
        r"(hf_|sk-|AKIA|ghp_)[A-Za-z0-9]{8,}|(TOKEN|KEY|PASSWORD)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/]{20,}"
    )
    files = [file for file in CLUSTER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert len(files) >= 10
    for file in files:
        assert not literal.search(file.read_text()), file
    for name, pod in pods():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                if re.search("TOKEN$|KEY|SECRET|EMAIL", variable["name"]):
                    assert "valueFrom" in variable, name


def test_images_hold_no_more_than_the_package() -> None:
    for kind in ("cpu", "gpu"):
        text = (CLUSTER / f"Dockerfile.{kind}").read_text()
        assert "COPY . " not in text
        assert "RAY_AUTH_MODE=token" in text
        assert f"atlas_ray[{kind}," in text
