"""The rows of this package's own table of trajectories: `messages` of `role`, `content`, `trainable`."""

from __future__ import annotations

from atlas_ray.trajectories.formats.openai import KEYS, message
from atlas_ray.trajectories.formats.turns import chat_format

FORMAT = chat_format("messages", message, KEYS, flag="trainable", named=True)
