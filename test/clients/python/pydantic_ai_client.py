"""pydantic-ai by OpenAI's chat: an answer, a stream, and an answer of a type."""

from asked import MODEL, URL
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
  name: str
  is_large: bool


chat = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))
assert Agent(chat).run_sync("hello", model_settings={"max_tokens": 10}).output
streamed = Agent(chat).run_stream_sync("hello", model_settings={"max_tokens": 10})
assert "".join(streamed.stream_text(delta=True))
found = Agent(chat, output_type=NativeOutput(City)).run_sync("Paris", model_settings={"max_tokens": 300}).output
assert isinstance(found, City)
