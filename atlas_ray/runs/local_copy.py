"""What lies behind a URI, brought to this machine once: models and data files, for libraries that read paths alone.

Flows in: the URI of a file or folder in an object store; flows out: a local path below this machine's cache. Any number
of processes may ask at once: one fetches, the others wait. A copy bears the digest of what the store lists (names,
sizes, entity tags), appears whole or not at all, and is replaced when the store lists something else, so that two
versions never mix. What a killed process had fetched whole is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import pyarrow.fs as pafs

from atlas_ray.address import below, name_of
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.progress import Tracker, console
from atlas_ray.runs.store import explained, in_time, open_store
from atlas_ray.text import printable

CACHE_VARIABLE = "ATLAS_CACHE"
_THREADS = 16
_PIECE = 16 << 20  # bytes that one request asks for
_ATTEMPTS = 3  # at something that changes while it is fetched
_MB = 1_000_000
_SHOWN = 10_000_000  # bytes from which on progress is shown
_SPARE = 64 << 20  # bytes of the disk that are left free at least
_FREE_SHARE = 0.1  # of the disk that is left free while there are old copies to delete; Ray wants 0.05
_LATELY_SECONDS = 3600.0  # within which a copy that was asked for may still be read
_ADDRESS, _LOCK, _PARTIAL = "uri.txt", ".lock", ".partial"
_WAITS = "another process fetches it"
_under_way: dict[str, str] = {}  # by URI how far it is


def cache_folder() -> Path:
    """Where this machine's copies lie: `ATLAS_CACHE`, or `atlas-ray` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-ray"


def local_copy(
    uri: str, suffixes: tuple[str, ...] | None = None, check: Callable[[list[str]], None] | None = None
) -> Path:
    """A local path with what lies behind a URI; a path, and a `file://` URI, is its own copy.

    Args:
        uri: Of a file or folder.
        suffixes: Of a folder only files whose names end so; None: all.
        check: Given the names of all files there before any is fetched; refuses them by raising.

    Raises:
        UserError: If nothing lies there, it may not be read, or a name leads out of its folder.
        AtlasError: If the store fails, the disk is too small, or it does not stop changing.
        StorageTimeout: If the store does not answer in time.
    """
    if "://" not in uri:
        return Path(uri)
    remote = _Remote(uri, *open_store(uri))
    if isinstance(remote.fs, pafs.LocalFileSystem):
        return Path(remote.root)
    home = _home(uri, suffixes)
    for _ in range(_ATTEMPTS):
        files = remote.files(suffixes, check)
        version = home / _digest(files)
        copy = version / (name_of(uri) or "root")
        if not _whole(copy, files):
            with _alone(home, uri):
                if not _whole(copy, files):  # another process may have brought it meanwhile
                    partial = version.with_suffix(_PARTIAL)
                    remote.fetch(files, partial / copy.name)
                    if remote.files(suffixes) != files:
                        shutil.rmtree(partial)
                        continue
                    _put_in_place(home, partial, version)
        with suppress(FileNotFoundError):  # deleted just now: once more
            os.utime(version)  # when it was last asked for
            return copy
    raise AtlasError(f"{uri} changes while it is read", "wait until whatever writes there has ended, then run again")


def origin(file: Path) -> str:
    """What a user calls a file: its URI where it is a copy, else its path."""
    cache = cache_folder()
    if not file.is_relative_to(cache):
        return str(file)
    home, _, _, *inside = file.relative_to(cache).parts
    return below((cache / home / _ADDRESS).read_text(), *inside)


def fetching() -> str:
    """What this process fetches or waits for right now, and how far it is; empty where nothing."""
    return ", ".join(f"{uri}: {how_far}" for uri, how_far in list(_under_way.items()))


@dataclass(frozen=True, slots=True)
class Copy:
    """What the cache holds of one URI: its size in bytes, and when it was last asked for (seconds since 1970)."""

    uri: str
    folder: Path
    size: int
    used: float


def copies() -> list[Copy]:
    """All that this machine's cache holds, what is not whole too; the largest first."""
    found = []
    for address in cache_folder().glob(f"*/{_ADDRESS}"):
        home = address.parent
        # other processes rename and delete meanwhile
        size = sum(_size(Path(folder, name)) or 0 for folder, _, names in os.walk(home) for name in names)
        with suppress(FileNotFoundError):
            used = max((path.stat().st_mtime for path in home.iterdir() if path.is_dir()), default=0.0)
            found.append(Copy(address.read_text(), home, size, used))
    return sorted(found, key=lambda copy: (-copy.size, copy.uri))


def remove(copy: Copy) -> bool:
    """Deletes what the cache holds of a URI, unless a process is fetching it; says whether it did."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_of(copy.folder), timeout=0), suppress(FileNotFoundError):
            shutil.rmtree(copy.folder)
    except Timeout:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the store lists it; `version` is its entity tag, or its time where a store has none."""

    size: int
    version: str


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file or folder in a store. A file's own name below itself is empty."""

    uri: str
    fs: pafs.FileSystem
    root: str

    def files(
        self, suffixes: tuple[str, ...] | None, check: Callable[[list[str]], None] | None = None
    ) -> dict[str, _File]:
        """Files by name.

        Raises:
            UserError: If there is none, or a name leads out of its folder.
        """
        with explained(self.uri, "reach"):
            top = in_time(self.uri, lambda: self.fs.get_file_info(self.root))
            if top.type == pafs.FileType.NotFound:
                raise UserError(f"nothing lies at {self.uri}", "check the address, its region and its endpoint")
            if top.type == pafs.FileType.File:
                found = {"": top}
            else:
                inside = self.fs.get_file_info(pafs.FileSelector(self.root, recursive=True))
                prefix = self.root.rstrip("/") + "/"
                found = {i.path.removeprefix(prefix): i for i in inside if i.type == pafs.FileType.File}
        if check is not None:
            check(sorted(found))
        if suffixes is not None and "" not in found:
            found = {name: info for name, info in found.items() if name.lower().endswith(suffixes)}
        if not found:
            raise UserError(f"{self.uri} holds no file{_ending(suffixes)}", "check the address")
        if strange := [name for name in found if ".." in PurePosixPath(name).parts or name.startswith("/")]:
            what = f"{self.uri} holds {printable(strange[0])!r}, which would lie outside of its folder"
            raise UserError(what, "rename it there")
        with explained(self.uri, "read"), ThreadPoolExecutor(_THREADS) as pool:
            versions = pool.map(self._version, found.values())
            return {
                name: _File(info.size, version) for (name, info), version in zip(found.items(), versions, strict=True)
            }

    def _version(self, info: Any) -> str:
        with self.fs.open_input_file(info.path) as source:
            told = source.metadata() or {}
        tags = [value for key, value in told.items() if _text(key).lower() == "etag"]
        return _text(tags[0]) if tags else str(info.mtime_ns)

    def fetch(self, files: Mapping[str, _File], into: Path) -> None:
        """Brings what is missing of some files; each bears its name once it is whole.

        Raises:
            UserError: If one may not be read.
            AtlasError: If the disk is too small, or reading or writing fails.
        """
        missing = {name: file.size for name, file in files.items() if _size(into / name) != file.size}
        total, need = sum(file.size for file in files.values()), sum(missing.values())
        place = into.parent.parent
        _make_room(place, need)
        if need + _SPARE > (free := shutil.disk_usage(place).free):
            raise AtlasError(
                f"{self.uri} takes {need / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left",
                f"set {CACHE_VARIABLE} to a folder on a larger disk, or free some: `atlas cache` lists the copies",
            )
        files_at_once, pieces = ThreadPoolExecutor(_THREADS), ThreadPoolExecutor(_THREADS)
        shown = Tracker(f"fetch {self.uri} (MB)", total // _MB, (total - need) // _MB) if need > _SHOWN else None
        with shown or nullcontext() as tracker:
            _under_way[self.uri] = _how_far(total - need, total)
            arrived = _counter(self.uri, tracker, total - need, total)
            try:
                asked = {
                    name: files_at_once.submit(self._bring, name, size, into / name, pieces, arrived)
                    for name, size in missing.items()
                }
                for name, one in asked.items():
                    with explained(f"{self.uri}, {name}" if name else self.uri, "fetch"):
                        one.result()
            finally:
                for pool in (files_at_once, pieces):
                    pool.shutdown(cancel_futures=True)

    def _bring(
        self, name: str, size: int, to: Path, pieces: ThreadPoolExecutor, arrived: Callable[[int], None]
    ) -> None:
        """Brings one file, piece by piece."""
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(to.name + _PARTIAL)
        where = f"{self.root.rstrip('/')}/{name}" if name else self.root
        with self.fs.open_input_file(where) as source, part.open("wb") as target:

            def bring(start: int) -> None:
                count = min(_PIECE, size - start)
                content = source.read_at(count, start)
                if len(content) < count or os.pwrite(target.fileno(), content, start) < count:
                    raise OSError(f"only a part of bytes {start} to {start + count} arrived")
                arrived(count)

            for _ in pieces.map(bring, range(0, size, _PIECE)):
                pass
        part.rename(to)


def _make_room(place: Path, need: int) -> None:
    """Deletes copies that nobody asked for lately, the oldest first, while the disk would be all but full."""
    for copy in sorted(copies(), key=lambda copy: copy.used):
        disk = shutil.disk_usage(place)
        if disk.free - need > _FREE_SHARE * disk.total or copy.used > time.time() - _LATELY_SECONDS:
            return
        remove(copy)


def _counter(uri: str, tracker: Tracker | None, before: int, total: int) -> Callable[[int], None]:
    """Tells a tracker of megabytes, and whoever asks, about bytes; from any thread."""
    lock, counted = Lock(), before

    def arrived(count: int) -> None:
        nonlocal counted
        with lock:
            if tracker is not None:
                tracker.advance((counted + count) // _MB - counted // _MB)
            counted += count
            _under_way[uri] = _how_far(counted, total)

    return arrived


def _how_far(count: int, total: int) -> str:
    return f"{count / 1e9:.1f} of {total / 1e9:.1f} GB"


def _home(uri: str, suffixes: tuple[str, ...] | None) -> Path:
    """The folder of a URI's copies, by a name that people recognise."""
    key = hashlib.sha256("\n".join([uri, *(suffixes or ())]).encode()).hexdigest()[:12]
    return cache_folder() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name_of(uri))[:64]}-{key}"


@contextmanager
def _alone(home: Path, uri: str) -> Iterator[None]:
    """Holds the lock of a URI's copies."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_of(home))
    _under_way[uri] = _WAITS
    try:
        with explained(str(home)):
            home.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                console.print(f"{uri}: {_WAITS}")
                lock.acquire()
            home.mkdir(exist_ok=True)
            (home / _ADDRESS).write_text(uri)
        yield
    finally:
        lock.release()
        _under_way.pop(uri, None)


def _lock_of(home: Path) -> Path:
    """Beside the folder, so that it stays when the folder is deleted while others wait for it."""
    return home.with_name(home.name + _LOCK)


def _put_in_place(home: Path, partial: Path, version: Path) -> None:
    """Gives a fetched version its name, and deletes those before it."""
    with explained(str(home)):
        shutil.rmtree(version, ignore_errors=True)  # one that is no longer whole
        partial.rename(version)
        for other in home.iterdir():
            if other.is_dir() and other != version:
                shutil.rmtree(other)


def _whole(copy: Path, files: Mapping[str, _File]) -> bool:
    """Whether every file is there with its size."""
    return all(_size(copy / name) == file.size for name, file in files.items())


def _size(file: Path) -> int | None:
    """None where there is no such file, or none any more."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _digest(files: Mapping[str, _File]) -> str:
    lines = (f"{name}\0{file.size}\0{file.version}\n" for name, file in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _ending(suffixes: tuple[str, ...] | None) -> str:
    return f" whose name ends in {', '.join(suffixes)}" if suffixes else ""


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
