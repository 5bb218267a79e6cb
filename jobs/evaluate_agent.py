"""The job behind `atlas evaluate`, for `ray job submit --working-dir . -- python jobs/evaluate_agent.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
