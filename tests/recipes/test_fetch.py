"""The report of a job elsewhere: whether there will be one, where it lies, and how it comes here."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_ray.address import below
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.recipes.fetch import Report, bring, report_of, report_to_fetch
from atlas_ray.runs.folder import RunFolder
from tests.support.store import Store


@pytest.mark.parametrize(("stage", "arguments", "wait"), [("select", [], True), ("run", ["quickstart"], False)])
def test_a_report_that_no_job_will_build_cannot_be_asked_for(stage: str, arguments: list[str], wait: bool) -> None:
    with pytest.raises(UserError, match="there is no report to fetch"):
        report_to_fetch(stage, arguments, wait=wait, folder="here")


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart", "--set", "runs=s3://b/x?region=r", "--with", "llm"],
        ["--only", "table3", "-s", "runs=s3://b/x?region=r", "quickstart", "--clean"],
    ],
)
def test_where_the_report_will_lie_is_known_from_the_arguments(arguments: list[str]) -> None:
    for stage in ("run", "report"):
        assert report_of(stage, arguments) == Report("s3://b/x/quickstart/report?region=r", "quickstart")
    assert report_of("select", arguments) is None


def test_a_recipe_that_is_not_here_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match=r"cannot read of/another/tree\.yaml"):
        report_of("run", ["of/another/tree.yaml"])


def written(uri: str) -> Report:
    folder = RunFolder(below(uri, "mine", "report"))
    for name in ("index.html", "results.json", "tables/table1.csv", "data/rows.js"):
        folder.write_bytes(name, f"content of {name}".encode())
    RunFolder(below(uri, "mine", "train", "gold", "model")).write_bytes("model.safetensors", b"large")
    return Report(folder.uri, "mine")


def files(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("given", [True, False])
def test_a_report_comes_here_from_an_object_store_without_models(
    given: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / ("here/and/there" if given else "runs/mine-report")
    bring(written(store.uri("bucket/runs")), str(target) if given else None)
    names = ("data/rows.js", "index.html", "results.json", "tables/table1.csv")
    assert files(target) == {name: f"content of {name}" for name in names}


def test_a_report_on_this_machine_is_copied_where_asked_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = written(str(tmp_path / "shared"))
    bring(report, None)
    assert not (tmp_path / "runs").exists()
    assert "shared/mine/report/index.html" in "".join(capsys.readouterr().err.split("\n"))
    bring(report, "copy")
    assert "tables/table1.csv" in files(tmp_path / "copy")


def test_a_report_out_of_reach_is_an_error_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("/of/the/cluster/mine/report", "mine")
    with pytest.raises(AtlasError, match=r"no report lies at /of/the/cluster/mine/report.*\n.*s3:// or gs://"):
        bring(report, str(tmp_path / "x"))
    bring(report, None)
    assert "the report is not fetched" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(AtlasError, match="cannot copy"):
        bring(written(str(tmp_path)), str(tmp_path / "file"))
