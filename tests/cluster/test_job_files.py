"""What is sent with a job, and what its paths become: never another file of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_ray.cluster import submit as module
from atlas_ray.cluster.job_files import JobFiles
from atlas_ray.errors import UserError

MIB = 2**20


def a_file(place: Path, size: int = 1) -> Path:
    """A file of so many bytes, which take no room."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as file:
        file.truncate(size)
    return place


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with what people keep in one, and a folder beside it."""
    root = tmp_path / "tree"
    for name in ("jobs/paper.yaml", "train.yaml", "my/data.jsonl", "atlas_ray/cli/main.py"):
        a_file(root / name)
    for name in ("runs/experts/agenttraj.json", ".git/HEAD", "tool/bin/python", "tool/pyvenv.cfg", "scratch/x.json"):
        a_file(root / name)
    a_file(root / "tool" / "lib" / "torch.so", 80 * MIB)
    a_file(root / "model" / "model [1].safetensors", 90 * MIB)
    a_file(root / "model" / "config.json")
    (root / ".gitignore").write_text("scratch/\n")
    for name in ("train.yaml", "mine.yaml", "my/other.jsonl"):
        a_file(tmp_path / "beside" / name)
    return root


def test_models_environments_and_runs_are_left_out_and_that_is_said(tree: Path) -> None:
    from ray._private.runtime_env.packaging import get_uri_for_directory

    files = JobFiles.of(tree)
    sent = {str(file.relative_to(tree)) for file in files.sizes}
    assert sent == {
        *(".gitignore", "jobs/paper.yaml", "train.yaml", "my/data.jsonl", "atlas_ray/cli/main.py", "model/config.json")
    }
    assert files.left_out() == (
        "not sent with the job, for size: model/model [1].safetensors (90 MiB), tool (80 MiB); "
        "a job reads large files from storage that every node sees"
    )
    # Ray leaves out the same: without these it would be another package
    before = get_uri_for_directory(str(tree), include_gitignore=True, excludes=files.excludes)
    (tree / "model" / "model [1].safetensors").unlink()
    (tree / "tool" / "bin" / "python").unlink()
    assert get_uri_for_directory(str(tree), include_gitignore=True, excludes=files.excludes) == before


def test_without_anything_large_nothing_is_said(tmp_path: Path) -> None:
    a_file(tmp_path / "jobs" / "paper.yaml")
    assert JobFiles.of(tmp_path).left_out() == ""


def test_a_tree_beyond_what_ray_takes_is_refused_with_its_largest_files(tree: Path) -> None:
    for number in range(12):
        a_file(tree / "logs" / f"{number}.txt", 9 * MIB + number)
    with pytest.raises(
        UserError, match=r"108 MiB to be sent with the job, and Ray takes 100 MiB; the largest: logs/11"
    ):
        JobFiles.of(tree)
    (tree / ".rayignore").write_text("/logs\n")
    JobFiles.of(tree)


@pytest.mark.parametrize(
    ("stage", "given", "sent"),
    [
        ("train", ["--config", "train.yaml", "--clean"], ["--config", "train.yaml", "--clean"]),
        ("train", ["-c", "{root}/train.yaml"], ["-c", "train.yaml"]),
        ("select", ["--data=my/data.jsonl"], ["--data=my/data.jsonl"]),
        ("select", ["--data", "runs/experts"], ["--data", "{root}/runs/experts"]),
        ("select", ["--data", "model"], ["--data", "{root}/model"]),
        ("select", ["--data", "AgentGym/AgentTraj-L"], ["--data", "AgentGym/AgentTraj-L"]),
        ("select", ["--data", "s3://bucket/data"], ["--data", "s3://bucket/data"]),
        ("train", ["--run", "runs/new", "-s", "epochs=1"], ["--run", "{root}/runs/new", "-s", "epochs=1"]),
        ("train", ["--set", "selection=runs/experts"], ["--set", "selection={root}/runs/experts"]),
        ("select", ["--set", "selector.name=my"], ["--set", "selector.name=my"]),  # a folder has this name
        ("run", ["paper", "--only", "my"], ["paper", "--only", "my"]),
        ("run", ["--set", "runs=out", "jobs/paper.yaml"], ["--set", "runs={root}/out", "jobs/paper.yaml"]),
    ],
)
def test_paths_are_those_of_the_copy_or_absolute(
    stage: str, given: list[str], sent: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    given, sent = ([word.replace("{root}", str(tree)) for word in words] for words in (given, sent))
    assert JobFiles.of(tree).arguments(stage, given) == sent


@pytest.mark.parametrize(
    ("stage", "given", "complaint"),
    [
        ("train", ["--config", "train.yaml"], r"train\.yaml is not sent with the job: it does not lie in "),
        ("run", ["mine.yaml"], r"mine\.yaml is not sent with the job"),
        ("train", ["--config", "none.yaml"], r"there is no file none\.yaml here"),
        ("select", ["--data", "my/data.jsonl"], r"there is no my/data\.jsonl here .*, and a job would take .*tree/my"),
    ],
)
def test_beside_the_tree_no_file_of_the_same_name_is_taken(
    stage: str, given: list[str], complaint: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent / "beside")
    with pytest.raises(UserError, match=complaint) as refused:
        JobFiles.of(tree).arguments(stage, given)
    assert refused.value.remedy
    assert JobFiles.of(tree).arguments("select", ["--data", "my/other.jsonl"])[1].endswith("/beside/my/other.jsonl")


def test_a_command_is_refused_before_a_cluster_is_asked(
    tree: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent / "beside")
    with pytest.raises(UserError, match="is not sent with the job"):
        module.submit("train", ["--config", "train.yaml"], f"http://127.0.0.1:{closed_port}", wait=False)
