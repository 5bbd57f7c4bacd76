"""What all these clients are told and ask: the server and the model by the environment, a greeting, a function."""

import json
import os
from collections.abc import Iterable

URL, MODEL = os.environ["EXO_TEST_URL"], os.environ["EXO_TEST_MODEL"]
HELLO = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{
    "type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": PARAMETERS}
}]


def check_calls(calls: Iterable[tuple[str, str]]) -> None:
  """There are some, and each is one of the function with arguments that its schema allows."""
  found = list(calls)
  assert found and all(name == "get_weather" and "city" in json.loads(arguments) for name, arguments in found), found
