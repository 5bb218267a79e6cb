"""Completions by vLLM engines of our own, one Ray actor a replica: a `Backend` without endpoint and price.

Flows in: requests, as many at once as there are; flows out: completions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from atlas_ray.cluster.connection import START_SECONDS, connect
from atlas_ray.cluster.placement import Labels, place_engines
from atlas_ray.config import EngineConfig, RayConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure
from atlas_ray.models.client import Completion
from atlas_ray.models.engine import EngineSpec
from atlas_ray.models.protocol import ModelSpec, Sampling
from atlas_ray.models.request import CompletionRequest
from atlas_ray.rollouts.async_set import AsyncReplicaSet
from atlas_ray.rollouts.replica import Replica
from atlas_ray.rollouts.replica_set import ReplicaSet
from atlas_ray.rollouts.retry_queue import MAX_DEATHS
from atlas_ray.runs.folder import reachable
from atlas_ray.types import Message


class CompletionReplica(Replica[CompletionRequest, Completion | AtlasError]):
    """The actor: one model with `VllmPolicy.answer`. Its errors are the project's own, which need no vLLM."""

    async def _answer(self, request: CompletionRequest) -> Completion:
        """Raises `ModelFailure` if the request does not fit or the engine fails it."""
        messages = [Message(m["role"], m["content"]) for m in request.messages]  # type: ignore[arg-type]
        sampling = Sampling(request.temperature, request.max_tokens)
        try:
            reply = await self._model.answer(messages, sampling, request.seed or 0, request.schema)
        except ContextOverflow as error:
            words = f"the request does not fit: {error.what}"
            raise ModelFailure(words, "raise selector.engine.max_model_len") from None
        except Exception as error:
            why = error.what if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
            raise ModelFailure(why) from error
        return Completion(reply.text, reply.finish, reply.usage)


class _Engines(ReplicaSet[CompletionRequest, Completion | AtlasError]):
    """A request that fails has its error for a result: others may fare better."""

    replica: ClassVar[str] = "engine"
    result: ClassVar[str] = "a reply"
    settings: ClassVar[str] = "selector.engine"

    def _failed(self, error: AtlasError) -> AtlasError:
        return error

    def _given_up(self, request: CompletionRequest) -> AtlasError:
        return ModelFailure(f"{MAX_DEATHS} engines died while they answered this request")


class EngineBackend:
    """Replicas of one model. They start with the first request.

    Args:
        spec: What every replica makes its model from.
        replicas: How many.
        in_flight: Requests that a replica takes at once; more wait.
        ray: How to reach Ray, where this process is not connected.
        address: What judgements are cached by, beside the model's name.
        labels: Of the nodes that replicas run on; None: those of the group for rollouts, where they need GPUs.
        start_s: Seconds that a replica may take to start.
    """

    def __init__(
        self,
        spec: ModelSpec[Any],
        *,
        replicas: int = 1,
        in_flight: int = 256,
        ray: RayConfig | None = None,
        address: str = "engine",
        labels: Labels | None = None,
        start_s: float = START_SECONDS,
    ) -> None:
        self._ray, self._address = ray or RayConfig(), address

        def make() -> _Engines:
            place = place_engines(spec.gpus, replicas, labels)
            shape: dict[str, Any] = {"replicas": replicas, "in_flight": in_flight, "start_s": start_s}
            return _Engines(CompletionReplica, spec, place=place, **shape)

        self._engines = AsyncReplicaSet(make)

    @classmethod
    def of(cls, model: str, config: EngineConfig, ray: RayConfig | None = None) -> EngineBackend:
        """Engines of a model as configured."""
        return cls(
            EngineSpec("selector", reachable(model), config),
            replicas=config.replicas,
            in_flight=config.episodes_in_flight,
            ray=ray,
            address=f"vLLM engine ({config.dtype})",
            labels=config.label_selector,
            start_s=config.start_s,
        )

    @property
    def address(self) -> str:
        """Says that the model runs here, and in which number format."""
        return self._address

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply.

        Raises:
            AtlasError: If the engines do not start or keep dying (UserError: the model cannot be used).
            ModelFailure: If this request fails: it does not fit, the schema cannot be followed, or replicas die of it.
        """
        connect(self._ray)
        found = await self._engines.result(replace(request))  # an object of its own
        assert isinstance(found, Completion)
        return found

    async def close(self) -> None:
        """Ends all replicas and their processes."""
        await self._engines.close()
