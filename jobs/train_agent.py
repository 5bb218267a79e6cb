"""The job behind `atlas train`, for `ray job submit --working-dir . -- python jobs/train_agent.py ...`."""

import sys

from atlas_ray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
