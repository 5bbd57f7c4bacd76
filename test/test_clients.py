"""Clients that people use, unchanged but for the base URL. Those that are not installed are skipped; `clients` is the extra."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from test.support.nodes import ROOT, NodeProcess, ring

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("clients")
  with ring(home, request.param, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[-1]


@pytest.fixture(scope="module")
def real(model_home: Path) -> Iterator[NodeProcess]:
  with ring(model_home, 1, "--inference-engine", "onnx") as started:
    yield started[0]


def test_openai_asynchronously(node: NodeProcess) -> None:
  async def ask() -> None:
    async with AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
      answers = await asyncio.gather(
          *(client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=10) for _ in range(5))
      )
      assert len({a.choices[0].message.content for a in answers}) == 1
      text = ""
      async for chunk in await client.chat.completions.create(
          model="dummy", messages=HELLO, max_tokens=10, stream=True
      ):
        text += chunk.choices[0].delta.content or ""
      assert text == answers[0].choices[0].message.content

  asyncio.run(ask())


def test_openai_streams_tools(node: NodeProcess) -> None:
  client = OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=60)
  tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
  with client.chat.completions.stream(
      model="dummy", messages=WEATHER, tools=tools, tool_choice="required", max_tokens=200
  ) as stream:
    call = stream.get_final_completion().choices[0].message.tool_calls
  assert call and call[0].function.name == "get_weather" and "city" in json.loads(call[0].function.arguments)


@pytest.mark.clients
def test_anthropic(node: NodeProcess) -> None:
  anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: pip install -e '.[clients]'")
  client = anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0, timeout=60)
  answer = client.messages.create(model="dummy", max_tokens=12, system="be brief", messages=HELLO)
  assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 12
  with client.messages.stream(model="dummy", max_tokens=12, system="be brief", messages=HELLO) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
  assert text == answer.content[0].text == final.content[0].text and final.stop_reason == "max_tokens"
  tools = [{"name": "get_weather", "description": "weather", "input_schema": PARAMETERS}]
  used = client.messages.create(
      model="dummy", max_tokens=200, messages=WEATHER, tools=tools, tool_choice={"type": "tool", "name": "get_weather"}
  )
  assert used.stop_reason == "tool_use" and "city" in used.content[-1].input
  with client.messages.stream(
      model="dummy", max_tokens=200, messages=WEATHER, tools=tools, tool_choice={"type": "tool", "name": "get_weather"}
  ) as stream:
    assert stream.get_final_message().content[-1].input == used.content[-1].input
  assert client.messages.count_tokens(model="dummy", messages=HELLO).input_tokens == len("user: hello\n")
  with pytest.raises(anthropic.NotFoundError):
    client.messages.create(model="nosuch", max_tokens=5, messages=HELLO)
  with pytest.raises(anthropic.BadRequestError):
    client.messages.create(model="dummy", max_tokens=0, messages=HELLO)


@pytest.mark.clients
def test_ollama(node: NodeProcess) -> None:
  ollama = pytest.importorskip("ollama", reason="ollama is not installed: pip install -e '.[clients]'")
  client = ollama.Client(host=node.url, timeout=60)
  options = {"num_predict": 10}
  answer = client.chat("dummy", HELLO, options=options)
  assert answer.done and len(answer.message.content) == 10 and answer.eval_count == 10
  parts = list(client.chat("dummy", HELLO, options=options, stream=True))
  assert "".join(p.message.content for p in parts) == answer.message.content and parts[-1].done
  assert client.generate("dummy", "hello", options=options).response == answer.message.content
  schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
  assert "city" in json.loads(client.chat("dummy", HELLO, options={"num_predict": 60}, format=schema).message.content)
  tools = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
  assert client.chat("dummy", WEATHER, tools=tools, options={"num_predict": 30}).done
  assert client.list().models is not None and "completion" in client.show("dummy").capabilities
  with pytest.raises(ollama.ResponseError) as caught:
    client.chat("nosuch", HELLO)
  assert caught.value.status_code == 404


@pytest.mark.slow
@pytest.mark.clients
@pytest.mark.skipif(
    importlib.util.find_spec("langchain_tests") is None or importlib.util.find_spec("langchain_openai") is None,
    reason="langchain-tests or langchain-openai is not installed: pip install -e '.[clients]'"
)
def test_langchains_standard_suite(real: NodeProcess) -> None:
  command = [
      sys.executable, "-m", "pytest", "test/clients/langchain_suite.py", "-q", "-rs", "-o", "addopts=", "-o",
      "asyncio_mode=auto", "-o", "filterwarnings=", "-o", "asyncio_default_fixture_loop_scope=session", "-o",
      "asyncio_default_test_loop_scope=session", "--timeout=200", "-p", "no:cacheprovider"
  ]
  env = os.environ | {"EXO_TEST_URL": real.url, "EXO_TEST_MODEL": "smollm2-135m", "LANGSMITH_TRACING": "false"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
  print(done.stdout[-3000:])
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder with the AI SDK in it."""
  if shutil.which("npm") is None or shutil.which("node") is None:
    pytest.skip("npm or node is not installed")
  if given := os.environ.get("EXO_TEST_NPM"):
    return Path(given)
  folder = tmp_path_factory.mktemp("npm")
  packages = ["ai@^6 || ^7", "@ai-sdk/openai-compatible", "zod"]
  try:
    done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", *packages],
                          cwd=folder,
                          capture_output=True,
                          text=True,
                          timeout=180)
  except subprocess.TimeoutExpired:
    pytest.skip("npm install takes too long")
  if done.returncode:
    pytest.skip(f"npm cannot install the AI SDK: {done.stderr[-300:]}")
  return folder


@pytest.mark.clients
def test_vercels_ai_sdk(node: NodeProcess, npm_packages: Path) -> None:
  script = npm_packages / "ai_sdk.mjs"
  shutil.copy(ROOT / "test" / "clients" / "ai_sdk.mjs", script)
  done = subprocess.run(["node", str(script), node.url, "dummy"],
                        cwd=npm_packages,
                        capture_output=True,
                        text=True,
                        timeout=120)
  assert done.returncode == 0, done.stderr[-3000:]
