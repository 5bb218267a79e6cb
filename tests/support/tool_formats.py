"""Chat templates that know tools and thoughts, written by the rules of the models' own, on a tokenizer of bytes."""

from __future__ import annotations

from functools import cache
from typing import Any

_LAST_QUESTION = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
# Thoughts of turns before the last question are dropped; the turn that is made has a thought, be it empty.
QWEN_3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    + _LAST_QUESTION
    + "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}{% set thought = m.reasoning_content or '' %}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}{% for call in m.tool_calls or [] %}{% if content or not loop.first %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n"
    "<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("%}\n", "%}{{ '\n' }}")  # transformers drops a line break behind a block
# The prompt opens the thought, and recorded replies have none.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% for call in m.tool_calls or [] %}<|call|>{{ call.function.name }}\n"
    "{{ '```json\n' + call.function.arguments + '\n```' }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'tool' %}<|output|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# One call a turn; results as JSON; no thoughts.
LLAMA_31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rule = messages[0].content %}{% else %}"
    "{% set rule = '' %}{% endif %}<|start_header_id|>system<|end_header_id|>\n\n"
    "{% if tools %}Environment: ipython\n{% endif %}{{ rule }}<|eot_id|>"
    "{% for m in messages %}{% if m.role == 'user' %}<|start_header_id|>user<|end_header_id|>\n\n"
    "{% if tools and loop.index0 <= 1 %}Functions: {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% elif m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% for call in m.tool_calls %}{{ m.content }}"
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}<|eot_id|>'
    "{% elif m.role == 'assistant' %}<|start_header_id|>assistant<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# A turn is several messages; the one that is made ends otherwise than recorded ones.
GPT_OSS = (
    "{% if tools %}<|start|>developer<|message|>{% for tool in tools %}type {{ tool.function.name }} = any;{% endfor %}"
    "<|end|>{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}"
    "{% if m.content %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not m.tool_calls %}<|return|>{% else %}<|end|>{% endif %}{% endif %}"
    "{% for call in m.tool_calls or [] %}<|start|>assistant to={{ call.function.name }}<|channel|>commentary<|message|>"
    "{{ call.function.arguments | tojson }}<|call|>{% endfor %}"
    "{% elif m.role == 'tool' %}<|start|>{{ m.name }} to=assistant<|message|>{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Tools stand before the last question, so that they move; ids of calls are written; thoughts have no place by calls.
MISTRAL_V03 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings of length 9!') }}"
    '{% endif %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, '
    '"id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}'
    '{% elif m.role == \'tool\' %}[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}"
)
# As vLLM writes it for calls; behind all turns stands the end of the text.
PHI_4_MINI = (
    "{% if messages[0].role == 'system' or tools %}<|system|>"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% if tools %}<|tool|>{{ tools | tojson }}<|/tool|>{% endif %}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}{% if m.tool_calls %}<|tool_call|>["
    '{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|>{% endif %}"
    "<|end|>{% elif m.role == 'tool' %}<|tool_response|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
# A system turn of its own, always; tools in it, but no place for their calls.
SMOLLM_3 = (
    "<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: /think\n\n"
    "## Custom Instructions\n\n{% if messages[0].role == 'system' %}{{ messages[0].content.rstrip() }}{% else %}"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face.{% endif %}\n\n"
    "{% if tools %}### Tools\n\n<tools>\n{% for tool in tools %}{{ tool | string }}\n{% endfor %}</tools>\n\n"
    "{% endif %}"
    "<|im_end|>{{ '\n' }}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ m.content.lstrip('\n') }}<|im_end|>{{ '\n' }}{% elif m.role in ('user', 'tool') %}<|im_start|>user\n"
    "{{ m.content }}<|im_end|>{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
SMOLLM_2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>{{ '\n' }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
# No token ends a turn: the next turn's first one does.
GLM_45 = (
    "[gMASK]<sop>{% if tools %}<|system|>\n# Tools\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "</tools>{% endif %}" + _LAST_QUESTION + "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>{% if loop.index0 > ns.last and m.reasoning_content %}"
    "{{ '\n<think>' + m.reasoning_content.strip() + '</think>' }}{% else %}{{ '\n<think></think>' }}{% endif %}"
    "{% if m.content.strip() %}{{ '\n' + m.content.strip() }}{% endif %}{% for call in m.tool_calls or [] %}"
    "{{ '\n<tool_call>' + call.function.name }}{% for key, value in call.function.arguments.items() %}"
    "{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' + (value | tojson) + '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}{% elif m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% elif m.role == 'system' %}<|system|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "qwen3": (QWEN_3, "<|im_end|>"),
    "deepseek-r1": (DEEPSEEK_R1, "</s>"),
    "llama-3.1": (LLAMA_31, "<|eot_id|>"),
    "gpt-oss": (GPT_OSS, "<|return|>"),
}
PARTIAL = {  # templates with no place for some of it
    "mistral-v0.3": (MISTRAL_V03, "</s>"),
    "phi-4-mini": (PHI_4_MINI, "<|endoftext|>"),
    "smollm3": (SMOLLM_3, "<|im_end|>"),
    "smollm2": (SMOLLM_2, "<|im_end|>"),
    "glm-4.5": (GLM_45, "<|endoftext|>"),
}
HELD: dict[str, dict[str, bool]] = {  # what `random_messages` may write for a template
    **{name: {"tools": True, "thoughts": True} for name in TEMPLATES},
    "mistral-v0.3": {"tools": True, "thoughts": False, "system": False},
    "phi-4-mini": {"tools": True, "thoughts": True},
    "smollm3": {"tools": False, "thoughts": True},
    "smollm2": {"tools": False, "thoughts": True},
    "glm-4.5": {"tools": True, "thoughts": True},
}
_SPECIALS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|call|>", "<|output|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>"),
    *("<|/tool_call|>", "<|tool_response|>", "<|observation|>", "<|endoftext|>", "[gMASK]", "<sop>"),
]


@cache
def tool_tokenizer(name: str) -> Any:
    """Byte-level, with the special tokens of all families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, special_tokens=_SPECIALS)
    inner.train_from_iterator(["assistant\n<think>\n</think>\n\nuser\n"] * 4, trainer)
    template, eos = (TEMPLATES | PARTIAL)[name]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token=eos,
        additional_special_tokens=[s for s in _SPECIALS if s not in ("<s>", eos)],
        name_or_path=f"test/{name}",
        chat_template=template,
    )
