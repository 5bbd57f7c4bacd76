"""Programs of others that `exo launch` starts, and how each is told of a server: by environment and arguments, never by files of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Served:
  """What a program is to use: the node's address without a path, a key (any text where none is needed), the model and its tokens."""
  url: str
  key: str
  model: str
  context: int


@dataclass(frozen=True, slots=True)
class Start:
  """`unset`: variables that would have it ask somebody else."""
  arguments: tuple[str, ...] = ()
  environment: Mapping[str, str] = field(default_factory=dict)
  unset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
  """`program` is looked for on the PATH; `install` is the command that brings it."""
  name: str
  program: str
  install: str
  start: Callable[[Served], Start]
  needs_tools: bool = True


def _claude(to: Served) -> Start:
  tiers = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL",
           "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL")  # yapf: disable
  environment = {
      "ANTHROPIC_BASE_URL": to.url, "ANTHROPIC_AUTH_TOKEN": to.key, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
      "API_TIMEOUT_MS": "3600000"
  }
  return Start((), environment | dict.fromkeys(tiers, to.model),
               ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"))


def _codex(to: Served) -> Start:
  provider = {
      "name": "exo", "base_url": f"{to.url}/v1", "env_key": "EXO_LAUNCH_KEY", "wire_api": "responses",
      "stream_idle_timeout_ms": 3_600_000
  }
  settings = {f"model_providers.exo.{key}": value for key, value in provider.items()}
  settings |= {"model_provider": "exo", "model": to.model, "model_context_window": to.context}
  # values are TOML, in which strings and numbers are written as in JSON
  arguments = tuple(part for key, value in settings.items() for part in ("-c", f"{key}={json.dumps(value)}"))
  return Start(arguments, {"EXO_LAUNCH_KEY": to.key})


def _opencode(to: Served) -> Start:
  limit = {"context": to.context, "output": min(to.context // 2, 32_768)}
  provider = {
      "npm": "@ai-sdk/openai-compatible", "name": "exo", "options": {"baseURL": f"{to.url}/v1", "apiKey": to.key},
      "models": {to.model: {"name": to.model, "limit": limit}}
  }
  model = f"exo/{to.model}"
  settings = {"provider": {"exo": provider}, "model": model, "small_model": model}
  return Start((), {"OPENCODE_CONFIG_CONTENT": json.dumps(settings)})


def _openai(to: Served) -> dict[str, str]:
  return {"OPENAI_API_KEY": to.key, "OPENAI_BASE_URL": f"{to.url}/v1"}


def _qwen(to: Served) -> Start:
  return Start(("--auth-type", "openai"), _openai(to) | {"OPENAI_MODEL": to.model})


def _aider(to: Served) -> Start:
  arguments = ("--model", f"openai/{to.model}", "--no-show-model-warnings")
  return Start(arguments, _openai(to) | {"OPENAI_API_BASE": f"{to.url}/v1"})


AGENTS = {
    agent.name: agent
    for agent in (
        Agent("claude", "claude", "npm install -g @anthropic-ai/claude-code", _claude),
        Agent("codex", "codex", "npm install -g @openai/codex", _codex),
        Agent("opencode", "opencode", "npm install -g opencode-ai", _opencode),
        Agent("qwen", "qwen", "npm install -g @qwen-code/qwen-code", _qwen),
        Agent("aider", "aider", "pip install aider-chat, in an environment of its own", _aider, needs_tools=False),
    )
}
