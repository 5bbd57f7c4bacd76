"""Line 7: where a request says nothing of sampling, the model's own defaults count, on every route and at every node."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.numpy import load_file, save_file

from exo.api.schema import SamplingFields
from exo.errors import ProtocolError
from exo.inference.hf_tokenizer import hf_tokenizer
from exo.inference.said_sampling import said_by_generation_config, said_by_gguf
from exo.inference.sampling import Sampler, SamplingParams
from exo.models import CARDS
from exo.orchestration.held_model import HeldModel, from_json, to_json
from exo.orchestration.model_profile import ModelProfile
from exo.orchestration.model_sampling import SUITS_MOST, model_sampling
from exo.sampling_defaults import SILENT, SamplingDefaults
from test.support.http import call
from test.support.hub import hub
from test.support.nodes import ROOT, NodeProcess, exo, ring
from test.support.shaped_models import Shape, write_shaped
from test.test_model_rings import model_ring

TINY = ROOT / "test" / "data" / "goldens" / "llama"
HOT: dict[str, Any] = {"temperature": 1.9, "top_p": 0.9, "top_k": 40, "min_p": 0.001, "repetition_penalty": 1.3}
ROOM: dict[str, Any] = {"temperature": 1.5, "top_p": 0.6, "top_k": 30, "min_p": 0.02, "repetition_penalty": 1.2}
SMOL = {"temperature": 0.2, "top_p": 0.9}
DEFAULT = SUITS_MOST.said
# what a request may say of each field, other than the model does
OTHERS = {"temperature": 0.9, "top_p": 0.3, "top_k": 2, "min_p": 0.5, "repetition_penalty": 1.0}
FAULTY: dict[str, bytes] = {
    "not-json": b'{"temperature": ',
    "no-object": b"[1, 2]",
    "utf-16": '{"temperature": 1.0}'.encode("utf-16"),
    "deep": b'{"temperature": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"temperature": ' + b"1" * 5000 + b"}",
    "values": b'{"temperature": NaN, "top_p": "0.5", "top_k": -9, "min_p": 1e999, "repetition_penalty": -Infinity}',
}


def put(folder: Path, config: dict[str, Any] | bytes | None = None) -> Path:
  """The golden Llama, less sure of every word than it is, with this beside it."""
  shutil.copytree(TINY, folder)
  tensors = load_file(folder / "model.safetensors")
  tensors["model.norm.weight"] *= 0.2
  save_file(tensors, folder / "model.safetensors")
  if config is not None:
    (folder /
     "generation_config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
  return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("models")
  put(folder / "hot", {"do_sample": True, "eos_token_id": 2, **HOT})
  put(folder / "marked", b"\xef\xbb\xbf" + json.dumps(HOT).encode())
  put(folder / "silent", {"eos_token_id": 2, "temperature": None})
  put(folder / "one", {"top_p": 0.5})
  put(folder / "greedy", {"do_sample": False, "temperature": 1.0})
  put(folder / "narrow", {"temperature": 2.0, "top_k": 1, "top_p": 1.0})
  put(folder / "wide", {"temperature": 2.0, "top_p": 1.0})
  for name, content in FAULTY.items():
    put(folder / name, content)
  said = {
      "temp": 1.5, "top_p": 0.6, "top_k": 30, "min_p": 0.02, "penalty_repeat": 1.2, "penalty_last_n": 64, "mirostat": 2
  }
  write_shaped(folder / "room.gguf", Shape(2, 256, 512, 4, 2, 512), "Q8_0", sampling=said)
  return folder


@pytest.fixture(scope="module")
def node(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("home")
  with ring(home, 1, "--model-dir", str(shelf), "--default-model", "hot", own_sampling=True) as (started, ):
    yield started


def drawn(node: NodeProcess, model: str, **fields: Any) -> str:
  """Of one seed, so that equal parameters draw equal texts."""
  body = {"model": model, "prompt": [5, 6, 7, 9], "max_tokens": 32, "seed": 5, "ignore_eos": True} | fields
  status, answer = node.post("/v1/completions", body)
  assert status == 200, (answer, node.log[-3000:])
  return str(answer["choices"][0]["text"])


def shown(node: NodeProcess, model: str) -> dict[str, float]:
  status, found = node.get(f"/v1/models/{model}")
  assert status == 200, found
  return dict(found["sampling"])


# whose word counts


@pytest.mark.parametrize(("model", "said"), [("hot", HOT), ("marked", HOT), ("room", ROOM), ("silent", DEFAULT),
                                             ("one", DEFAULT | {"top_p": 0.5}),
                                             ("narrow", {"temperature": 2.0, "top_k": 1, "top_p": 1.0})])
def test_line_7_a_request_that_says_nothing_is_drawn_as_the_files_say(
    node: NodeProcess, model: str, said: dict[str, float]
) -> None:
  assert shown(node, model) == said
  text = drawn(node, model)
  assert text == drawn(node, model, **said)
  others = {"temperature": 1.2, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
  assert text != drawn(node, model, **others)


@pytest.mark.parametrize("name", OTHERS)
def test_line_7_what_a_request_says_counts_field_by_field(node: NodeProcess, name: str) -> None:
  own = {name: OTHERS[name]}
  assert drawn(node, "hot", **own) == drawn(node, "hot", **(HOT | own))
  assert any(drawn(node, "hot", **own, seed=seed) != drawn(node, "hot", seed=seed) for seed in range(4))


def test_line_7_temperature_0_is_greedy_and_nothing_else(node: NodeProcess) -> None:
  plain = drawn(node, "silent", temperature=0)
  assert drawn(node, "hot", temperature=0) == plain
  asked = {"temperature": 0, "repetition_penalty": 1.3}
  assert drawn(node, "hot", **
               asked) == drawn(node, "silent", **asked) != plain  # what the request itself says still counts
  assert drawn(node, "greedy") == drawn(node, "greedy", seed=9) == plain
  assert shown(node, "greedy") == DEFAULT | {"temperature": 0.0}


def test_line_7_defaults_that_are_written_anew_count_a_second_later(node: NodeProcess, shelf: Path) -> None:
  file = put(shelf / "changing", {"temperature": 0.4}) / "generation_config.json"
  assert drawn(node, "changing") == drawn(node, "silent", temperature=0.4)
  file.write_text(json.dumps(HOT))
  time.sleep(1.1)
  assert drawn(node, "changing") == drawn(node, "hot") and shown(node, "changing") == HOT
  file.unlink()
  time.sleep(1.1)
  assert drawn(node, "changing") == drawn(node, "silent") and shown(node, "changing") == DEFAULT


@pytest.mark.parametrize(("model", "fields", "exact"), [
    ("hot", {}, False), ("hot", {"seed": 3}, True), ("hot", {"temperature": 0}, True), ("silent", {}, False),
    ("greedy", {}, True), ("greedy", {"temperature": 1}, False)
])  # yapf: disable
def test_line_7_exact_is_what_is_drawn(node: NodeProcess, model: str, fields: dict[str, Any], exact: bool) -> None:
  for path, body in (("/v1/completions", {"prompt": "t5"}),
                     ("/v1/chat/completions", {"messages": [{"role": "user", "content": "t5"}]})):
    asked = json.dumps(body | fields | {"model": model, "max_tokens": 2}).encode()
    status, headers, answer = call(node, "POST", path, asked, {"Content-Type": "application/json"})
    assert status == 200 and answer["exo"]["exact"] is exact and headers["x-exo-exact"] == str(exact).lower(), answer


def test_line_7_the_operators_temperature_counts_before_the_models(
    shelf: Path, tmp_path: Path, node: NodeProcess
) -> None:
  base = ("--model-dir", str(shelf), "--default-temp")
  with ring(tmp_path / "warm", 1, *base, "0.9") as (warm, ):
    assert shown(warm, "hot") == HOT | {"temperature": 0.9}
    assert drawn(warm, "hot") == drawn(node, "hot", temperature=0.9)
    assert drawn(warm, "greedy") == drawn(node, "greedy", temperature=0.9)
    assert drawn(warm, "hot", temperature=1.9) == drawn(node, "hot")
  with ring(tmp_path / "cold", 1, *base, "0") as (cold, ):
    assert shown(cold, "hot") == {"temperature": 0.0}
    assert drawn(cold, "hot") == drawn(node, "hot", temperature=0)
    assert drawn(cold, "hot", temperature=1.9) == drawn(node, "hot")
    assert cold.chat("t5", model="hot", max_tokens=2)[1]["exo"]["exact"] is True


def test_line_7_the_registry_counts_after_the_files(tmp_path: Path) -> None:
  name, repo = "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"
  assert CARDS[name].sampling.said == SMOL
  for known in (name, f"{name}:safetensors", f"{name}#{'a' * 40}", repo, f"{repo}@v1", f"{repo}@{'b' * 40}:Q4_K_M"):
    assert model_sampling(known, SILENT).said == SMOL, known
  assert model_sampling(name, SamplingDefaults(top_p=0.5)).said == {"temperature": 0.2, "top_p": 0.5}
  assert model_sampling("org/nobody", SILENT) == model_sampling("mine", SILENT) == SUITS_MOST
  with hub({repo: put(tmp_path / "repo", {"top_k": 30})}) as server:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "PIP_NO_INDEX": "1"}
    with ring(tmp_path / "home", 1, env=env, own_sampling=True) as (node, ):
      asked = f"{name}:safetensors"
      assert drawn(node, asked) == drawn(node, asked, **SMOL, top_k=30) != drawn(node, asked, **DEFAULT)
      assert shown(node, asked) == SMOL | {"top_k": 30}  # its generation_config.json came with the rest of its head


# where it counts

CHAT = [{"role": "user", "content": "t5 t7"}]
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 12}),
    "completions": ("/v1/completions", {"prompt": "t5 t7", "max_tokens": 12}),
    "responses": ("/v1/responses", {"input": "t5 t7", "max_output_tokens": 12}),
    "messages": ("/v1/messages", {"messages": CHAT, "max_tokens": 12}),
    "ollama chat": ("/api/chat", {"messages": CHAT, "stream": False, "options": {"num_predict": 12}}),
    "ollama generate": ("/api/generate", {"prompt": "t5 t7", "stream": False, "options": {"num_predict": 12}}),
    "ollama raw": ("/api/generate", {"prompt": "t5 t7", "raw": True, "stream": False, "options": {"num_predict": 12}}),
}  # yapf: disable


def text_of(answer: dict[str, Any]) -> str:
  """Of any route's answer."""
  if "choices" in answer:
    choice = answer["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
  if "output" in answer:
    return "".join(part["text"] for item in answer["output"] for part in item["content"])
  if "content" in answer:
    return "".join(block["text"] for block in answer["content"])
  return str(answer["response"] if "response" in answer else answer["message"]["content"])


@pytest.mark.parametrize("route", ROUTES)
def test_line_7_every_route_draws_as_the_model_says(node: NodeProcess, route: str) -> None:
  """Of a model that says to draw from one word, the likeliest text; of one that says to draw from all, another each time."""
  path, body = ROUTES[route]

  def ask(model: str, **fields: Any) -> str:
    options = {"options": body["options"] | fields} if "options" in body else fields
    status, answer = node.post(path, body | options | {"model": model})
    assert status == 200, answer
    return text_of(answer)

  likeliest = ask("wide", temperature=0)
  assert likeliest and {ask("narrow") for _ in range(3)} == {likeliest}
  assert len({ask("wide") for _ in range(6)}) > 1
  assert ask("narrow", top_p=0.5) == likeliest  # which leaves the rest as it is


def test_line_7_responses_and_ollama_tell_what_counted(node: NodeProcess) -> None:
  told = node.post("/v1/responses", {"model": "hot", "input": "t5", "max_output_tokens": 2, "top_p": 0.5})[1]
  assert (told["temperature"], told["top_p"]) == (1.9, 0.5)
  lines = node.post("/api/show", {"model": "hot"})[1]["parameters"].splitlines()
  assert dict(line.split() for line in lines
              ) == {"temperature": "1.9", "top_p": "0.9", "top_k": "40", "min_p": "0.001", "repeat_penalty": "1.3"}


def test_line_7_exo_run_draws_as_the_model_says(shelf: Path, tmp_path: Path, node: NodeProcess) -> None:
  flags = ("--discovery-module", "none", "--prompt", "t5 t7", "--max-tokens", "12")
  done = [exo(tmp_path, "run", str(shelf / name), *flags) for name in ("narrow", "wide", "wide")]
  assert all(one.returncode == 0 for one in done), done[0].stderr
  said = node.chat("t5 t7", model="wide", max_tokens=12, temperature=0)[1]["choices"][0]["message"]["content"]
  assert done[0].stdout == f"{said}\n" and {done[1].stdout, done[2].stdout} != {done[0].stdout}
  listed = exo(tmp_path, "models", "--json", "--model-dir", str(shelf))
  assert {m["id"]: m["sampling"] for m in json.loads(listed.stdout)}["hot"] == HOT


def test_line_7_an_entry_node_outside_the_plan_draws_as_the_model_says(
    shelf: Path, tmp_path: Path, node: NodeProcess
) -> None:
  """It has nothing of the model but its head, which another node of the ring gave it."""
  with model_ring(tmp_path, None, "--default-model", "hot", own_sampling=True) as nodes:
    nodes.start("a", extra=("--model-dir", str(shelf), "--max-memory", "2000"))
    nodes.start("b", extra=("--max-memory", "2000"))
    nodes.start("entry", extra=("--max-memory", "1"))
    entry = nodes.nodes["entry"]
    for model, said in (("hot", HOT), ("room", ROOM), ("silent", DEFAULT)):
      text = drawn(entry, model)
      assert text == drawn(entry, model, **said) == drawn(node, model)
      assert shown(entry, model) == said
      plan = next(p for p in nodes.nodes["a"].get("/v1/topology")[1]["plans"] if p["model"] == model)
      assert {stage["node_id"] for stage in plan["stages"]} == {"a", "b"}, plan


# what cannot be


@pytest.mark.parametrize("model", FAULTY)
def test_line_7_what_cannot_be_is_ignored_with_one_warning(node: NodeProcess, model: str) -> None:
  assert drawn(node, model) == drawn(node, model, **DEFAULT) == drawn(node, "silent")
  assert shown(node, model) == DEFAULT
  warning = f"{model}: of what its files say of sampling, this is ignored: "
  node.wait_said(warning)
  assert node.log.count(warning) == 1 and "Traceback" not in node.log
  if model == "values":
    line = next(line for line in node.log.splitlines() if warning in line)
    assert all(
        said in line for said in ("temperature nan", "top_p '0.5'", "top_k -9", "min_p inf", "repetition_penalty -inf")
    )
  assert hf_tokenizer(node_folder(node, model)).eos_ids == {2}


def node_folder(node: NodeProcess, model: str) -> Path:
  return Path(node.arguments[node.arguments.index("--model-dir") + 1]) / model


@pytest.mark.parametrize(("config", "said", "ignored"), [
    ({}, {}, 0),
    ({"temperature": None, "do_sample": None}, {}, 0),
    ({"temperature": 1, "top_k": 50.0}, {"temperature": 1.0, "top_k": 50}, 0),
    ({"temperature": True, "top_k": 1.5, "top_p": [0.5], "min_p": {}}, {}, 4),
    ({"temperature": 2.1, "top_k": 2**31, "top_p": 1.01, "min_p": -0.1, "repetition_penalty": 0}, {}, 5),
    ({"temperature": 10**400, "top_k": -(10**400), "presence_penalty": 3}, {}, 3),
    ({"temperature": float("nan"), "top_p": float("inf"), "frequency_penalty": "0.1"}, {}, 3),
    ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}, 0),
    ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0}, 0),
    ({"do_sample": True, "top_k": 64, "top_p": 0.95}, {"temperature": 1.0, "top_k": 64, "top_p": 0.95}, 0),
    ({"do_sample": True, "temperature": "hot"}, {"top_p": 1.0}, 1),
    ({"do_sample": "yes", "temperature": 0.5}, {"temperature": 0.5}, 1),
    ({"typical_p": 0.5, "num_beams": 4, "max_length": 10, "max_new_tokens": 3, "penalty_alpha": 0.6}, {}, 0),
])  # yapf: disable
def test_line_7_what_generation_configs_say(config: dict[str, Any], said: dict[str, float], ignored: int) -> None:
  found = said_by_generation_config(config)
  assert found.defaults.said == said and len(found.ignored) == ignored, found
  assert all(len(text) < 100 for text in found.ignored)


@pytest.mark.parametrize(("keys", "said", "ignored"), [
    ({"temp": 0.6000000238418579, "top_p": 0.949999988079071}, {"temperature": 0.6, "top_p": 0.95}, 0),
    ({"top_k": 20, "min_p": 0.0, "penalty_repeat": 1.0499999523162842},
     {"top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}, 0),
    ({"penalty_repeat": 1.5, "penalty_last_n": 0}, {"repetition_penalty": 1.0}, 0),
    ({"penalty_repeat": 1.5, "penalty_last_n": -1}, {"repetition_penalty": 1.5}, 0),
    ({"temp": float("nan"), "top_p": float("-inf"), "top_k": 1 << 40, "min_p": "x", "penalty_repeat": [1.0]}, {}, 5),
    ({"temp": -1.0, "penalty_last_n": "0", "mirostat": 2, "xtc_threshold": 0.1, "sequence": "top_k;temp"}, {}, 1),
])  # yapf: disable
def test_line_7_what_gguf_files_say(keys: dict[str, Any], said: dict[str, float], ignored: int) -> None:
  found = said_by_gguf({f"general.sampling.{key}": value for key, value in keys.items()})
  assert found.defaults.said == said and len(found.ignored) == ignored, found


def test_line_7_other_nodes_tell_nothing_impossible() -> None:
  def told(defaults: SamplingDefaults) -> str:
    return to_json([HeldModel("m", (), ModelProfile(sampling=defaults))])

  assert from_json(told(SamplingDefaults(**HOT)))[0].profile.sampling == SamplingDefaults(**HOT)
  for bad in ({"temperature": 1e9}, {"top_p": -1}, {"top_k": -5}, {"repetition_penalty": 0}):
    with pytest.raises(ProtocolError):
      from_json(told(SamplingDefaults(**bad)))


def test_line_7_a_temperature_that_cannot_be_divided_by_takes_the_likeliest() -> None:
  import numpy as np
  logits = np.array([0.0, 3.0, 1.0], np.float32)
  assert Sampler(SamplingParams(temperature=1e-310, seed=1)).sample(logits, 0).token_id == 1


def test_line_7_defaults_and_requests_join_field_by_field() -> None:
  defaults = SamplingDefaults(temperature=0.5, top_k=40, repetition_penalty=1.1)

  def joined(default_temp: float | None = None, **fields: Any) -> SamplingParams:
    asked = SamplingFields(**fields)
    return asked.sampling(cast(Any, None), 10, asked.drawn(defaults, default_temp), 1, None, "")

  params = joined(top_p=0.5, top_k=0, frequency_penalty=0.2)
  assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty, params.frequency_penalty) == (
      0.5, 0.5, 0, 1.1, 0.2
  )  # yapf: disable
  assert joined(temperature=0).plain_greedy and joined(0).plain_greedy and joined(0.9, temperature=0).plain_greedy
  assert joined(0, temperature=0.8) == joined(temperature=0.8) and joined(0, temperature=0.8).top_k == 40
  assert joined(0.9) == joined(temperature=0.9) and joined(0.9).repetition_penalty == 1.1
  assert defaults.at(None) == defaults and defaults.at(1.5).said == {
      "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.1
  }
