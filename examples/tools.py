"""Tool calling: the model asks for a function, this program runs it, the model answers with what came of it.

pip install openai; python examples/tools.py    (EXO_URL, EXO_MODEL and EXO_API_KEY as in chat.py)
Small models seldom call a tool by themselves: `tool_choice` forces the call, and its arguments always fit the schema.
"""

import json
import os

from openai import OpenAI


def weather(city: str) -> str:
  """Stands for a real service."""
  return json.dumps({"city": city, "degrees_celsius": 21, "sky": "clear"})


TOOLS = [{
    "type": "function", "function": {
        "name": "weather", "description": "The weather in a city now", "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Lisbon", "Oslo", "Nairobi"]}},
            "required": ["city"], "additionalProperties": False
        }
    }
}]

client = OpenAI(
    base_url=os.environ.get("EXO_URL", "http://localhost:52415") + "/v1", api_key=os.environ.get("EXO_API_KEY", "none")
)
model = os.environ.get("EXO_MODEL", "smollm2-135m")
messages = [{"role": "user", "content": "What is the weather in Lisbon?"}]

asked = client.chat.completions.create(
    model=model, messages=messages, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}
)
message = asked.choices[0].message
messages.append(message.model_dump(exclude_none=True))
for call in message.tool_calls or []:
  arguments = json.loads(call.function.arguments)
  print(f"the model calls {call.function.name}({arguments})")
  messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})

answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=60)
print(answer.choices[0].message.content)
