"""Benchmarks: all in one table, or one.

    python -m bench [--tiny]            all that this machine can run, each in a process of its own
    python -m bench NAME [options]      one, e.g. `rollouts ideal`; `NAME --help` says what it measures

Each writes `bench/NAME.json`. `soak` takes half an hour and `gpu` wants one: these two run by name alone.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

from bench.table import path_of, show

ALL = (
    *("peaks", "training", "rendering", "perplexity", "selection", "selection_stream", "values"),
    *("rollouts", "scaling", "environments", "viewer"),
)
NAMES = (*ALL, "gpu", "soak")


def run_all(options: list[str]) -> None:
    """Runs all, and shows one table of those that ended well.

    Raises:
        SystemExit: If one did not.
    """
    failed = []
    for name in ALL:
        print(f"--- {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "bench", name, *options], check=False).returncode:
            failed.append(name)
    written = {name: path_of(name, "--tiny" in options) for name in ALL if name not in failed and name != "peaks"}
    show({name: json.loads(path.read_text()) for name, path in written.items()})
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def main() -> None:
    """Runs what the command line names."""
    arguments = sys.argv[1:]
    if arguments[:1] in ([], ["--tiny"]):
        run_all(arguments)
    elif arguments[0] in NAMES:
        importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
    else:
        raise SystemExit(f"{__doc__}\nnames: {', '.join(NAMES)}")


if __name__ == "__main__":
    main()
