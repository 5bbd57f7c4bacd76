"""From one link to a later and better one between the same two nodes, without a message lost or overtaken."""

from __future__ import annotations

from exo.networking.grpc.link import Link

# by then the other side, which hears the same heartbeats, has turned to the later link too
_STILL_BEATS = 4


def turn_to_later(links: list[Link], beating: Link) -> None:
  """Called at each heartbeat that comes over one of the `links` to a node; the first of them is the one to send over.

  A later link that the same side has dialed takes its place as soon as everything sent over the earlier one has arrived.
  Whoever dialed retires the earlier one when nothing has moved on it for a while, and the other side, which hears of that, ends
  it. The peer must have said over the earlier link
  that the later one is its own: without a cluster key anybody could call himself by its name.
  """
  if beating not in links:
    return
  later = [
      link for link in links
      if link.number > beating.number and link.dialed == beating.dialed and link.key in beating.confirmed
  ]
  if not later:
    return
  if links[0] is beating and beating.all_arrived:
    links.remove(beating)
    links.append(beating)
  elif links[0] is not beating and beating.dialed and beating.still_beats >= _STILL_BEATS:
    beating.retired = True
