"""haystack's generators and embedders of OpenAI's kind."""

from asked import MODEL, URL
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

at = {"api_key": Secret.from_token("none"), "api_base_url": f"{URL}/v1"}
chat = OpenAIChatGenerator(model=MODEL, generation_kwargs={"max_tokens": 10}, **at)
assert chat.run([ChatMessage.from_user("hello")])["replies"][0].text
assert OpenAITextEmbedder(model=MODEL, **at).run("a text")["embedding"]
