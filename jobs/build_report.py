"""The job behind `atlas report`, for `ray job submit --working-dir . -- python jobs/build_report.py ...`."""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
