"""Requests made from the API's own OpenAPI document, right ones and wrong ones, and a check of every answer against it."""

from __future__ import annotations

import http.client
import json
import random
import string
import threading
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema

from exo.inference.dummy.engine import FAULTS, SLOW

_JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -2**70, 0.5, -0.0, 1e308, "", "x", "hello", "🙂" * 5, "null",
    "../../etc/passwd", "<|im_end|>", [], [None], [[]], [1, "a"], {}, {"a": 1}, {"type": "object"}, "a" * 3000
]
_TEXTS = [
    "hello", "", "x", "語🙂", "user", "assistant", "system", "tool", "text", "function", "auto", "required", "dummy",
    "get_weather", "json_object", "json", "input_text", "message", "tool_use", "tool_result", "\\", '"', "\n", "{"
]
_FAULTS = (*FAULTS, SLOW)
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class Fuzzer:
  """One stream of requests, the same for the same seed."""
  def __init__(self, document: dict[str, Any], seed: int) -> None:
    self._document, self._random = document, random.Random(seed)
    self._operations = [
        (method, path, operation) for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if not path.endswith(("/stream", "/quit", "/modelpool")) and method in ("get", "post") and path != "/download"
    ]

  def next(self) -> tuple[str, str, dict[str, Any], bytes | None, dict[str, str]]:
    """(method, path, operation, body, headers)."""
    r = self._random
    with_body = [o for o in self._operations if "requestBody" in o[2]]
    method, path, operation = r.choice(with_body if r.random() < 0.9 else self._operations)
    for parameter in operation.get("parameters", ()):
      value = r.choice([r.choice(_TEXTS), "".join(r.choices(string.printable, k=r.randrange(1, 30)))]) or "x"
      path = path.replace(f"{{{parameter['name']}}}", urllib.parse.quote(value, safe=""))
    if "requestBody" not in operation:
      return method.upper(), path, operation, b"{}" if method == "post" else None, {"Content-Type": "application/json"}
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = self._value(schema, 0)
    if r.random() < 0.5:
      body = self._mutated(body)
    if isinstance(body, dict):
      self._limit(body)
    data = json.dumps(_harmless(body)).encode()
    if r.random() < 0.02:
      data = data[:r.randrange(len(data))] + bytes(r.choices(range(256), k=r.randrange(4)))
    kind = "application/json" if r.random() < 0.98 else r.choice(["text/plain", "application/xml", ""])
    return method.upper(), path, operation, data, {"Content-Type": kind}

  def _limit(self, body: dict[str, Any]) -> None:
    """Short answers: what is tested are requests."""
    given = [key for key in _LIMITS if key in body]
    for key in given:
      if isinstance(body[key], int) and not isinstance(body[key], bool) and body[key] > 12:
        body[key] = 12
    if not any(isinstance(body[key], int) for key in given):
      body.setdefault(self._random.choice(_LIMITS[:2]), 6)
      body.setdefault("max_output_tokens", 6)
    if isinstance(options := body.setdefault("options", {}), dict):
      options.setdefault("num_predict", 6)
    if body.get("model") not in (None, "dummy") and self._random.random() < 0.8:
      body["model"] = "dummy"
    if body.get("response_format") or body.get("tools"):
      body["max_tokens"] = body.get("max_tokens", 12) if isinstance(body.get("max_tokens"), int) else 12

  def _value(self, schema: Any, depth: int) -> Any:
    r = self._random
    if not isinstance(schema, dict) or not schema:
      return r.choice(_JUNK)
    if "$ref" in schema:
      return self._value(self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], depth)
    if "anyOf" in schema:
      return self._value(r.choice(schema["anyOf"]), depth)
    if "enum" in schema:
      return r.choice(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
      kind = r.choice(kind)
    match kind:
      case "object":
        return self._object(schema, depth)
      case "array":
        low = schema.get("minItems", 0)
        items = schema.get("items", schema.get("prefixItems", [{}])[0] if "prefixItems" in schema else {})
        return [self._value(items, depth + 1) for _ in range(low + r.choice([0, 0, 1, 1, 2, 3]) * (depth < 6))]
      case "integer":
        return r.choice([schema.get("minimum", -3), schema.get("maximum", 9), r.randrange(-2, 12), 1, 2])
      case "number":
        return r.choice([schema.get("minimum", -1.5), schema.get("maximum", 1.5), r.random(), 1])
      case "boolean":
        return r.random() < 0.5
      case "string":
        return r.choice(["f", "get_weather"]) if "pattern" in schema else r.choice(_TEXTS)
    return None

  def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
    r, out = self._random, dict[str, Any]()
    for name, sub in schema.get("properties", {}).items():
      if name in schema.get("required", ()) or (depth < 6 and r.random() < 0.25):
        out[name] = self._value(sub, depth + 1)
    if not schema.get("properties"):
      extra = schema.get("additionalProperties", {})
      out |= {
          r.choice(_TEXTS): self._value(extra if isinstance(extra, dict) else {}, depth + 1)
          for _ in range(r.randrange(3))
      }
    return out

  def _mutated(self, value: Any) -> Any:
    """One place of it changed."""
    r = self._random
    if isinstance(value, dict) and value and r.random() < 0.8:
      key = r.choice(list(value))
      match r.randrange(4):
        case 0:
          return {k: v for k, v in value.items() if k != key}
        case 1:
          return value | {"unknown": r.choice(_JUNK)}
      return value | {key: self._mutated(value[key])}
    if isinstance(value, list) and value and r.random() < 0.8:
      i = r.randrange(len(value))
      return [*value[:i], self._mutated(value[i]), *value[i + 1:]]
    return r.choice(_JUNK)


def _harmless(value: Any, is_prompt: bool = False) -> Any:
  """Without the small token ids that make the dummy engine fail on purpose."""
  if isinstance(value, dict):
    return {k: _harmless(v, k in ("prompt", "input")) for k, v in value.items()}
  if isinstance(value, list):
    return [_harmless(v, is_prompt) for v in value]
  return 9 if is_prompt and isinstance(value, int) and value in _FAULTS else value


class Campaign:
  """Sends requests from several clients at once and keeps what went wrong."""
  def __init__(self, url: str, document: dict[str, Any], key: str | None = None) -> None:
    self._address, self._document = urllib.parse.urlsplit(url), document
    self.statuses: Counter[int] = Counter()
    self.wrong: list[str] = []
    self._lock = threading.Lock()

  def run(self, count: int, clients: int = 8, seed: int = 0) -> None:
    with ThreadPoolExecutor(clients) as pool:
      list(pool.map(lambda i: self._client(seed + i, count // clients), range(clients)))

  def _client(self, seed: int, count: int) -> None:
    fuzzer = Fuzzer(self._document, seed)
    connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=60)
    for _ in range(count):
      method, path, operation, body, headers = fuzzer.next()
      try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        problem = self._problem(operation, response, data)
        status = response.status
      except (OSError, http.client.HTTPException) as error:
        connection.close()
        problem, status = f"no answer: {type(error).__name__} {error}", 0
      with self._lock:
        self.statuses[status] += 1
        if problem:
          self.wrong.append(f"{method} {path} {(body or b'')[:2000]!r}: {problem}")
    connection.close()

  def _problem(self, operation: dict[str, Any], response: http.client.HTTPResponse, data: bytes) -> str | None:
    described = operation["responses"].get(str(response.status))
    if described is None:
      return f"status {response.status} is not documented: {data[:300]!r}"
    kind = (response.headers["Content-Type"] or "").partition(";")[0]
    content = described.get("content", {})
    if not content:
      return None
    if kind not in content:
      return f"content type {kind} is not documented for {response.status}"
    if kind == "text/event-stream":
      return None if data.endswith(b"\n\n") else f"a stream was cut: {data[-100:]!r}"
    if kind != "application/json":
      return None
    schema = content[kind]["schema"] | {"components": self._document["components"]}
    try:
      jsonschema.validate(json.loads(data), schema)
    except (ValueError, jsonschema.ValidationError) as error:
      return f"the answer is not what is documented: {str(error)[:300]}"
    return None
