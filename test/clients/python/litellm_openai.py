"""litellm by OpenAI's routes: a stream, a call of a function, embeddings."""

import litellm
from asked import HELLO, MODEL, TOOLS, URL, check_calls

at = {"api_base": f"{URL}/v1", "api_key": "none"}
pieces = litellm.completion(f"openai/{MODEL}", HELLO, max_tokens=10, stream=True, **at)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces)
answer = litellm.completion(f"openai/{MODEL}", HELLO, tools=TOOLS, tool_choice="required", max_tokens=200, **at)
check_calls((call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls)
assert litellm.embedding(f"openai/{MODEL}", ["a text"], **at).data[0]["embedding"]
assert litellm.text_completion(model=f"openai/{MODEL}", prompt="hello", max_tokens=5, **at).choices[0].text
