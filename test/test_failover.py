"""Real rings that lose nodes in the middle of a stream. The numbers are those of the fault matrix."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from test.support.nodes import NodeProcess, ring, wait_until
from test.support.streams import stream

QUESTION = "Write one sentence about the sea."
SAMPLED = {"temperature": 1.0, "seed": 11}
LONG = "Summarize this. " + "The sea was calm and the wind came from the west. " * 60


@pytest.fixture(scope="module")
def unbroken(model_home: Path) -> dict[str, str]:
  """What a ring that loses nobody says."""
  with ring(model_home, 1) as (node, ):
    return {
        "greedy": stream(node, QUESTION, max_tokens=60).text,
        "sampled": stream(node, QUESTION, max_tokens=60, **SAMPLED).text, "long": stream(node, LONG, max_tokens=12).text
    }


def stages(node: NodeProcess) -> list[str]:
  plans = node.get("/v1/topology")[1]["plans"]
  return [stage["node_id"] for stage in plans[-1]["stages"]] if plans else []


@pytest.mark.parametrize(("how", "fields"), [("greedy", {}), ("sampled", SAMPLED)])
@pytest.mark.parametrize("place", [0, 1])
def test_fault_2_a_stage_killed_in_decode(
    model_home: Path, unbroken: dict[str, str], how: str, fields: dict[str, float], place: int
) -> None:
  """kill -9 of the first or the last stage: the stream goes on with the same tokens, and says so."""
  with ring(model_home, 3) as nodes:
    by_id = {node.node_id: node for node in nodes}
    assert nodes[0].chat("hello", max_tokens=1)[0] == 200
    places = stages(nodes[0])
    victim = by_id[places[-1 if place else 0]]
    entry = by_id[places[1]]
    streamed = stream(entry, QUESTION, lambda count: victim.kill() if count == 6 else None, max_tokens=60, **fields)
    assert streamed.error is None and streamed.done and streamed.finish in ("stop", "length")
    assert streamed.text == unbroken[how]
    assert len(streamed.resumptions) == 1 and streamed.resumptions[0].startswith("resumed on 2 nodes after "), streamed
    entry.wait_said("resumed on 2 nodes")
    assert 'exo_failovers_total{outcome="resumed"} 1.0' in entry.metrics()


def test_fault_2_with_drafts(model_home: Path) -> None:
  """The widths of a request's steps are known to its entry node, and replayed."""
  verse = "one sun, two moons, three stars, four winds, five seas, six hills, seven roads. "
  with ring(model_home, 1) as (node, ):
    expected = stream(node, verse * 16, chat=False, max_tokens=90).text
  with ring(model_home, 3, "--speculation", "auto", "--exact", "off") as nodes:
    by_id = {node.node_id: node for node in nodes}
    assert nodes[0].chat("hello", max_tokens=1)[0] == 200
    places = stages(nodes[0])
    victim, entry = by_id[places[0]], by_id[places[1]]
    streamed = stream(
        entry, verse * 16, lambda count: victim.kill() if count == 28 else None, chat=False, max_tokens=90
    )
    assert streamed.text == expected and streamed.resumptions and streamed.done
    entry.wait_said("of their steps with drafts")
    replayed = re.search(r"computing (\d+) tokens again, (\d+) of their steps with drafts", entry.log)
    assert replayed is not None and int(replayed[1]) >= 28 and int(replayed[2]) >= 1, entry.log


def test_fault_1_a_stage_killed_in_prefill(model_home: Path, unbroken: dict[str, str]) -> None:
  with ring(model_home, 2, env={"DEBUG": "3"}) as nodes:
    assert nodes[0].chat("hello", max_tokens=1)[0] == 200
    entry, victim = nodes if stages(nodes[0])[0] == nodes[1].node_id else nodes[::-1]
    chunk = re.compile(r"1 entries, \d{2,} tokens")
    before = len(chunk.findall(victim.log))
    with ThreadPoolExecutor(1) as pool:
      streaming = pool.submit(stream, entry, LONG, max_tokens=12)
      wait_until(lambda: len(chunk.findall(victim.log)) > before, 10, "the first part of the prompt")
      victim.kill()
      streamed = streaming.result(60)
    assert streamed.text == unbroken["long"] and streamed.done and streamed.error is None
    assert streamed.resumptions, "the kill came too late to be in the prefill"
    assert "resumed on 1 node after" in streamed.resumptions[0]
