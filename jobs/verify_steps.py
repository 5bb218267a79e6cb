"""The job behind `atlas verify`, for `ray job submit --working-dir . -- python jobs/verify_steps.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
