"""openai-agents by the Responses API: a tool, and a second turn that goes on by `previous_response_id`."""

import asyncio

from agents import Agent, ModelSettings, OpenAIResponsesModel, RunConfig, Runner, function_tool, set_tracing_disabled
from asked import MODEL, URL
from openai import AsyncOpenAI

set_tracing_disabled(True)
called = []


@function_tool
def get_weather(city: str) -> str:
  """The weather in a city."""
  called.append(city)
  return "Sunny."


async def main() -> None:
  model = OpenAIResponsesModel(MODEL, AsyncOpenAI(base_url=f"{URL}/v1", api_key="none"))
  agent = Agent("a", "Be brief.", model=model)
  first = await Runner.run(agent, "hello", run_config=RunConfig())
  assert first.final_output and first.last_response_id
  second = await Runner.run(agent, "and now?", previous_response_id=first.last_response_id)
  assert second.final_output
  streamed = Runner.run_streamed(agent, "hello")
  assert [event async for event in streamed.stream_events()]
  settings = ModelSettings(tool_choice="required")
  with_tool = Agent("b", "Use the tool.", model=model, tools=[get_weather], model_settings=settings)
  await Runner.run(with_tool, "What is the weather in Paris?", max_turns=4)
  assert called


asyncio.run(main())
