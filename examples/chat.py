"""A chat with OpenAI's own Python client, streamed: pip install openai; python examples/chat.py "What is the sea?"

EXO_URL (default http://localhost:52415), EXO_MODEL (default smollm2-135m) and EXO_API_KEY are read from the environment.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("EXO_URL", "http://localhost:52415") + "/v1", api_key=os.environ.get("EXO_API_KEY", "none")
)
question = " ".join(sys.argv[1:]) or "What is the sea?"
stream = client.chat.completions.create(
    model=os.environ.get("EXO_MODEL", "smollm2-135m"),
    messages=[{"role": "user", "content": question}],
    max_tokens=60,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
  for choice in chunk.choices:
    print(choice.delta.content or "", end="", flush=True)
  if chunk.usage:
    print(f"\n({chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out)")
