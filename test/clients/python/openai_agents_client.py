"""openai-agents by the Responses API: a tool, and a second turn that goes on by `previous_response_id`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agents import (
    Agent,
    ModelBehaviorError,
    ModelSettings,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from asked import MODEL, URL
from openai import AsyncOpenAI

set_tracing_disabled(True)
called = []
T = TypeVar("T")


@function_tool
def get_weather(city: str) -> str:
  """The weather in a city."""
  called.append(city)
  return "Sunny."


async def events(agent: Agent) -> list[object]:
  return [event async for event in Runner.run_streamed(agent, "hello").stream_events()]


async def ended(run: Callable[[], Awaitable[T]]) -> T:
  """The client takes an answer that was cut for an error, and noise may find no end: then it is asked again."""
  for _ in range(10):
    try:
      return await run()
    except ModelBehaviorError as error:
      if "max_output_tokens" not in str(error):
        raise
  raise AssertionError("ten answers were cut")


async def main() -> None:
  model = OpenAIResponsesModel(MODEL, AsyncOpenAI(base_url=f"{URL}/v1", api_key="none"))
  agent = Agent("a", "Be brief.", model=model)
  first = await ended(lambda: Runner.run(agent, "hello", run_config=RunConfig()))
  assert first.final_output and first.last_response_id
  second = await ended(lambda: Runner.run(agent, "and now?", previous_response_id=first.last_response_id))
  assert second.final_output
  assert await ended(lambda: events(agent))
  settings = ModelSettings(tool_choice="required")
  with_tool = Agent("b", "Use the tool.", model=model, tools=[get_weather], model_settings=settings)
  await ended(lambda: Runner.run(with_tool, "What is the weather in Paris?", max_turns=4))
  assert called


asyncio.run(main())
