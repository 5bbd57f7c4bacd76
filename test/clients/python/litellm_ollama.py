"""litellm by Ollama's routes, both of its providers: answers, a stream, embeddings."""

import litellm
from asked import HELLO, MODEL, TOOLS, URL

for provider in ("ollama", "ollama_chat"):
  answer = litellm.completion(f"{provider}/{MODEL}", HELLO, max_tokens=10, api_base=URL)
  assert answer.choices[0].message.content, provider
  pieces = litellm.completion(f"{provider}/{MODEL}", HELLO, max_tokens=10, stream=True, api_base=URL)
  assert "".join(piece.choices[0].delta.content or "" for piece in pieces), provider
assert litellm.completion(f"ollama_chat/{MODEL}", HELLO, tools=TOOLS, max_tokens=10, api_base=URL).choices
assert litellm.embedding(f"ollama/{MODEL}", ["a text", "another"], api_base=URL).data[1]["embedding"]
