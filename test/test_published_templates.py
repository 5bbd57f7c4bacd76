"""Line 9: the chat templates that are published, as llama.cpp collects them: which format each belongs to, and that what it
writes for a call is read as that call.

They are not ours to carry: `EXO_TEST_TEMPLATES` names the folder `models/templates` of llama.cpp's sources.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from exo.api.chat_parser import ChatParser
from exo.api.chat_parts import AnswerParser
from exo.api.harmony_parser import HarmonyParser
from exo.api.tool_formats import tool_format
from exo.errors import InvalidRequestError
from exo.inference.chat_template import render_chat
from test.support.chat_shapes import SCHEMAS, read
from test.support.nodes import ROOT

# "hermes" is also what is asked for where a template is of no format that exo knows
FORMATS: dict[str, str | None] = {
    "Apertus-8B-Instruct": "apertus",
    "Apriel-1.6-15b-Thinker-fixed": "hunyuan",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "ByteDance-Seed-OSS": "seed",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r-plus-tool_use": "llama3",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "GigaChat3-10B-A1.8B": "hermes",
    "GigaChat3.1-10B-A1.8B": "gigachat",
    "HuggingFaceTB-SmolLM3-3B": None,
    "Kimi-K2-Instruct": "kimi-k2",
    "Kimi-K2-Thinking": "kimi-k2",
    "Kimi-K3": "kimi-k3",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiMo-VL": "hermes",
    "MiniMax-M1": "hunyuan",
    "MiniMax-M2": "minimax-m2",
    "MiniMax-M3": "hermes",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-named",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen-coder",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen-coder",
    "Qwen3.5-4B": "qwen-coder",
    "Reka-Edge": "hermes",
    "Spark2.5": "glm",
    "StepFun3.5-Flash": "qwen-coder",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
    "deepseek-ai-DeepSeek-V3.1": None,
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.2",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek-v4",
    "deepseek-ai-DeepSeek-V4": "deepseek-v4",
    "fireworks-ai-llama-3-firefunction-v2": "hermes",
    "google-gemma-2-2b-it": None,
    "google-gemma-4-31B-it-interleaved": "gemma",
    "google-gemma-4-31B-it": "gemma",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "inclusionai-ling-3.0-flash": "glm",
    "llama-cpp-deepseek-r1": "deepseek-v3",
    "llama-cpp-rwkv-world": None,
    "meetkai-functionary-medium-v3.1": "functionary",
    "meetkai-functionary-medium-v3.2": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "microsoft-Phi-3.5-mini-instruct": None,
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-named",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "moonshotai-Kimi-K2": "kimi-k2",
    "muse-glimmer": "muse",
    "openai-gpt-oss-120b": "harmony",
    "openbmb-MiniCPM5-1B": "hermes",
    "poolside-Laguna-S-2.1": "glm",
    "poolside-Laguna-XS-2.1": "glm",
    "poolside-Laguna-XS.2": "glm",
    "tencent-Hy3": "hy3",
    "unsloth-Apriel-1.5": "hunyuan",
    "unsloth-mistral-Devstral-Small-2507": "mistral-named",
    "upstage-Solar-Open-100B": "solar",
}
# whose own form exo does not read: a call is asked for in our words where it is a must, and any other is text
UNREAD = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "GigaChat3-10B-A1.8B", "MiniMax-M3",
    "fireworks-ai-llama-3-firefunction-v2", "meetkai-functionary-medium-v3.2", "openbmb-MiniCPM5-1B"
}


def templates_folder() -> Path | None:
  if (given := os.environ.get("EXO_TEST_TEMPLATES")) is not None:
    return Path(given)
  places = (f for parent in ROOT.parents for f in parent.glob("native/*/vendor/llama.cpp/models/templates"))
  return next(places, None)


FOLDER = templates_folder()
FILES = sorted(FOLDER.glob("*.jinja")) if FOLDER is not None else []
needs_templates = pytest.mark.skipif(
    not FILES, reason="llama.cpp's collection of templates is not here (EXO_TEST_TEMPLATES)"
)
QUESTION, ARGUMENTS = "QUESTION-7", {"city": "Paris", "days": 3, "zip": "01234", "exact": True, "tags": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}
         for name, schema in SCHEMAS.items()]  # yapf: disable


@needs_templates
def test_line_9_every_published_template_is_of_the_format_that_its_model_writes() -> None:
  for file in FILES:
    form = tool_format(file.read_text("utf-8-sig"))
    if file.stem in FORMATS:  # newer collections have more
      assert (form.name if form is not None else None) == FORMATS[file.stem], file.stem


def rendered(source: str) -> str | None:
  """What the template writes after the question for an answer that calls; None where it wants other messages."""
  special = {"bos_token": "<bos>", "eos_token": "<eos>"}
  for arguments in (ARGUMENTS, None):
    function: dict[str, Any] = {"name": "get_weather", "arguments": arguments}
    if arguments is None:  # some want the text of the arguments
      function["arguments"] = json.dumps(ARGUMENTS)
    call = {"id": "call00001", "type": "function", "function": function}
    for content in ("", None):
      messages = [{"role": "user", "content": QUESTION},
                  {"role": "assistant", "content": content, "tool_calls": [call]}]
      after = [{"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "21"}]
      for more in ([], after):
        try:
          text = render_chat(
              source, [*messages, *more], special_tokens=special, tools=TOOLS, add_generation_prompt=False
          )
        except InvalidRequestError:
          continue
        answer = text.rpartition(QUESTION)[2]
        if "Paris" in answer:
          return answer
  return None


@needs_templates
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_line_9_what_a_published_template_writes_for_a_call_is_read_as_that_call(file: Path) -> None:
  source = file.read_text("utf-8-sig")
  form = tool_format(source)
  if form is None or file.stem in UNREAD or file.stem not in FORMATS:
    pytest.skip("its form is not one that exo reads")
  answer = rendered(source)
  if answer is None:
    pytest.skip("it writes no such call")
  if form.bare:
    answer = answer[answer.index(form.bare):].partition("<|eot_id|>")[0]

  def parser() -> AnswerParser:
    return HarmonyParser(SCHEMAS) if form.name == "harmony" else ChatParser(None, form, SCHEMAS)

  for pieces in ([answer], list(answer)):
    calls = [(name, json.loads(arguments)) for name, arguments in read(parser(), pieces)[2]]
    assert calls == [("get_weather", ARGUMENTS)], answer


def test_line_9_a_template_may_make_its_own_lists_longer_within_bounds() -> None:
  """As llama.cpp's form of Kimi K2's does."""
  source = "{% set ids = [] %}{% for m in messages %}{% set _ = ids.append(m.content) %}{% endfor %}{{ ids | join('+') }}"
  messages: list[Any] = [{"role": "user", "content": "a", "l": []}, {"role": "user", "content": "b"}]
  for _ in range(2):
    assert render_chat(source, messages, special_tokens={}) == "a+b"
  endless = "{% set x = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = x.append(x) %}{% endfor %}{% endfor %}"
  for refused in (
      endless, "{{ messages.append(1) }}", "{{ messages[0].l.append(1) }}", "{{ messages.clear() }}",
      "{{ messages[0].update({}) }}", "{{ [].insert(0, 1) }}"
  ):
    with pytest.raises(InvalidRequestError):
      render_chat(refused, messages, special_tokens={})
