"""The job behind `atlas export`, for `ray job submit --working-dir . -- python jobs/export_data.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
