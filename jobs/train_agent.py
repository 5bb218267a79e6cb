"""The job behind `atlas train`, for `ray job submit --working-dir . -- python jobs/train_agent.py ...`.

`ray job stop` makes it write a checkpoint, and kills it after 3 s, unless submitted with
`--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "900"}}'`, as `atlas submit train` does.
"""

import sys

from atlas_ray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
