"""Loss and gradients are exact: against plain transformers, however a global batch is packed, split and shared out.

The reference sees each trajectory whole and alone, with labels of -100 outside the chosen steps, in float32.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from atlas_ray.errors import UserError
from atlas_ray.models import attention
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training import loop
from atlas_ray.training.data.batching import Batch, collate
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.model import loss
from tests.support.tiny import tiny_llama, tiny_tokenizer
from tests.support.training import CHOSEN, CPU, TRAJECTORIES_HERE, a_config, training_example

CHAT = ChatFormat(tiny_tokenizer())
VOCABULARY = len(CHAT.tokenizer)


# --- by hand


class Bigram(torch.nn.Module):
    """A model that knows only the last token: P(1|0) = 1/2, P(2|1) = 1/4, P(0|2) = 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)
        self.head = torch.nn.Linear(3, 3, bias=False)
        p = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.125, 0.5, 0.375]])
        self.head.weight.data = p.log().T.contiguous()

    def get_decoder(self) -> Any:
        return lambda input_ids, **_: SimpleNamespace(last_hidden_state=F.one_hot(input_ids, 3).float())

    def get_output_embeddings(self) -> Any:
        return self.head


def a_batch(ids: list[int], targets: list[int], weights: list[float]) -> Batch:
    places = torch.tensor(targets, dtype=torch.int64)
    row = torch.tensor(ids)
    n = len(ids)
    cu_seqlens = torch.tensor([0, n], dtype=torch.int32)
    return Batch(row[None], torch.arange(n)[None], (n,), cu_seqlens, places - 1, row[places], torch.tensor(weights))


def test_hand_computed_loss() -> None:
    module = loss.StepLoss(Bigram(), 10)
    for targets, inverse_probability in {(1,): 2, (2,): 4, (3,): 8, (1, 2, 3): 64, (): 1}.items():
        found = module(a_batch([0, 1, 2, 0, 1], list(targets), [1.0] * len(targets)))
        assert found.item() == pytest.approx(math.log(inverse_probability), abs=1e-6)
    weighted = module(a_batch([0, 1, 2, 0, 1], [1, 3], [0.5, 2.0]))
    assert weighted.item() == pytest.approx(0.5 * math.log(2) + 2 * math.log(8), abs=1e-6)


def test_fused_cross_entropy_has_the_gradients_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*s, generator=generator).requires_grad_() for s in ((30, 8), (50, 8), (50,)))
    targets, weights = torch.randint(0, 50, (30,), generator=generator), torch.rand(30, generator=generator)
    expected = (F.cross_entropy(states @ weight.T + bias, targets, reduction="none") * weights).sum()
    gradients = torch.autograd.grad(expected * 3, (states, weight, bias))
    for rows in (7, 30, 1000):
        monkeypatch.setattr(loss, "LOGIT_ROWS", rows)
        found = loss.FusedLinearCrossEntropy.apply(states, weight, bias, targets, weights, None, True)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found * 3, (states, weight, bias)), gradients)


def test_logits_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGIT_ROWS", 5)
    sizes: list[int] = []
    original = torch.Tensor.logsumexp

    def note(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(logits))
        return original(logits, *args, **options)

    monkeypatch.setattr(torch.Tensor, "logsumexp", note)
    loss.StepLoss(tiny_llama(99), 50)(a_batch(list(range(20)), list(range(8, 20)), [1.0] * 12)).backward()
    assert sizes == [5, 5, 2]


def test_without_gradients_the_loss_is_the_same() -> None:
    module, batch = loss.StepLoss(tiny_llama(99), 50), a_batch(list(range(20)), [5, 9], [1.0, 1.0])
    with torch.no_grad():
        found = module(batch)
    assert not found.requires_grad
    assert found.item() == module(batch).item()


def test_a_model_that_changes_its_logits_is_refused() -> None:
    with pytest.raises(UserError, match="logits_scaling"):
        loss.StepLoss(tiny_llama(99, logits_scaling=8.0), 50)


# --- against plain transformers


def windowed_mistral() -> Any:
    """Attends to the last nine tokens only."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: Any = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, num_key_value_heads=1, sliding_window=9, **shape))


def soft_capped_gemma() -> Any:
    """Caps the logits of attention and of the head, both low enough to bite; every other layer sees nine tokens."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape: Any = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 9}
    caps = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}
    config = Gemma2Config(vocab_size=VOCABULARY, initializer_range=0.2, **shape, **caps)
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager")


@dataclass
class Case:
    """One way to compute the same."""

    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 2048
    model: Any = lambda: tiny_llama(VOCABULARY)
    packed: bool = True


CASES = {
    "one by one": Case({"micro_batch_tokens": 16}),
    "packed in part": Case({"micro_batch_tokens": 120}),
    "packed whole": Case({"micro_batch_tokens": 10_000}),
    "head in parts": Case({"micro_batch_tokens": 10_000}, rows=7),
    "cut at max_length": Case({"micro_batch_tokens": 120, "max_length": 60}),
    "recomputed": Case({"activation_checkpointing": True}),
    "mean over steps": Case({"loss": "step"}),
    "mean over trajectories": Case({"loss": "trajectory"}),
    "grouped heads": Case({"micro_batch_tokens": 10_000}, model=lambda: tiny_llama(VOCABULARY, num_key_value_heads=1)),
    "own head": Case(model=lambda: tiny_llama(VOCABULARY, tie_word_embeddings=False)),
    "soft caps": Case({"micro_batch_tokens": 120}, rows=7, model=soft_capped_gemma),
    "attention of its own": Case({"micro_batch_tokens": 10_000}, model=windowed_mistral, packed=False),
}


def computed(case: Case) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimizer step of the loop, on however many processes this is one of."""
    config = a_config(**{"global_batch_size": 7, "epochs": 1, "max_grad_norm": 1e9} | case.options)
    examples = [training_example(tokens_of(t, CHAT), CHOSEN[t.id], config.max_length) for t in TRAJECTORIES_HERE]
    model = case.model()
    module = loop.place_model(model, config, CPU)
    assert (model.config._attn_implementation == attention.NAME) is case.packed
    optimizer, gradients = torch.optim.SGD(module.parameters(), lr=0.0), dict[str, torch.Tensor]()

    def note(*_: Any) -> None:
        for name, p in module.named_parameters():
            assert p.grad is not None
            full = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            gradients[name.removeprefix("model.")] = full.clone()

    optimizer.register_step_pre_hook(note)
    steps: list[dict[str, Any]] = []
    before, loss.LOGIT_ROWS = loss.LOGIT_ROWS, case.rows
    try:
        loop.fit(module, [optimizer], [e for e in examples if e.loss_tokens], config, CPU, on_step=steps.append)
    finally:
        loss.LOGIT_ROWS = before
    return steps[0]["loss"], gradients


def reference(case: Case, shift: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by plain transformers: whole trajectories, one by one, labels of -100.

    Args:
        shift: Tokens by which the labels are put off their places, to see whether it would be noticed.
    """
    limit = case.options.get("max_length", 500)
    model, parts = case.model(), list[torch.Tensor]()
    for trajectory in TRAJECTORIES_HERE:
        (rendered,) = CHAT.render(trajectory.messages)
        spans = [rendered.spans[s.position] for s in trajectory.steps if s.index in CHOSEN[trajectory.id]]
        ids, labels = torch.tensor([rendered.ids]), torch.full((1, len(rendered.ids)), -100)
        kept = [(start + shift, end + shift) for start, end in spans if end <= limit]  # type: ignore[misc]
        alone = [labels.clone() for _ in kept]
        for one, (start, end) in zip(alone, kept, strict=True):
            one[0, start:end] = labels[0, start:end] = ids[0, start:end]
        if not kept:
            continue
        objective = case.options.get("loss", "token")
        means = [model(input_ids=ids, labels=one).loss for one in (alone if objective == "step" else [labels])]
        parts += means * (int((labels != -100).sum()) if objective == "token" else 1)
    total = torch.stack(parts).mean()
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


def off_by(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative error of any parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - g).norm() / g.norm()) for name, g in expected.items())


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases on two processes, sharded by FSDP2."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_compute_all, (2, str(folder)), nprocs=2)
    results: list[dict[str, Any]] = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    for name, (value, _) in results[0].items():
        assert results[1][name][0] == value  # every rank knows the global loss
    return results[0]


def _compute_all(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({name: computed(case) for name, case in CASES.items()}, Path(folder, f"rank{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_plain_transformers(name: str, ranks: int, request: pytest.FixtureRequest) -> None:
    found, gradients = computed(CASES[name]) if ranks == 1 else request.getfixturevalue("on_two_ranks")[name]
    expected, expected_gradients = reference(CASES[name])
    assert found == pytest.approx(expected, abs=1e-5)
    assert off_by(gradients, expected_gradients) < 1e-4


def test_the_reference_notices_a_mask_that_is_off_by_one() -> None:
    case = CASES["packed whole"]
    expected, gradients = reference(case)
    shifted, off = reference(case, shift=-1)
    assert abs(expected - shifted) > 1e-3
    assert off_by(off, gradients) > 1e-2


def test_max_length_case_loses_steps() -> None:
    limit = CASES["cut at max_length"].options["max_length"]
    lost = [training_example(tokens_of(t, CHAT), CHOSEN[t.id], limit).steps_lost for t in TRAJECTORIES_HERE]
    assert 0 < sum(lost) < sum(len(chosen) for chosen in CHOSEN.values())


def test_soft_cap_case_changes_the_loss() -> None:
    capped = reference(CASES["soft caps"])[0]
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        free = soft_capped_gemma()
        setattr(free.config, key, None)
        for layer in free.model.layers:
            layer.self_attn.attn_logit_softcapping = free.config.attn_logit_softcapping
        assert abs(reference(Case(model=lambda free=free: free))[0] - capped) > 1e-3  # type: ignore[misc]


def test_objectives_differ() -> None:
    losses = [reference(CASES[name])[0] for name in ("packed whole", "mean over steps", "mean over trajectories")]
    assert min(abs(a - b) for a, b in zip(losses, [*losses[1:], losses[0]], strict=True)) > 1e-4


def test_packed_trajectories_do_not_see_each_other() -> None:
    """Another neighbour changes nothing; in plain causal attention over the row it would."""
    examples = [training_example(tokens_of(t, CHAT), CHOSEN[t.id], 500) for t in TRAJECTORIES_HERE[:3]]
    module = loop.place_model(tiny_llama(VOCABULARY), a_config(), CPU)
    alone, first, second = (collate(e, "token") for e in (examples[1:2], examples[:2], [examples[2], examples[1]]))
    decoder = module.model.get_decoder()

    def last(batch: Batch, **packing: Any) -> torch.Tensor:
        packing = packing or {"lengths": batch.lengths, "cu_seqlens": batch.cu_seqlens}
        out = decoder(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **packing)
        return out.last_hidden_state[0, -examples[1].length :]

    torch.testing.assert_close(last(first), last(alone))
    torch.testing.assert_close(last(second), last(alone))
    row = (first.ids.shape[1],)
    leaking = last(first, lengths=row, cu_seqlens=torch.tensor([0, *row], dtype=torch.int32))
    assert (leaking - last(alone)).norm() > 1e-3


def test_unsupported_attention_options_are_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    cu_seqlens = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="Linear wants attention"):
        attention._attend(torch.nn.Linear(1, 1), q, q, q, None, lengths=(3,), cu_seqlens=cu_seqlens, s_aux=q)


def test_torch_varlen_attention_has_the_expected_signature() -> None:
    varlen = attention._varlen()
    if varlen is None:
        pytest.skip("this torch has no varlen_attn with grouped heads")
    parameters = inspect.signature(varlen).parameters
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= parameters.keys()
