"""A package as OpenEnv's `init` lays one out: its server is `counting_env.server.app:app`."""
