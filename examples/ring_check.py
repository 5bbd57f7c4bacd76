"""Is this one ring? Asks each node who it sees, then asks each the same question: python examples/ring_check.py URL URL …

Needs nothing but Python. EXO_API_KEY and EXO_MODEL are read from the environment.
"""

import json
import os
import sys
import urllib.error
import urllib.request


def call(url, body=None):
  headers = {"Content-Type": "application/json"}
  if os.environ.get("EXO_API_KEY"):
    headers["Authorization"] = f"Bearer {os.environ['EXO_API_KEY']}"
  data = None if body is None else json.dumps(body).encode()
  try:
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=600) as response:
      return json.load(response)
  except urllib.error.HTTPError as error:
    sys.exit(f"{url}: {json.load(error)['error']['message']}")
  except OSError as error:
    sys.exit(f"{url} cannot be reached ({error}): is exo running there with --chatgpt-api-host 0.0.0.0?")


urls = sys.argv[1:] or ["http://localhost:52415"]
seen = {}
for url in urls:
  ring = call(f"{url}/v1/topology")
  seen[url] = set(ring["nodes"])
  print(f"{url} is {ring['node_id']} and sees {', '.join(sorted(ring['nodes']))}")
if len(set(map(frozenset, seen.values()))) > 1 or len(next(iter(seen.values()))) < len(urls):
  sys.exit("these nodes are not one ring: see docs/operating.md, 'The machines do not find each other'")

question = {
    "messages": [{"role": "user", "content": "What is the sea?"}], "max_tokens": 24, "temperature": 0,
    "model": os.environ.get("EXO_MODEL", "smollm2-135m")
}
answers = {call(f"{url}/v1/chat/completions", question)["choices"][0]["message"]["content"] for url in urls}
for plan in call(f"{urls[0]}/v1/topology")["plans"]:
  stages = ", ".join(f"{s['node_id']} {s['start_layer']}-{s['end_layer']}" for s in plan["stages"])
  print(f"{plan['model']} runs over {stages}")
print(f"every node answers: {answers.pop()!r}" if len(answers) == 1 else f"the answers differ: {answers}")
