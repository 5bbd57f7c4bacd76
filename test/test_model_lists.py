"""What lists say of models: where each could run and what it lacks, by what engines can and hold; and by which names."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exo.api.tool_formats import tool_format
from exo.download.manifest import Manifest, RepoFile
from exo.download.model_library import MANIFEST
from exo.download.model_state import model_state
from exo.download.model_store import DUMMY_MODEL, ModelStore
from exo.errors import ProtocolError
from exo.inference.engines import offered_engines
from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire
from exo.inference.weights.checkpoint import open_checkpoint
from exo.inference.weights.contradictions import check_consistent
from exo.model_file import ModelFile
from exo.models import CARDS, card_of
from exo.networking.model_messages import ListModels, ModelsListed
from exo.orchestration.held_model import HeldFile, HeldModel, are_whole, from_json, to_json
from exo.orchestration.model_fit import RingWorker, fit_model
from exo.orchestration.model_profile import ModelProfile, capabilities_of, profile_of_card, profile_of_checkpoint
from exo.orchestration.ring_models import RingModels
from exo.topology.fit import Fit, Where, fit
from exo.topology.model_size import MIN_KV_TOKENS, ModelSize
from exo.topology.placements import load_strategy
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState
from test.support.families import Form, families_folder
from test.support.hub import Hub, hub
from test.support.local_rings import local_ring, run
from test.support.nodes import ROOT, NodeProcess, exo, free_port, ring, wait_until

MB = 2**20
PLACE = load_strategy("memory")
# what is published under a name, and a tiny model that is published in the same form
ALIKE = {
    "gpt-oss-20b": "gpt_oss_mxfp4", "smollm3-3b": "smollm3", "qwen-3-30b-a3b": "qwen3_moe", "phi-4": "phi4",
    "deepseek-coder-v2-lite": "deepseek_v2", "llama-4-scout": "llama4"
}


def worker(node_id: str, mb: int, *offers: EngineOffer, cannot: str | None = None) -> RingWorker:
  return RingWorker(WorkerState(node_id, "", 1, mb * MB, mb * MB, cannot=cannot), offers)


def profile(name: str) -> ModelProfile:
  card = card_of(name)
  assert card is not None
  return profile_of_card(card)


# the decision


def small_fit(here: int, *others: int, layers: int = 8, layer_mb: int = 100) -> Fit:
  """For a model of `layers` equal layers, on a node of so many MB among others."""
  size = ModelSize((layer_mb * MB, ) * layers, 40 * MB, 60 * MB, 4096, False, 10**9)
  workers = [WorkerState(f"n{i}", "", 1, mb * MB, mb * MB) for i, mb in enumerate((here, *others))]
  return fit(ModelNeeds("m", size), RingState(tuple(workers)), "n0", PLACE)


def test_line_3_here_with_others_or_not_at_all() -> None:
  needed = 8 * 100 + 40 + 60 + 8 * 4096 * MIN_KV_TOKENS // MB
  assert small_fit(needed).where is Where.HERE and small_fit(needed).max_context == MIN_KV_TOKENS
  assert small_fit(
      needed + 32
  ).max_context == 2 * MIN_KV_TOKENS  # so many bytes more are caches for as many tokens again
  alone = small_fit(needed - 1)
  assert (alone.where, alone.missing_mb) == (Where.NOWHERE, 1) and "1 MB are missing" in alone.reason
  together = small_fit(needed - 300, 400)
  assert (together.where, together.missing_mb) == (Where.RING, 300) and together.max_context >= MIN_KV_TOKENS
  assert str(together) == "with other nodes: 300 MB are missing here"
  # two layers more than one node can take, and 150 MB of it have no place for one whole layer
  assert small_fit(needed - 300, 99).where is Where.NOWHERE


def test_line_3_what_is_missing_is_what_has_to_be_added() -> None:
  """Whatever the sizes: with so many MB more the model runs, with one MB less than that it does not."""
  dice = random.Random(3)
  seen = set()
  for _ in range(200):
    here, others = dice.randrange(50, 2000), [dice.randrange(50, 1000) for _ in range(dice.randrange(3))]
    layers, layer_mb = dice.randrange(1, 20), dice.randrange(5, 150)
    found = small_fit(here, *others, layers=layers, layer_mb=layer_mb)
    seen.add(found.where)
    if found.where is Where.HERE:
      assert not found.missing_mb
    elif found.where is Where.RING or not others:
      assert small_fit(here + found.missing_mb, *others, layers=layers, layer_mb=layer_mb).where is Where.HERE
      nearly = small_fit(here + found.missing_mb - 1, *others, layers=layers, layer_mb=layer_mb)
      assert nearly.where is not Where.HERE
    else:
      more = small_fit(here + found.missing_mb - 1, *others, layers=layers, layer_mb=layer_mb)
      assert more.where is Where.NOWHERE and more.missing_mb >= 1
  assert seen == {Where.HERE, Where.RING, Where.NOWHERE}


def test_line_3_engines_decide_before_memory_and_their_own_weights_count() -> None:
  llama, narrow = profile("llama-3.2-1b"), Repertoire(text_models=("qwen2", ))
  able = EngineOffer("able", "CPU", "", 1, repertoire=Repertoire(text_models=("llama", )))
  none = EngineOffer("none", "CPU", "", 1, repertoire=narrow)
  away = EngineOffer("away", "CPU", "", 1, missing="is not installed (pip install away)")
  here = fit_model("m", llama, [worker("a", 9000, none, able)], "a", PLACE)
  assert here.where is Where.HERE
  nowhere = fit_model("m", llama, [worker("a", 9000, none, away)], "a", PLACE)
  assert nowhere == Fit(Where.NOWHERE, 0, "none has no model of type 'llama'; away is not installed (pip install away)")
  other = fit_model("m", llama, [worker("a", 9000, none), worker("b", 9000, able)], "a", PLACE)
  assert (other.where, other.missing_mb, other.reason) == (Where.RING, 0, "none has no model of type 'llama'")
  gone = fit_model("m", llama, [worker("b", 9000, able)], "a", PLACE)
  assert str(gone) == "with other nodes: no device of a can compute now"
  assert str(fit_model("m", llama, [], "a", PLACE)) == "no: no device of a can compute now"
  uncut = replace(able, repertoire=replace(able.repertoire, uncut=("llama", )))
  halves = [worker("a", 2000, uncut), worker("b", 2000, uncut)]
  assert fit_model("m", llama, halves, "a", PLACE).where is Where.NOWHERE
  assert fit_model("m", llama, [halves[0], worker("b", 9000, uncut)], "a", PLACE).where is Where.RING
  assert fit_model("m", llama, [worker("a", 2000, able), worker("b", 2000, able)], "a", PLACE).where is Where.RING
  wide = replace(able, weights=replace(able.weights, plain=8.0))
  assert fit_model("m", llama, [worker("a", 9000, wide)], "a", PLACE).missing_mb == 493
  assert fit_model(
      "m", ModelProfile(flaw="it is damaged"), [worker("a", 9000, able)], "a", PLACE
  ).reason == "it is damaged"
  assert fit_model("m", ModelProfile(), [worker("a", 9000, able)], "a", PLACE).where is Where.UNKNOWN
  assert fit_model(
      "m", llama, [worker("a", 9000, cannot="no engine is here")], "a", PLACE
  ).reason == "no engine is here"


@pytest.mark.parametrize("name", ALIKE)
def test_line_3_what_is_said_of_a_model_before_it_is_here_is_what_its_files_say(name: str, tmp_path: Path) -> None:
  if families_folder() is None:
    pytest.skip("the checkpoints of families are not here")
  said, offers = profile(name), offered_engines("auto")
  checkpoint = open_checkpoint(Form(ALIKE[name], "hub").lay_out(tmp_path))
  check_consistent(checkpoint)
  found = profile_of_checkpoint(checkpoint, ModelFile())
  assert said.facts is not None and found.facts is not None and not said.flaw
  assert (said.facts.model_type, said.facts.repository_type) == (found.facts.model_type, found.facts.repository_type)
  for offer in offers:
    assert (offer.cannot(said.facts) is None) == (offer.cannot(found.facts) is None), offer.name


def test_line_3_the_registry_knows_every_model_as_far_as_its_memory() -> None:
  for card in CARDS.values():
    known = profile_of_card(card)
    assert known.facts and known.size and known.context and known.packing, card.id
    assert known.size.stage_bytes(0, known.size.n_layers) == card.total_bytes
    assert known.size.kv_bytes_per_token > 0 and known.size.n_layers == card.layers
    assert all(n > 0 for n in known.size.layer_bytes)


def test_line_3_files_that_are_missing_are_missing_and_no_more(tmp_path: Path) -> None:
  store, repo = ModelStore(tmp_path), "org/some"
  card = card_of(repo)
  assert card is not None
  folder = tmp_path / card.source.folder
  manifest = Manifest(repo, repo, "0" * 40, (RepoFile("config.json", 60), RepoFile("model.safetensors", 40)))
  (folder / MANIFEST).parent.mkdir(parents=True)
  (folder / MANIFEST).write_text(manifest.to_json())
  (folder / "config.json").write_bytes(b" " * 60)
  state = model_state(store, store.find(repo))
  assert state.where and state.fraction == 0.6 and not state.is_whole and time.time() - state.changed_at < 60
  dummy = model_state(store, store.find(DUMMY_MODEL))
  assert dummy.is_whole and dummy.fraction == 1 and not dummy.is_ours


# the ring


def part(*spans: tuple[int, int], identity: str = "hash", known: ModelProfile | None = None) -> HeldModel:
  """Of a model of two files."""
  files = (HeldFile("config.json", identity, 10, ((0, 10), )), HeldFile("model.gguf", identity, 1000, spans))
  return HeldModel("m", files, known or ModelProfile())


def test_line_3_parts_on_several_nodes_are_a_model_where_nothing_is_missing() -> None:
  assert part((0, 1000)).is_whole and not part((0, 999)).is_whole and not part().is_whole
  assert are_whole([part((0, 600)), part((500, 1000))]) and are_whole([part((0, 300), (700, 1000)), part((300, 700))])
  assert not are_whole([part((0, 600)), part((601, 1000))])
  assert not are_whole([part((0, 600)), part((500, 1000), identity="another file")])
  assert not are_whole([])


def test_line_3_what_nodes_tell_of_their_models_arrives_or_is_refused() -> None:
  told = [part((0, 1000), known=profile(name)) for name in ("smollm2-135m", "gemma3-4b")]
  assert list(from_json(to_json(told))) == told
  crowd = [replace(told[0], model_id=f"m{i}") for i in range(5000)]
  assert 500 < len(from_json(to_json(crowd))) <= 1024 and len(to_json(crowd)) < 4 * 2**20
  huge = ModelSize((2**60, ), 0, 0, 0)
  many = ModelSize((1, ) * 600, 0, 0, 0)
  for bad in (
      "", "[1]", "{}", '[{"model_id": ""}]', "[" * 10**5, to_json([part(known=ModelProfile(size=huge))]),
      to_json([part(known=ModelProfile(size=many))]), to_json([part(known=ModelProfile(flaw="x" * 3000))]),
      to_json([part((-1, 5))])
  ):
    with pytest.raises(ProtocolError):
      from_json(bad)


def test_line_3_a_node_looks_once_for_all_who_ask_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  looks: list[str] = []
  monkeypatch.setattr(RingModels, "_here", lambda _: looks.append("one") or "[]")

  async def scenario() -> None:
    async with local_ring(tmp_path, 1000) as ((node, ), _):
      answers = await asyncio.gather(*(node.answer("other", ListModels()) for _ in range(20)))
      assert answers == [ModelsListed()] * 20 and looks == ["one"]

  run(scenario)


def test_line_3_a_model_of_another_node_can_be_answered_by_this_one(tmp_path: Path) -> None:
  shelf = tmp_path / "shelf"
  shelf.mkdir()
  (shelf / "theirs").symlink_to(ROOT / "test" / "data" / "goldens" / "llama")
  port = str(free_port(socket.SOCK_DGRAM))
  flags = ("--listen-port", port, "--broadcast-port", port)
  env = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
  nodes = [
      NodeProcess(tmp_path / "a", *flags, "--models-seed-dir", str(shelf), node_id="has", env=env),
      NodeProcess(tmp_path / "b", *flags, node_id="hasnot", env=env)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    has, hasnot = nodes
    hasnot.wait_peers(2)
    entry = wait_until(lambda: listed(hasnot).get("theirs"), 10, "a word of the other node's model")
    assert entry["ready"] and entry["where"]["nodes"] == ["has"] and entry["where"]["here"] == 0
    assert entry["context_length"] == 512 and entry["quantization"] and entry["fit"]["where"] == "here"
    assert hasnot.get("/v1/models/theirs")[1]["id"] == "theirs"
    assert hasnot.chat("t5", model="theirs", max_tokens=2)[0] == 200
    wait_until(lambda: listed(hasnot)["theirs"]["where"]["loaded"], 10, "a word of where it is loaded")
    assert hasnot.get("/v1/models/gpt-oss-20b:safetensors")[1]["fit"]["where"] == "nowhere"
    has.stop()
    wait_until(lambda: hasnot.peers() == {"hasnot"}, 20, "its leaving")
    assert "has" not in json.dumps([e["where"]["nodes"] for e in listed(hasnot, "?all=true").values()])
  finally:
    for node in nodes:
      node.stop()


# a node


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
  tiny = ROOT / "test" / "data" / "goldens" / "llama"
  with hub({"org/tiny": tiny, "org/other": tiny, "org/asked": tiny}) as playing:
    yield playing


@pytest.fixture(scope="module")
def node(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("home")
  shelf = home / "shelf"
  shelf.mkdir()
  (shelf / "Mine.v1").symlink_to(ROOT / "test" / "data" / "goldens" / "llama")
  env = {"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "PIP_NO_INDEX": "1"}
  with ring(home, 1, "--models-seed-dir", str(shelf), "--default-model", "Mine.v1", env=env) as nodes:
    yield nodes[0]


def listed(node: NodeProcess, query: str = "") -> dict[str, Any]:
  status, found = node.get(f"/v1/models{query}")
  assert status == 200 and found["object"] == "list"
  return {entry["id"]: entry for entry in found["data"]}


def test_line_3_three_models_are_told_as_what_they_are(node: NodeProcess) -> None:
  """Of each it was said that it fits, and none ran."""
  offers = offered_engines("auto")
  names = [f"{name}:safetensors" for name in ("gpt-oss-20b", "smollm3-3b", "gemma3-4b")]
  told = {name: node.get(f"/v1/models/{name}")[1] for name in names}
  for name in names:
    known, entry = profile(name), told[name]
    assert known.facts is not None
    if all(offer.cannot(known.facts) is not None for offer in offers):
      assert entry["fit"]["where"] == "nowhere" and entry["max_model_len"] is None and not entry["ready"]
      assert all(offer.name in entry["fit"]["reason"] for offer in offers)
    else:
      assert entry["fit"]["where"] in ("here", "nowhere")
      assert (entry["fit"]["where"] == "here") == (entry["fit"]["missing_mb"] == 0)
  oss = told["gpt-oss-20b:safetensors"]
  assert oss["quantization"] == "MXFP4" and ("missing" in oss["fit"]["reason"]) == bool(oss["fit"]["missing_mb"])
  for name in ("gpt-oss-20b", "smollm3-3b", "gemma3-4b"):
    lines = exo(node.home, "models", name).stdout.splitlines()
    said = {line.split()[0]: line for line in lines if line}[f"{name}:safetensors"]
    assert said.count(f"  {'here' if told[f'{name}:safetensors']['fit']['where'] == 'here' else 'no: '}") == 1


def test_line_3_by_default_what_can_be_answered_now(node: NodeProcess) -> None:
  now = listed(node)
  assert set(now) == {"Mine.v1"}
  mine = now["Mine.v1"]
  assert mine["context_length"] == 512 and mine["max_model_len"] == 512 and mine["capabilities"] == ["completion"]
  assert mine["quantization"] and mine["format"] == "safetensors" and mine["size"] > 1000 and mine["layers"]
  assert mine["where"]["here"] == 1 and mine["where"]["nodes"] == [node.node_id] and mine["ready"]
  assert mine["created"] > 0 and mine["fit"] == {"where": "here", "missing_mb": 0, "reason": None}
  assert node.chat("t5", model="Mine.v1", max_tokens=2)[0] == 200
  mine = listed(node)["Mine.v1"]
  assert mine["where"]["loaded"] == [node.node_id] and mine["max_model_len"] <= 512
  everything = listed(node, "?all=true")
  assert set(CARDS) < set(everything) and everything["llama-3.1-405b"]["fit"]["where"] == "nowhere"
  assert not any(entry["ready"] for name, entry in everything.items() if name != "Mine.v1")
  tags = node.get("/api/tags")[1]["models"]
  assert [tag["name"] for tag in tags] == ["Mine.v1"]
  assert tags[0]["size"] == mine["size"] and tags[0]["details"]["family"] == "llama"


def test_line_3_one_model_by_every_name_that_a_request_may_have(node: NodeProcess) -> None:
  for name in ("Mine.v1", "gpt-4o", "gpt-3.5-turbo", "org/tiny", "org/tiny@main"):
    status, entry = node.get(f"/v1/models/{name}")
    assert status == 200, entry
    status, answer = node.chat("t5", model=name, max_tokens=1)
    assert (status, answer["model"]) == (200, entry["id"]), name
  for name in ("no-such", "mine.v1", "../Mine.v1", "llama-3.2-1b:nonsense"):
    status, answer = node.get(f"/v1/models/{name}")
    assert (status, answer["error"]["code"]) == (404, "model_not_found"), name
    assert node.chat("t5", model=name, max_tokens=1)[0] == 404, name
  assert node.get("/v1/models/llama-3.2-1b:gguf")[1]["quantization"] == "Q4_K_M"
  assert set(listed(node)) == {"Mine.v1", "org/tiny"}  # two names of one


def test_line_3_a_repository_is_looked_up_once_and_no_list_asks_the_hub(node: NodeProcess, server: Hub) -> None:
  entry = node.get("/v1/models/org/other")[1]
  assert entry["size"] > 1000 and entry["format"] == "safetensors" and entry["fit"]["where"] == "unknown"
  asked = len(server.requests)
  assert node.get("/v1/models/org/other")[1] == entry
  listed(node, "?all=true")
  assert len(server.requests) == asked
  with ThreadPoolExecutor(8) as threads:
    assert len({json.dumps(found) for found in threads.map(node.get, ["/v1/models/org/asked"] * 8)}) == 1
  assert sum("org/asked" in path for path in server.requests) == sum("org/other" in path for path in server.requests)
  status, answer = node.get("/v1/models/org/none")
  assert (status,
          answer["error"]["code"]) == (404,
                                       "model_not_found") and "no repository org/none" in answer["error"]["message"]


def test_line_3_the_whole_list_keeps_nobody_waiting(node: NodeProcess) -> None:
  """Asked for ten times at once, it comes, and so does whatever else is asked for meanwhile."""
  with ThreadPoolExecutor(10) as clients:
    lists = [clients.submit(listed, node, "?all=true") for _ in range(10)]
    while not all(one.done() for one in lists):
      assert node.get("/healthcheck", 5)[0] == 200
    assert all(one.result(30).keys() == lists[0].result(30).keys() for one in lists)


def test_line_3_the_pool_and_the_command_line_say_the_same(node: NodeProcess) -> None:
  told = listed(node, "?all=true")
  with urllib.request.urlopen(node.url + "/modelpool", timeout=30) as response:
    lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: {")]
  pool = {name: entry for line in lines for name, entry in json.loads(line).items()}
  shown = {entry["id"]: entry for entry in json.loads(exo(node.home, "models", "--json").stdout)}
  for name in CARDS:
    where = told[name]["fit"]["where"]  # beside it stand MB that are free, which change
    assert (pool[name]["fit"]["where"], pool[name]["fits"]) == (where, where in ("here", "ring")), name
    assert (shown[name]["fit"]["where"], shown[name]["context_length"]) == (where, told[name]["context_length"]), name


def test_line_3_a_model_is_said_to_call_tools_where_the_api_lets_it() -> None:
  for template in (
      None, "", "{{ messages }}", "{% if tools %}{{ tools }}{% endif %}", "<think></think> tools <tool_call>"
  ):
    assert ("tools" in capabilities_of(template)) == (tool_format(template) is not None)
