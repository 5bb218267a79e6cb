"""The job behind `atlas collect`, for `ray job submit --working-dir . -- python jobs/collect_trajectories.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["collect", *sys.argv[1:]])
