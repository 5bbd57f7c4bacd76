"""Every parser that faces a stranger, as a function of bytes that may only succeed or raise exo's own errors.

`scripts/fuzz.py` drives them by coverage for as long as it is told, `test/test_fuzz.py` with a bounded number of
mutations. Inputs that once broke something lie in `test/data/fuzz/<target>` and are tried first, for ever.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from exo.api import (
    chat_request,
    conversations,
    documents,
    downloads,
    infill,
    messages_request,
    ollama_embed,
    ollama_models,
    ollama_request,
    ranking,
    responses_request,
    schema,
    server_tools,
    text_request,
)
from exo.api.json_depth import deeper_than
from exo.errors import ExoError
from exo.inference.chat_template import CHATML, render_chat
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.model_config import ModelConfig
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.inference.weights.gguf_header import parse_gguf_header
from exo.inference.weights.safetensors_checkpoint import parse_safetensors_header
from exo.networking import messages as m
from exo.networking.address_rule import AddressRule
from exo.networking.cluster_key import ClusterKeyring
from exo.networking.grpc.codec import decode, encode
from exo.networking.grpc.peer_codec import hello_in, hello_out
from exo.networking.grpc.wire import envelope_bytes, envelope_items
from exo.networking.join_token import JoinToken, decode_token, encode_token
from exo.networking.manual.network_config import read_network_config
from exo.networking.peer_messages import Heartbeat, Hello, WorkerBeat
from exo.networking.udp.beacon import decode_beacon, encode_beacon
from exo.networking.udp.guard import DatagramGuard
from exo.networking.udp.seal import DatagramSeal
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.ring_plan import RingPlan, Stage
from test.support.chat_shapes import SHAPES, read
from test.support.workers import dummy_offers

CORPUS = Path(__file__).resolve().parents[1] / "data" / "fuzz"
KEY = "a key of the fuzzer, which is long enough"
HELLO = Hello("node", 7, 50000, DeviceCapabilities("Model", "Chip", 1000), dummy_offers(1000), "1", ("mine", ))


@dataclass(frozen=True)
class Target:
  """`run` raises nothing but what is a finding; `seeds` are inputs that are right."""
  name: str
  run: Callable[[bytes], object]
  seeds: tuple[bytes, ...]
  max_bytes: int = 4096
  slow: bool = False  # a thousandth of a second and more each

  @property
  def corpus(self) -> list[bytes]:
    folder = CORPUS / self.name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _expecting(*errors: type[Exception]) -> Any:
  return contextlib.suppress(ExoError, *errors)


# UDP


class _Clock:
  now = 1000.0

  def __call__(self) -> float:
    self.now += 0.1  # no rate limit in the way
    return self.now


_GUARD = DatagramGuard(None, AddressRule(restricted=True), _Clock())
_SEAL = DatagramSeal(ClusterKeyring((KEY, )), lambda: 1000.0)


def _beacon(data: bytes) -> None:
  with _expecting():
    body = _GUARD.open(data, "127.0.0.1")
    assert body is not None
    beacon = decode_beacon(body)
    assert 1024 <= beacon.grpc_port <= 65535 and 1 <= len(beacon.node_id) <= 128


def _sealed_beacon(data: bytes) -> None:
  with _expecting():
    body = _SEAL.open(data)
    assert len(body) <= len(data)


def _beacon_bytes() -> bytes:
  return encode_beacon(HELLO, interface_name="eth0", interface_type="ethernet", priority=4, reply=True)


# gRPC


def _envelope(data: bytes) -> None:
  with _expecting():
    for item in envelope_items(data):
      with _expecting():
        if item.WhichOneof("body") == "hello":
          hello_in(item)
        else:
          message, _, _ = decode(item)
          if isinstance(message, m.Frame):
            tokens = sum(entry.n_tokens for entry in message.entries)
            assert len(message.token_ids) == tokens
            assert message.hidden is None or message.hidden.shape[0] == tokens


def _envelopes() -> tuple[bytes, ...]:
  plan = RingPlan("m", "e", (Stage("a", Shard("m", 0, 3, 8), "cpu"), Stage("b", Shard("m", 4, 7, 8), "cpu")))
  sampling = SamplingParams(0.7, 0.9, 40, 0.1, 0.5, -0.5, 1.1, -2**63, {5: -100.0}, 3)
  request = m.Request("r", "a", (1, 2, 3), 50, frozenset({2, 7}), sampling, 2, 0)
  entries = (BatchEntry(1, 4, 2, LogitsOf.NONE), BatchEntry(2, 0, 1, LogitsOf.LAST))
  hidden = np.arange(12, dtype=np.float32).reshape(3, 4)
  frame = m.Frame(
      "p", "e", 9, entries, np.array([5, 6, 7], np.int32), hidden, (m.SequenceOpen(2, request, 3), ), (8, 9), (1.5, )
  )
  said: list[m.Message] = [
      frame, Heartbeat(3, True, True, (WorkerBeat("cpu", 1000, 3, (Shard("m", 0, 3, 8), )), )), m.Submit(m.OpenPlan(plan), request),
      m.OpenPlan(plan, (("b", "10.0.0.2:50"), )), m.ClosePlan("p", m.Failure("peer_lost", "gone", "{}")),
      m.StepResult("p", 9, (m.SequenceToken(1, 7, "stop"), ), (1.0, 2.0)), m.Cancel("p", "r"), m.Done(),
      m.TokenDelivery("p", "r", 1, 4, (), "stop"), m.RequestFailed("p", "r", m.Failure("x", "y"))
  ]  # yapf: disable
  return (envelope_bytes([hello_out(HELLO, "data")]), *(envelope_bytes([encode(message, 1)]) for message in said))


# HTTP


class _Body:
  """As much of a request as reading its body takes."""
  content_type, headers, path, method = "application/json", {"Content-Type": "application/json"}, "/", "POST"

  def __init__(self, data: bytes) -> None:
    self._data = data

  def get(self, key: Any) -> None:
    """Nothing was unpacked."""

  async def read(self) -> bytes:
    return self._data


# every module that describes bodies; a kind that moves to another one is missed in `test_22_line_14_every_kind_of_body_is_fuzzed`
_DESCRIBED = (
    schema, chat_request, conversations, documents, downloads, infill, messages_request, ollama_embed, ollama_models,
    ollama_request, ranking, responses_request, server_tools, text_request
)
KINDS: list[type[Any]] = [
    kind for module in _DESCRIBED for name, kind in sorted(vars(module).items()) if isinstance(kind, type)
    and issubclass(kind, msgspec.Struct) and name.endswith("Request") and kind.__module__ == module.__name__
]


def _http_body(data: bytes) -> None:
  if deeper_than(data, 64):
    return
  for kind in KINDS:
    with _expecting():
      work = schema.read_body(_Body(data), kind)  # type: ignore[arg-type]
      try:
        work.send(None)
      except StopIteration as done:
        body = done.value
      else:
        raise AssertionError("reading a body that is there does not wait")
      for name in ("stops", "include_usage"):
        with _expecting():
          getattr(body, name, None)
      if hasattr(body, "bias"):
        with _expecting():
          assert all(0 <= key < 1000 for key in body.bias(1000))
      for message in getattr(body, "messages", None) or []:
        with _expecting():
          if hasattr(message, "for_template"):
            message.for_template()


def _http_bodies() -> tuple[bytes, ...]:
  chat = {
      "model": "m", "messages": [{"role": "system", "content": "be brief"},
                                 {"role": "user", "content": [{"type": "text", "text": "hé \U0001f600"}]},
                                 {"role": "assistant", "content": None, "tool_calls": [
                                     {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                                 {"role": "tool", "tool_call_id": "c", "content": "42"}],
      "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["a", "b"], "logit_bias": {"5": -100}, "seed": -5, "stream": True,
      "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 3, "max_tokens": 5, "tools": [
          {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
      "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
  }  # yapf: disable
  text = {"prompt": ["a", [1, 2]], "max_tokens": 0, "echo": True, "logprobs": 1, "suffix": None, "stop": "x"}
  other = {"input": ["a", [1]], "encoding_format": "base64", "model": "m", "instructions": "x"}
  return tuple(json.dumps(body).encode() for body in (chat, text, other))


# models


def _safetensors(data: bytes) -> None:
  for size in (len(data), len(data) + 96):
    with _expecting():
      for entry in parse_safetensors_header(memoryview(data), size, "x").values():
        assert entry.start >= 0 and entry.start + entry.n_bytes <= size


def _safetensors_file(header: Any) -> bytes:
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + bytes(64)


def _gguf(data: bytes) -> None:
  for size in (len(data), len(data) + 4096):
    with _expecting():
      for tensor in parse_gguf_header(memoryview(data), size).tensors.values():
        assert tensor.n_bytes > 0 and tensor.start + tensor.n_bytes <= size


def _gguf_file() -> bytes:
  def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value

  keys = [
      text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
      text(b"general.alignment") + struct.pack("<II", 4, 32),
      text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"),
      text(b"tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.5),
      text(b"flag") + struct.pack("<I?", 7, True),
  ]
  tensors = [
      text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 3, 0),
      text(b"output_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, 64),
  ]
  header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
  return header + bytes(-len(header) % 32 + 96)


def _config(data: bytes) -> None:
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    return
  if isinstance(value, dict):
    with _expecting():
      config = ModelConfig.from_hf(value)
      assert 0 < config.n_layers <= 1024 and len(config.rope) == len(config.sliding_window) == config.n_layers


_CONFIGS = (
    {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100,
     "intermediate_size": 96, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "rms_norm_eps": 1e-5},
    {"model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3,
     "vocab_size": 100, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8,
     "query_pre_attn_scalar": 16, "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"},
     "sliding_attention": {"rope_theta": 1e4}}},
    {"model_type": "qwen3_moe", "text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
     "vocab_size": 100, "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [0],
     "head_dim": 16, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}},
    {"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 100,
     "partial_rotary_factor": 0.5, "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
     "original_max_position_embeddings": 4096, "auto_map": {}},
)  # yapf: disable

_MESSAGES = [{"role": "user", "content": "hello {{ 7 * 7 }} <|im_end|>"}, {"role": "assistant", "content": "hi"}]


def _chat_template(data: bytes) -> None:
  with _expecting():
    render_chat(data.decode("utf-8", "replace"), _MESSAGES, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


_TEMPLATES = (
    CHATML,
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m['content']|trim ~ ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "{%- if tools %}{{- tools|tojson(indent=2) }}{%- endif %}{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}"
    "{% set ns.n = ns.n + loop.index0 %}{% if loop.last %}{% continue %}{% endif %}{{ m.content.split('x')[-1] }}"
    "{% endfor %}{{ raise_exception('no') if ns.n > 99 }}{{ strftime_now('%d %b %Y') }}",
    "{% macro f(x, y=2) %}{{ x * y }}{% endmacro %}{{ f(3) }}{% for k, v in messages[0].items() %}{{ k|upper }}{% endfor %}",
    "{% for i in range(5) %}{{ '%s-%d'|format('a', i) }}{{ 'ab'.replace('a', 'c').join(['x', 'y']) }}{% endfor %}",
)  # yapf: disable


def _chat_messages(data: bytes) -> None:
  """Made-up messages through templates that are right."""
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    return
  if isinstance(value, list) and all(isinstance(item, dict) for item in value):
    for template in _TEMPLATES[:3]:
      with _expecting():
        render_chat(template, value, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, tools=value)


# files of the user's own


class _File:
  def __init__(self) -> None:
    self._folder = tempfile.TemporaryDirectory()
    self.path = Path(self._folder.name) / "config.json"


_FILES: list[_File] = []


def _network_config(data: bytes) -> None:
  if not _FILES:
    _FILES.append(_File())
  path = _FILES[0].path
  path.write_bytes(data)
  with _expecting():
    for peer in read_network_config(path):
      assert peer.address and 1 <= peer.port <= 65535


def _join_token(data: bytes) -> None:
  with _expecting():
    decode_token(data.decode("latin-1"))


# answers of models


def _chat_answer(data: bytes) -> None:
  """The first byte says of which format. Pieces make no difference."""
  shape, text = SHAPES[data[0] % len(SHAPES) if data else 0], data[1:].decode("utf-8", "replace")
  assert read(shape.parser(), [text]) == read(shape.parser(),
                                              list(text)) == read(shape.parser(), [text[:99], text[99:]])


def _chat_answers() -> tuple[bytes, ...]:
  return tuple(bytes([i]) + f"{s.thoughts}{s.before}{s.calls}{s.after}".encode() for i, s in enumerate(SHAPES))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("beacon", _beacon, (_beacon_bytes(), b'{"type":"discovery","node_id":"x","grpc_port":50000}'), 1500),
        Target("sealed_beacon", _sealed_beacon, (_SEAL.seal(_beacon_bytes()), ), 1500),
        Target("grpc_envelope", _envelope, _envelopes()),
        Target("http_body", _http_body, _http_bodies()),
        Target("safetensors", _safetensors, (
            _safetensors_file({
                "__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
                "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]}
            }), _safetensors_file({}))),
        Target("gguf", _gguf, (_gguf_file(), )),
        Target("config_json", _config, tuple(json.dumps(config).encode() for config in _CONFIGS)),
        Target("chat_template", _chat_template, tuple(t.encode() for t in _TEMPLATES), 2048, slow=True),
        Target("chat_messages", _chat_messages, (json.dumps(_MESSAGES).encode(), ), slow=True),
        Target("chat_answer", _chat_answer, _chat_answers()),
        Target("network_config", _network_config, (
            b'{"peers": {"a": {"address": "127.0.0.1", "port": 50000}, "b": {"address": "h", "port": 5}}}', )),
        Target("join_token", _join_token, (encode_token(JoinToken(("10.0.0.1:5000", "[fd00::1]:5000"), KEY)).encode(), )),
    )
}  # yapf: disable
__all__ = ["CORPUS", "TARGETS", "Target"]
