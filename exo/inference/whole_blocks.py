"""Rounding up to whole blocks: of tokens in a cache's pages, of a matrix's rows in panels, of weights that share a scale."""

from __future__ import annotations


def blocks_for(count: int, block: int) -> int:
  """How many blocks of `block` hold `count`."""
  return -(-count // block)


def whole_blocks(count: int, block: int) -> int:
  """`count`, rounded up to whole blocks."""
  return blocks_for(count, block) * block
