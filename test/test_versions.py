"""Nodes of other versions: refused in words that both sides' users can read, while the ring goes on."""

import asyncio
import uuid

import grpc
import grpc.aio
import pytest

from exo.networking.grpc.peer_codec import OtherProtocolError, hello_in
from exo.networking.grpc.stream import METHOD
from exo.networking.grpc.wire import envelope_items
from exo.networking.mesh import PeerCandidate
from exo.networking.messages import PROTOCOL_VERSION, Cancel, Done
from test.test_mesh import candidate, mesh, run

# what a node of commit c4b2549 writes first on a stream, and what it answers to a later one
OLD_GREETING = (
    b"\n>\x1a<\n\x05older\x10\xd0\xbb\xa5\xf8\xaa3\x1a\x04data \x83\x87\x03*\x0c\n\x02PC\x12\x03CPU\x18\xe8\x07"
    b"2\x05dummy:\x04noneB\x051.0.0P\x02"
)
OLD_WORDS = f"the other node speaks protocol {PROTOCOL_VERSION}, this one 2: update the older one"


def test_line_8_an_older_version_that_comes_is_refused_in_words_on_both_sides_and_disturbs_nobody() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, _):
      b.offer(candidate(a))
      await a_heard.until(lambda: a_heard.events == ["+b"])
      for _ in range(3):  # it comes again and again
        async with grpc.aio.insecure_channel(f"127.0.0.1:{a.hello.port}") as channel:
          call = channel.stream_stream(METHOD)(metadata=(("exo-link", uuid.uuid4().hex), ), timeout=5)
          await call.write(OLD_GREETING)
          (greeting, ) = envelope_items(await call.read())
          assert greeting.hello.node_id == "a" and greeting.hello.protocol == PROTOCOL_VERSION, "which it can tell its user"
          assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
          assert f"older speaks protocol 2 (exo 1.0.0), which cannot be linked with protocol {PROTOCOL_VERSION}" in await call.details(
          )
      assert a.problems() == [f"no link to 127.0.0.1: {await call.details()}"]
      assert a.problems()[0].endswith("update the nodes of protocol 2")
      assert set(a.peers()) == {"b"} and a_heard.events == ["+b"] and await a.call("b", Cancel("p", "r"), 5) == Done()

  run(scenario)


def test_line_8_an_older_version_that_is_dialed_is_quoted() -> None:
  async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
    await context.read()
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, OLD_WORDS)

  async def scenario() -> None:
    server = grpc.aio.server()
    service, _, method = METHOD[1:].partition("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers), ))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with mesh("a") as (a, a_heard), mesh("b") as (b, _):
      a.offer(PeerCandidate("older", "127.0.0.1", port))
      a.offer(candidate(b))
      await a_heard.until(lambda: a_heard.events == ["+b"])
      async with asyncio.timeout(10):
        while not a.problems():  # noqa: ASYNC110 - nothing tells of it
          await asyncio.sleep(0.02)
      assert a.problems() == [f"no link to 127.0.0.1:{port}: it answers: {OLD_WORDS}"]
      assert set(a.peers()) == {"b"} and await a.call("b", Cancel("p", "r"), 5) == Done()
    await server.stop(None)

  run(scenario)


def test_line_8_two_versions_that_meet_both_tell_their_users(monkeypatch: pytest.MonkeyPatch) -> None:
  """Of today's greeting, which either side hears before it is refused: the later node is the one that is dialed here."""
  async def scenario() -> None:
    async with mesh("a") as (a, _), mesh("b") as (b, _):
      monkeypatch.setattr("exo.networking.grpc.acceptor.hello_in", lambda item: hello_in(later(item)))
      monkeypatch.setattr("exo.networking.grpc.grpc_mesh.hello_in", lambda item: hello_in(later(item)))
      a.offer(candidate(b))
      async with asyncio.timeout(10):
        while not (a.problems() and b.problems()):  # noqa: ASYNC110 - nothing tells of it
          await asyncio.sleep(0.02)
      for heard, other in ((a, "b"), (b, "a")):
        assert f"{other} speaks protocol {PROTOCOL_VERSION + 1}" in heard.problems()[0]
        assert heard.problems()[0].endswith(f"update the nodes of protocol {PROTOCOL_VERSION}") and not heard.peers()

  def later(item):
    item.hello.protocol += 1
    return item

  run(scenario)


def test_line_8_whatever_else_a_later_greeting_says_its_protocol_is_what_matters() -> None:
  (old, ) = envelope_items(OLD_GREETING)
  old.hello.protocol, old.hello.node_id, old.hello.stream, old.hello.version = 99, "", "new kind", "9\n0"
  with pytest.raises(
      OtherProtocolError, match=rf"a node speaks protocol 99 \(exo 9 0\).*of protocol {PROTOCOL_VERSION}$"
  ):
    hello_in(old)
