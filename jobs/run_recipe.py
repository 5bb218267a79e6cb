"""The job behind `atlas run`, for `ray job submit --working-dir . -- python jobs/run_recipe.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
