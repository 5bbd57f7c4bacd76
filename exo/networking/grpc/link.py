"""The four streams to one node that one dial opened, and the calls that are under way on them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

from exo.errors import (
    DeadlineError,
    ExoError,
    PeerLostError,
    ProtocolError,
    QueueFullError,
    from_wire,
    in_words,
    to_wire,
)
from exo.log import log
from exo.networking.arrival import ArrivalWatch
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.allowance import MAX_CALLS, Allowance
from exo.networking.grpc.codec import decode, encode
from exo.networking.grpc.peer_codec import STREAM_KINDS
from exo.networking.grpc.stream import EnvelopeStream
from exo.networking.grpc.tensor_codec import WireDtype
from exo.networking.membership import Membership
from exo.networking.mesh import MeshHandler
from exo.networking.messages import Failure, Message
from exo.networking.model_messages import ReadRange
from exo.networking.peer_messages import Heartbeat, Hello, Rumour
from exo.networking.record_messages import ChangeRecord, FindRecord
from exo.tasks import TaskOwner

HEARTBEAT_S = 0.5
HEARTBEAT_TIMEOUT_S = 5.0
_MANY = 1024  # entries: to make objects of more takes so long that somebody must want them

_numbers = itertools.count()
Heard = Callable[["Link", tuple[Rumour, ...]], None]


class Link:
  """Up once all four streams are there; down as soon as one ends or heartbeats stay away.

  Links are numbered as they come. `all_arrived`: the peer had read all of the data stream by its latest heartbeat;
  `still_beats`: for how many heartbeats that was so either way and nothing moved. `confirmed` are the `key`s of all links that
  the peer says it has with this node. `retired`: a better one is used, and nothing is under way on this one. `fault` is what the
  peer sent that no node sends, once that has ended the link.
  """
  def __init__(
      self,
      peer: Hello,
      address: str,
      dialed: bool,
      handler: MeshHandler,
      membership: Membership,
      heard: Heard,
      wire: WireDtype,
      key: str,
      keys_of: Callable[[str], tuple[str, ...]],
  ) -> None:
    self._wire, self.key, self._keys_of = wire, key, keys_of
    self.confirmed: tuple[str, ...] = ()
    self.peer, self.address, self.dialed = peer, address, dialed
    self.interface = ""
    self.rtt_ms = self.codec_ms = 0.0
    self.number, self.priority = next(_numbers), 0
    self.all_arrived, self.still_beats = False, 0
    self._moved = (0, 0)
    self._moved_at = time.monotonic()
    self.bytes_per_s = 0.0  # of data, both ways, between the last two heartbeats
    self._answering = 0
    self._allowance = Allowance(time.perf_counter())
    self.retired = False
    self.fault: ProtocolError | None = None
    self.latest: Heartbeat | None = None
    self._handler, self._membership, self._heard = handler, membership, heard
    self._streams: dict[str, EnvelopeStream] = {}
    self._tasks = TaskOwner(f"link to {peer.node_id}")
    self._calls: dict[int, asyncio.Future[Message]] = {}
    self._next_call = 1
    self._sent_at: dict[int, float] = {}
    self._heard_at = time.monotonic()
    self._arrivals = ArrivalWatch()
    self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

  def attach(self, stream: EnvelopeStream) -> bool:
    """Add a stream; True once all are there."""
    if stream.kind in self._streams:
      raise ProtocolError(f"a second {stream.kind} stream on one link")
    self._streams[stream.kind] = stream
    return len(self._streams) == len(STREAM_KINDS)

  def start(self) -> None:
    """Begin to serve. Call once, when all streams are there."""
    self._heard_at = time.monotonic()
    for stream in self._streams.values():
      self._tasks.spawn(self._serve(stream), stream.kind, self._broken)
    self._tasks.spawn(self._beat(), "heartbeat", self._broken)

  async def _serve(self, stream: EnvelopeStream) -> None:
    reason = await stream.run(self._receive)
    if self.closed.done() and stream.failure is not None:  # whoever closes the link has been given another reason
      log(
          2, "a %s stream of the ended link to %s had failed, too: %s", stream.kind, self.peer.node_id,
          in_words(stream.failure)
      )
    if self.fault is None and isinstance(stream.failure, ProtocolError):  # what no node sends
      self.fault = stream.failure
    self.end(reason)

  def _broken(self, error: BaseException) -> None:
    if self.closed.done():
      log(1, "the ended link to %s failed: %s", self.peer.node_id, in_words(error))
    self.end(f"it failed here: {in_words(error)}")

  def end(self, reason: str) -> None:
    """Let whoever runs the link close it."""
    if not self.closed.done():
      self.closed.set_result(reason)

  async def close(self, reason: str) -> None:
    """End the link; calls under way fail with `PeerLostError`."""
    self.end(reason)
    for future in self._calls.values():
      if not future.done():
        future.set_exception(PeerLostError(f"the link to {self.peer.node_id} broke ({reason})", node=self.peer.node_id))
    self._calls.clear()
    await self._tasks.close()

  async def alive(self, within_s: float) -> bool:
    """Whether the other side is heard again within that time."""
    heard, deadline = self._heard_at, time.monotonic() + within_s
    while not self.closed.done() and time.monotonic() < deadline:
      if self._heard_at != heard:
        return True
      await asyncio.sleep(HEARTBEAT_S / 10)
    return False

  def post(self, message: Message) -> None:
    started = time.perf_counter()
    item = encode(message, wire=self._wire)
    self._note_codec(started)
    self._post("data", item)

  def rehearse(self) -> None:
    self._streams["data"].rehearse()

  def _note_codec(self, started: float) -> None:
    self.codec_ms += 0.05 * ((time.perf_counter() - started) * 1e3 - self.codec_ms)

  def _post(self, kind: str, item: pb.Item) -> None:
    try:
      self._streams[kind].post(item)
    except ProtocolError as error:
      self.end(str(error))

  async def call(self, message: Message, timeout_s: float) -> Message:
    if self.closed.done():  # it is about to be taken out of use: nobody would answer, nor fail what waits
      raise PeerLostError(f"the link to {self.peer.node_id} broke ({self.closed.result()})", node=self.peer.node_id)
    call_id, self._next_call = self._next_call, self._next_call + 1
    future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    self._calls[call_id] = future
    self._post(
        "bulk" if isinstance(message, ReadRange | FindRecord | ChangeRecord) else "control", encode(message, call_id)
    )
    try:
      reply = await asyncio.wait_for(future, timeout_s)
    except TimeoutError:
      raise DeadlineError(f"{self.peer.node_id} has not answered within {timeout_s:g} s") from None
    finally:
      self._calls.pop(call_id, None)
    if isinstance(reply, Failure):
      raise from_wire(reply.kind, reply.message, reply.details_json)
    return reply

  def _receive(self, stream: EnvelopeStream, item: pb.Item) -> None:
    started = time.perf_counter()
    self._allowance.take(stream.kind, started)
    if len(item.token_delivery.prompt_logprobs) > _MANY and not self._handler.awaits(item.token_delivery.request_id):
      return
    message, call_id, is_reply = decode(item)
    if stream.kind == "data":
      self._note_codec(started)
    if isinstance(message, Heartbeat):
      self._on_heartbeat(message)
    elif is_reply:
      future = self._calls.get(call_id)
      if future is not None and not future.done():
        future.set_result(message)
      elif isinstance(message, Failure):  # its caller has ended since, or heard that the link broke
        log(1, "%s failed what nobody waits for any more: %s", self.peer.node_id, message.message)
    elif call_id and self._answering >= MAX_CALLS:
      error = QueueFullError(f"{self._answering} calls wait for their answer already", retry_after_s=1)
      self._post(stream.kind, encode(Failure(*to_wire(error)), call_id, is_reply=True))
    elif call_id:
      self._answering += 1
      answering = self._tasks.spawn(
          self._answer(stream.kind, call_id, message),
          type(message).__name__,
          lambda error: self._post(stream.kind, encode(Failure(*to_wire(error)), call_id, is_reply=True))
      )
      answering.add_done_callback(self._answered)
    else:
      self._allowance.take_aside(message, started)
      self._handler.message(self.peer.node_id, message)

  async def _answer(self, kind: str, call_id: int, message: Message) -> None:
    reply: Message
    try:
      reply = await self._handler.answer(self.peer.node_id, message)
    except ExoError as error:  # whatever else is raised ends the task, which logs it and tells the caller
      reply = Failure(*to_wire(error))
      if self.closed.done():
        log(1, "%s cannot be told any more: %s", self.peer.node_id, in_words(error))
    self._post(kind, encode(reply, call_id, is_reply=True))

  def _answered(self, _: asyncio.Task[None]) -> None:
    self._answering -= 1

  def _on_heartbeat(self, beat: Heartbeat) -> None:
    self._heard_at = time.monotonic()
    if beat.is_answer:
      sent = self._sent_at.pop(beat.number, None)
      if sent is not None:
        self.rtt_ms = (time.monotonic() - sent) * 1e3
    else:
      self.latest = beat
      self.confirmed = beat.link_keys
      self._look_at_traffic(beat)
      if self._arrivals.overdue(beat.data_bytes, self._streams["data"].read_bytes, self._heard_at):
        self.end("what it sends does not arrive, though its heartbeats do")
      if beat.retired:
        self.retired = True
        self.end("a better route is used")
      self._heard(self, beat.rumours)
      self._post("heartbeat", encode(Heartbeat(beat.number, is_answer=True)))

  def _look_at_traffic(self, beat: Heartbeat) -> None:
    """Whether what was sent has arrived, and for how many heartbeats nothing has moved either way."""
    data = self._streams["data"]
    moved = (data.written_bytes, data.read_bytes)
    self.all_arrived = data.idle and beat.data_read_bytes == data.written_bytes
    still = self.all_arrived and beat.data_bytes == data.read_bytes and moved == self._moved
    self.still_beats = self.still_beats + 1 if still and not self._calls and not self._answering else 0
    if self._heard_at > self._moved_at:
      self.bytes_per_s = (sum(moved) - sum(self._moved)) / (self._heard_at - self._moved_at)
    self._moved, self._moved_at = moved, self._heard_at

  async def _beat(self) -> None:
    number = 0
    while True:
      before = time.monotonic()
      self._sent_at[number] = before
      self._sent_at.pop(number - 20, None)
      data = self._streams["data"]
      mine = replace(
          self._handler.heartbeat(),
          number=number,
          rumours=self._membership.beat(),
          data_bytes=data.written_bytes,
          data_read_bytes=data.read_bytes,
          link_keys=self._keys_of(self.peer.node_id),
          retired=self.retired
      )
      self._post("heartbeat", encode(mine))
      number += 1
      await asyncio.sleep(HEARTBEAT_S)
      late_s = time.monotonic() - before - HEARTBEAT_S
      if late_s > HEARTBEAT_S:  # this process stood still: what it has not read yet may lie in its sockets
        self._heard_at += late_s
      if time.monotonic() - self._heard_at > HEARTBEAT_TIMEOUT_S:
        self.end(f"no heartbeat for {HEARTBEAT_TIMEOUT_S:g} s")
        return
