"""What routes are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from exo.orchestration.node import Node

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NodeHandler = Callable[[web.Request, Node], Awaitable[web.StreamResponse]]
WithNode = Callable[[NodeHandler], Handler]  # gives a handler its node
