"""The job behind `atlas select`, for `ray job submit --working-dir . -- python jobs/select_steps.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["select", *sys.argv[1:]])
