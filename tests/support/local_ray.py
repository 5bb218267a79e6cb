"""Ray for the tests of this process."""

from __future__ import annotations

import os


def start_ray() -> None:
    """Starts it, whatever else runs on this machine; a stage of an earlier test may have done so."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # as `connect` does
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        logging_level="warning",
        log_to_driver=False,
        ignore_reinit_error=True,
    )
