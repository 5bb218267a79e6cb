"""A vLLM engine as a policy, in the process that plays the episodes. The one module here that speaks vLLM.

Flows in: turns, as token ids appended one by one; flows out: replies. On CPU it adds up in one order: in float32 a
reply depends on its conversation and seed alone, never on what else is in the batch or in the cache (layers up to 1,024
wide; wider ones round otherwise where one token is alone in a batch). In bfloat16, and on GPU, rounding depends on the
batch.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import count
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from atlas_ray.cluster.processes import watch_for
from atlas_ray.config import EngineConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.conversation import EngineConversation
from atlas_ray.models.policies import ModelConfig
from atlas_ray.models.protocol import STOP, ModelUse, Reply, Sampling
from atlas_ray.models.source import dtype_on_cpu, local_model, longest, trusted
from atlas_ray.models.templates.parser import ReplyParser
from atlas_ray.runs.folder import reachable
from atlas_ray.types import Message, Task, Usage

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as within Ray; a forked process would not carry this one's mark
}
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_CI_ENV": "1",
    "TORCHDYNAMO_DISABLE": "1",
    # Attention that is split over keys adds up in an order that depends on the batch.
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
    # Threads that spin while they wait bring a busy machine to a crawl.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CPU_BLOCK = 32  # tokens; the least that the CPU kernels take, and so the most that the prefix cache can share
_CPU_BATCH_TOKENS = 8192
_CPU_THREADS = 8


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a replica needs to start its engine; pickled to its actor."""

    name: str
    model: str
    config: EngineConfig
    _: KW_ONLY
    revision: str | None = None
    chat_template: str | None = None

    @property
    def gpus(self) -> int:
        """GPUs that the engine takes where there are any."""
        return self.config.tensor_parallel

    async def build(self) -> VllmPolicy:
        """Starts the engine in this process and event loop.

        Raises:
            UserError: If the model or its tokenizer cannot be used.
            ModelFailure: If the engine does not start.
        """
        policy = VllmPolicy(self)
        await policy.start()
        return policy


class EngineModel(ModelConfig):
    """A folder or hub id, played by vLLM engines."""

    def models(self) -> list[ModelUse]:
        """Itself."""
        return [ModelUse(self.path, self.max_model_len, self.chat_template, self.revision)]

    def spec(self, name: str, engine: EngineConfig) -> EngineSpec:
        """An engine with as much context as all models of a comparison get, or less."""
        capped = engine.capped(self.max_model_len)
        return EngineSpec(name, reachable(self.path), capped, revision=self.revision, chat_template=self.chat_template)


class VllmPolicy:
    """Speakers that share one engine.

    Attributes:
        usage: Of all replies so far.
        under_way: Requests that the engine works at or holds.
        chat: How the model's conversations are written; once started.
        context: Tokens that a conversation may have; once started.
        refused: Why no episode could be played that calls tools, once that was tried: none would fare better.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec, self.usage, self.under_way = spec, Usage(), 0
        self._numbers = count()
        self._parser: ReplyParser | None = None
        self.refused: AtlasError | None = None
        self._engine: AsyncLLM | None = None
        self._watcher: Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Stands in every episode's record."""
        return self.spec.name

    @property
    def dead(self) -> bool:
        """Whether the engine broke for good."""
        return self._engine is not None and self._engine.errored

    async def start(self) -> None:
        """Starts the engine, in the running event loop.

        Raises:
            UserError: If the model or its tokenizer cannot be used.
            ModelFailure: If the engine does not start.
        """
        import torch

        cpu = not torch.cuda.is_available()
        for variable, value in (_ENVIRONMENT | _CPU_ENVIRONMENT if cpu else _ENVIRONMENT).items():
            os.environ.setdefault(variable, value)
        if cpu:
            # Ray leaves an actor one thread; the number changes no result.
            cores = (os.cpu_count() or 1) // self.spec.config.replicas
            os.environ["OMP_NUM_THREADS"] = str(min(max(cores, 1), _CPU_THREADS))
        # Off the loop: many gigabytes may have to come from a store.
        self._folder = await asyncio.to_thread(local_model, self.spec.model)
        self.chat = ChatFormat.load(self.spec.model, self.spec.revision, self.spec.chat_template)
        self._parser = self.refused = None
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = _engine_args(self.spec, self._folder, cpu)
        # From here on: vLLM's processes do not end by themselves when this one is killed while they load.
        self._watcher = self._watcher or watch_for(os.getpid())
        try:
            self._engine = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            await self.close()
            raise ModelFailure(
                f"the engine does not start with {self.spec.model}: {_short(error)}",
                "check the model, engine.max_model_len and memory; ATLAS_RAY_LOGS=1 shows more",
            ) from error
        self.context: int = self._engine.model_config.max_model_len

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> EngineConversation:
        """Starts a conversation.

        Raises:
            UserError: If it is to call tools, and the model's calls cannot be read.
        """
        if sampling.tools is not None and self._parser is None:
            try:
                self._parser = ReplyParser(self.chat)
            except AtlasError as error:
                self.refused = error
                raise
        return EngineConversation(self, self.chat, opening, sampling, self._parser)

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        """One reply to a whole conversation that ends with a user turn: a question, not an episode's turn.

        Args:
            messages: The conversation.
            sampling: How the reply is drawn.
            seed: Of the draw.
            schema: JSON schema that the reply must follow, or None for free text.

        Raises:
            ContextOverflow: If nothing more fits.
            ModelFailure: If the engine fails, or cannot follow the schema.
        """
        made, usage = await self.generate(self.chat.opening(messages), sampling, seed, stop=False, schema=schema)
        return Reply(made.text, usage, "length" if made.finish_reason == "length" else "stop")

    async def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        seed: int,
        *,
        stop: bool = True,
        schema: Mapping[str, Any] | None = None,
    ) -> tuple[CompletionOutput, Usage]:
        """Draws what follows `ids`, up to an end of turn, or what `schema` allows.

        Args:
            ids: The prompt.
            sampling: How.
            seed: Of the draw.
            stop: Whether a reply of text ends before an observation that it writes itself.
            schema: JSON schema of the text, or None for any.

        Raises:
            ContextOverflow: If nothing more fits.
            ModelFailure: If the engine fails.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        parser = None if sampling.tools is None else self._parser
        room = self.context - len(ids)
        if room < 1:
            raise ContextOverflow(f"{len(ids)} tokens fill the context of {self.context}")
        output = await self._ask(
            ids,
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_tokens, room),
                seed=seed if sampling.temperature > 0 else None,
                stop=[STOP] if stop and parser is None else [],
                stop_token_ids=list(self.chat.stop_ids if parser is None else parser.stop_ids),
                skip_special_tokens=parser is None,  # calls may be marked by some
                structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
        made = output.outputs[0]
        usage = Usage(len(ids), output.num_cached_tokens or 0, len(made.token_ids), 1)
        self.usage += usage
        return made, usage

    async def losses(self, ids: Sequence[int]) -> list[float]:
        """Negative log-probabilities, in nats, of every token but the first, each given all before it.

        Args:
            ids: At most one less than the context holds.

        Raises:
            ModelFailure: If the engine fails.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,  # of the token that stands there, no others
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._ask(ids, params)
        return [-logprob for logprob in output.prompt_logprobs.logprobs]

    async def _ask(self, ids: Sequence[int], params: SamplingParams) -> Any:
        """The engine's one answer to a request; `ModelFailure` if the engine fails."""
        if self._engine is None:
            raise ModelFailure("the engine is closed")
        self.under_way += 1
        try:
            # One output alone (FINAL_ONLY); cancelling this task ends the request as well.
            stream = self._engine.generate({"prompt_token_ids": list(ids)}, params, str(next(self._numbers)))
            [output] = [output async for output in stream]
        except Exception as error:
            raise ModelFailure(f"the engine failed: {_short(error)}") from error
        finally:
            self.under_way -= 1
        if output.outputs[0].finish_reason not in ("stop", "length"):
            raise ModelFailure(f"the engine gave a request up ({output.outputs[0].finish_reason})")
        return output

    async def load(self, spec: EngineSpec) -> None:
        """Goes on with another model: new weights in the warm engine where the architecture and tokenizer are the same.

        No episode may be under way.

        Raises:
            UserError: If the model cannot be used.
            ModelFailure: If the engine fails.
        """
        folder = await asyncio.to_thread(local_model, spec.model)
        chat = ChatFormat.load(spec.model, spec.revision, spec.chat_template)  # what it refuses leaves the engine warm
        changed = replace(spec, name=self.spec.name, model=self.spec.model) != self.spec
        if self._engine is None or changed or not _alike(self._folder, folder):
            await self.close()
            self.spec = spec
            return await self.start()
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            await self._engine.reset_prefix_cache()
        except Exception as error:
            await self.close()  # it holds a part of either model
            raise ModelFailure(f"cannot load the weights of {spec.model}: {_short(error)}") from error
        self.spec, self._folder, self.chat = spec, folder, chat
        self._parser = self.refused = None

    async def close(self) -> None:
        """Ends the engine and its processes."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=0)
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.kill()
            watcher.wait()


def _engine_args(spec: EngineSpec, folder: str, cpu: bool) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs(
        **_options(folder, spec.config, cpu, spec.revision),
        revision=spec.revision,
        tokenizer_revision=spec.revision,
        disable_log_stats=True,
    )


def _options(model: str, config: EngineConfig, cpu: bool, revision: str | None = None) -> dict[str, Any]:
    own = longest(model, revision)
    # vLLM refuses more than the model was made for
    length = min(config.max_model_len, own) if config.max_model_len and own else config.max_model_len
    options: dict[str, Any] = {
        "model": model,
        "max_model_len": length,
        "max_num_seqs": config.max_num_seqs,
        "dtype": dtype_on_cpu(model, revision) if cpu and config.dtype == "auto" else config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "distributed_executor_backend": "uni" if config.tensor_parallel == 1 else "mp",
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "trust_remote_code": trusted(),
        "generation_config": "vllm",
        # White space between JSON tokens is free, and a small model may write nothing else.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if cpu:
        options |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": config.cpu_kv_cache_gb << 30,
            "block_size": _CPU_BLOCK,
            # A seeded request whose prompt is computed in chunks kills the CPU engine.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, length or own or 0),
        }
    else:
        options["gpu_memory_utilization"] = config.gpu_memory_utilization
    return options


def server_options(model: str, config: EngineConfig) -> tuple[list[str], dict[str, str]]:
    """The same engine behind vLLM's own server: its command-line arguments, and its environment."""
    import torch

    cpu = not torch.cuda.is_available()
    arguments = []
    for key, value in _options(local_model(model), config, cpu).items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no-'}{name}")
        elif value is not None:
            arguments += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments, _ENVIRONMENT | _CPU_ENVIRONMENT if cpu else _ENVIRONMENT


def _alike(one: str, other: str) -> bool:
    """Whether two model folders differ in weights alone."""
    try:
        return all(Path(model).is_dir() for model in (one, other)) and _shape(Path(one)) == _shape(Path(other))
    except (OSError, ValueError, AttributeError):
        return False  # whoever loads it says what is wrong


def _shape(folder: Path) -> list[Any]:
    config = json.loads((folder / "config.json").read_text())
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        config.pop(key, None)
    settings = folder / "tokenizer_config.json"
    tokens = json.loads(settings.read_text()) if settings.is_file() else {}
    files = [folder / name for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja")]
    contents = [file.read_bytes() if file.is_file() else None for file in files]
    return [config, tokens.get("chat_template"), tokens.get("eos_token"), *contents]


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
