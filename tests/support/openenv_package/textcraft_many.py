"""The published TextCraft for many episodes of one process: as `openenv import` writes it, a server takes one."""

from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from textcraft_env.server.textcraft_env_environment import TextcraftEnvironment


class Textcraft(TextcraftEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True


app = create_app(Textcraft, CallToolAction, CallToolObservation, env_name="textcraft_env", max_concurrent_envs=32)
