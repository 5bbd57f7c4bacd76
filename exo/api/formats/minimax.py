"""MiniMax M2; M1 writes JSON, as Hunyuan does."""

from __future__ import annotations

from exo.api.formats.invokes import invokes

MINIMAX_M2 = invokes("minimax-m2", "minimax:tool_call", "")
