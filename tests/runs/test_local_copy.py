"""What lies behind a URI is brought to a machine once, whole or not at all, and again when it has changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs import local_copy as module
from atlas_ray.runs.local_copy import CACHE_VARIABLE, cache_folder, copies, fetching, local_copy, remove
from tests.support.store import Store

MODEL = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000, "deep/er/tokenizer.json": b"tokens"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a folder, which is fetched in pieces of 1 MB."""
    monkeypatch.setattr(module, "_PIECE", 1 << 20)
    for name, content in MODEL.items():
        store.put(f"bucket/runs/gold/model/{name}", content)
    store.put("bucket/runs/gold/model-2/config.json", b"another's")
    return store.uri("bucket/runs/gold/model")


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_fetched_once(model: str, store: Store, cache: Path) -> None:
    first = local_copy(model)
    assert held(first) == MODEL
    assert (first.name, cache in first.parents) == ("model", True)
    fetched = store.read()
    assert len(fetched) == 3 + 2  # three pieces of the weights
    assert local_copy(model) == first
    assert store.read() == fetched


def test_a_file_keeps_its_name(store: Store, cache: Path) -> None:
    store.put("bucket/data/train 1.jsonl", b"{}\n")
    found = local_copy(store.uri("bucket/data/train%201.jsonl"))
    assert found.suffix == ".jsonl"
    assert found.read_bytes() == b"{}\n"


def test_the_variables_of_the_aws_tools_name_the_server(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("bucket/a.json", b"[]")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.address)
    assert local_copy("s3://bucket/a.json").read_bytes() == b"[]"


def test_a_path_is_its_own_copy(tmp_path: Path, cache: Path) -> None:
    assert local_copy(str(tmp_path)) == tmp_path
    assert local_copy(tmp_path.as_uri()) == tmp_path
    assert local_copy("some/hub-id") == Path("some/hub-id")
    assert not cache.exists()


def test_only_what_is_wanted_is_fetched(model: str, store: Store) -> None:
    assert set(held(local_copy(model, suffixes=(".json",)))) == {"config.json", "deep/er/tokenizer.json"}
    assert store.read("safetensors") == []
    assert held(local_copy(model)) == MODEL  # beside it, in a place of its own


def test_what_is_refused_by_its_names_is_not_fetched(model: str, store: Store) -> None:
    def refuse(names: list[str]) -> None:
        assert names == sorted(MODEL)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        local_copy(model, suffixes=(".json",), check=refuse)
    assert store.read() == []


def test_a_changed_model_is_fetched_anew_and_takes_the_old_ones_place(model: str, store: Store, cache: Path) -> None:
    old = local_copy(model)
    changed = b"v" * len(MODEL["model.safetensors"])  # the same size
    store.put("bucket/runs/gold/model/model.safetensors", changed)
    new = local_copy(model)
    assert held(new) == MODEL | {"model.safetensors": changed}
    assert new != old
    assert not old.exists()


def test_what_changes_while_it_is_fetched_is_never_mixed(model: str, store: Store) -> None:
    changed = b"v" * len(MODEL["model.safetensors"])

    def change(path: str) -> None:
        if path.endswith("safetensors"):
            store.on_get = lambda path: None
            store.put("bucket/runs/gold/model/model.safetensors", changed)

    store.on_get = change
    assert held(local_copy(model)) == MODEL | {"model.safetensors": changed}


def test_a_folder_that_never_stops_changing_is_given_up(model: str, store: Store) -> None:
    store.on_get = lambda path: store.put("bucket/runs/gold/model/config.json", os.urandom(2))
    with pytest.raises(AtlasError, match="changes while it is read"):
        local_copy(model)
    assert not any(path.is_dir() for copy in copies() for path in copy.folder.iterdir())


def test_a_copy_that_lost_a_part_is_mended(model: str, store: Store) -> None:
    copy = local_copy(model)
    (copy / "config.json").write_bytes(b"")
    assert held(local_copy(model)) == MODEL


def test_many_at_once_fetch_it_once(model: str, store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: local_copy(model), range(8)))
    assert len(found) == 1
    assert len(store.read()) == 5


def test_after_a_sigkill_only_the_missing_files_are_fetched(model: str, store: Store, cache: Path) -> None:
    last = "bucket/runs/gold/model/deep/er/tokenizer.json"
    code = f"from atlas_ray.runs.local_copy import local_copy; local_copy({model!r})"
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment)

    def kill(path: str) -> None:
        if path != last:
            return
        whole = False
        while not whole and process.poll() is None:
            whole = bool(list(cache.glob("*/*.partial/model/model.safetensors")))
        process.send_signal(signal.SIGKILL)
        process.wait()

    store.on_get = kill
    assert process.wait(60) == -signal.SIGKILL
    store.on_get, before = lambda path: None, len(store.read("safetensors"))
    assert held(local_copy(model)) == MODEL
    assert len(store.read("safetensors")) == before


@pytest.mark.parametrize("path", ["bucket/runs/none", "none/runs"])
def test_a_uri_with_nothing_behind_it_is_refused(path: str, store: Store, cache: Path) -> None:
    with pytest.raises(UserError, match=f"nothing lies at s3://{path}.*\n.*check the address"):
        local_copy(store.uri(path))


@pytest.mark.parametrize("denied", ["config.json", "deep/er/tokenizer.json"])
def test_what_may_not_be_read_is_named(denied: str, model: str, store: Store) -> None:
    store.denied.add(f"bucket/runs/gold/model/{denied}")
    with pytest.raises(UserError, match="ACCESS_DENIED") as refused:
        local_copy(model)
    assert denied in str(refused.value)
    assert "AWS_ACCESS_KEY_ID" in str(refused.value)


def test_a_folder_without_a_wanted_file_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"holds no file whose name ends in \.parquet"):
        local_copy(model, suffixes=(".parquet",))


@pytest.mark.parametrize("name", ["../../outside.json", "a/../../outside.json"])
def test_a_name_that_leads_out_is_refused(name: str, model: str, store: Store, cache: Path) -> None:
    store.put(f"bucket/runs/gold/model/{name}", b"out")
    with pytest.raises(UserError, match="would lie outside of its folder"):
        local_copy(model)
    assert not list(cache.rglob("outside.json"))


def test_a_disk_that_is_too_small_is_refused_before_fetching(
    model: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SPARE", 1 << 60)
    with pytest.raises(AtlasError, match=rf"GB left\n.*set {CACHE_VARIABLE} to a folder on a larger disk"):
        local_copy(model)
    assert store.read() == []


def test_the_oldest_copies_are_deleted_for_room(model: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent = (store.uri(f"bucket/{name}.jsonl") for name in ("old", "recent"))
    for uri in (recent, old):
        store.put(uri[len("s3://") :].partition("?")[0], b"x" * 2_000_000)
        os.utime(local_copy(uri).parent, (0, 0))
    local_copy(recent)
    disk = 10_000_000

    def usage(place: Path) -> SimpleNamespace:
        return SimpleNamespace(total=disk, free=disk - sum(copy.size for copy in copies()))

    monkeypatch.setattr(module, "_SPARE", 0)
    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    local_copy(model, suffixes=(".json",))
    assert {copy.uri for copy in copies()} == {model, old, recent}  # there is room
    disk = 7_500_000
    local_copy(model)
    assert {copy.uri for copy in copies()} == {model, recent}


def test_progress_is_shown_in_megabytes_unless_there_are_few(
    model: str, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local_copy(model, suffixes=(".json",))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_SHOWN", 1_000_000)
    local_copy(model)
    shown = capsys.readouterr().err.replace("\n", "")
    assert "fetch s3://bucket/runs/gold/model" in shown
    assert "(MB): 3/3" in shown


def test_a_process_reports_what_it_fetches_and_how_far_it_is(model: str, store: Store) -> None:
    told = []
    store.on_get = lambda path: told.append(fetching())
    local_copy(model)
    assert all(what.startswith(model) for what in told)
    assert f"{model}: 0.0 of 0.0 GB" in told
    assert fetching() == ""


def test_copies_are_listed_and_removed(model: str, store: Store, cache: Path) -> None:
    assert copies() == []
    folder = local_copy(model)
    store.put("bucket/small.json", b"[]")
    local_copy(store.uri("bucket/small.json"))
    largest, small = copies()
    assert (largest.uri, small.uri) == (model, store.uri("bucket/small.json"))
    assert largest.size >= 3_000_000
    assert remove(largest)
    assert not folder.exists()
    assert copies() == [small]
    assert held(local_copy(model)) == MODEL


def test_the_command_lists_and_deletes_copies(model: str, cache: Path) -> None:
    assert f"no copies in {cache}" in CliRunner().invoke(app, ["cache"]).output.replace("\n", "")
    folder = local_copy(model)
    assert "model" in CliRunner().invoke(app, ["cache"]).output
    assert folder.exists()
    assert "yes" in CliRunner().invoke(app, ["cache", "--clean"]).output
    assert copies() == []


def test_a_copy_that_is_being_fetched_is_not_deleted(model: str, store: Store) -> None:
    refused = []
    store.on_get = lambda path: refused.append([remove(copy) for copy in copies()])
    local_copy(model)
    assert refused == [[False]] * 5


def test_who_waits_while_a_copy_is_deleted_fetches_it_anew(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_copy(model) / "config.json").unlink()
    delete, (copy,) = shutil.rmtree, copies()
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patched:

        def delete_once_waited_for(folder: Path) -> None:
            patched.undo()
            waiting.append(pool.submit(local_copy, model))
            while not fetching():
                time.sleep(0.01)
            delete(folder)

        waiting: list[Future[Path]] = []
        patched.setattr(module.shutil, "rmtree", delete_once_waited_for)
        assert remove(copy)
        assert held(waiting[0].result()) == MODEL


def test_copies_are_listed_while_others_are_renamed_and_deleted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local_copy(model)
    walk = os.walk

    def walk_late(folder: Path) -> Any:
        for place, folders, names in walk(folder):
            yield place, folders, [*names, "gone.partial"]

    monkeypatch.setattr(module.os, "walk", walk_late)
    assert [copy.uri for copy in copies()] == [model]


def test_a_cache_that_cannot_be_written_to_is_named(model: str, cache: Path) -> None:
    home = module._home(model, None)
    home.with_name(f"{home.name}.lock").mkdir(parents=True)  # no file can be made there
    with pytest.raises(AtlasError, match=f"cannot write to {home}: "):
        local_copy(model)
    assert fetching() == ""


def test_copies_lie_in_the_folder_that_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/atlas-ray")
