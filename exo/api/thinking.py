"""The tags between which a reasoning model thinks, found by its chat template and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

from exo.inference.tokenizer import Tokenizer


@dataclass(frozen=True)
class Thinking:
  """`open_already`: the prompt ends after the first tag. `wrap` may stand around the content that follows."""
  begin: str
  end: str
  open_already: bool = False
  wrap: tuple[str, str] = ("", "")


# the first whose end the model knows
_KNOWN = (
    Thinking("<think>", "</think>"),
    Thinking("<|channel>thought", "<channel|>"),  # Gemma 4
    Thinking("[THINK]", "[/THINK]"),  # Mistral
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<mm:think>", "</mm:think>"),  # MiniMax M3
    Thinking("<think:opensource>", "</think:opensource>"),  # Hunyuan's Hy3
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Thinking("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    Thinking("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)
# around the content of some: Granite 3.3 and Ernie, Hunyuan, Kimi K3
_WRAPS = (
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
)
# templates that put a tag together from parts show it in no place
_PARTS = {
    "</think:opensource>": ("</think{}>", ":opensource"),
    "<|close|>think<|sep|>": ("<|close|>", "'think'"),
    "<|close|>response<|sep|>": ("<|close|>", "'response'"),
}


def thinking_of(tokenizer: Tokenizer, rendered: str) -> Thinking | None:
  """Of a model whose prompt was rendered so; None for one that does not think, or whose format has thoughts of its own."""
  template = tokenizer.chat_template or ""
  for tags in _KNOWN:
    parts = _PARTS.get(tags.end, (tags.end, ))
    if all(part in template for part in parts) or tokenizer.id_of(tags.end) is not None:
      return replace(tags, open_already=rendered.rstrip().endswith(tags.begin), wrap=_wrap(template))
  return None


def _wrap(template: str) -> tuple[str, str]:
  for begin, end in _WRAPS:
    if all(part in template for part in _PARTS.get(end, (begin, end))):
      return begin, end
  return "", ""
