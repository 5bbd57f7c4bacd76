"""litellm by Anthropic's routes: an answer, a stream, a call of a function."""

import litellm
from asked import HELLO, MODEL, TOOLS, URL, check_calls

at = {"api_base": URL, "api_key": "none"}
assert litellm.completion(f"anthropic/{MODEL}", HELLO, max_tokens=10, **at).choices[0].message.content
pieces = litellm.completion(f"anthropic/{MODEL}", HELLO, max_tokens=10, stream=True, **at)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces)
answer = litellm.completion(f"anthropic/{MODEL}", HELLO, tools=TOOLS, tool_choice="required", max_tokens=200, **at)
check_calls((call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls)
