"""Fields that other servers know, that would constrain or change the text, and that are not done here: told, not passed over."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from exo.api.schema import SamplingFields
from exo.errors import InvalidRequestError


def _nothing_but(*values: Any) -> Any:
  """A field that takes only what says nothing; anything else is refused in words, hence not by its type."""
  return Meta(extra_json_schema={"enum": [None, *values], "description": "Not done here; anything else is refused"})


class NotDone(SamplingFields, kw_only=True):
  """Of chat and text completions."""
  best_of: Annotated[Any, _nothing_but(1)] = None
  use_beam_search: Annotated[Any, _nothing_but(False)] = None
  length_penalty: Annotated[Any, _nothing_but(1)] = None
  early_stopping: Annotated[Any, _nothing_but(False)] = None
  bad_words: Annotated[Any, _nothing_but([])] = None
  bad_words_ids: Annotated[Any, _nothing_but([])] = None
  allowed_token_ids: Annotated[Any, _nothing_but([])] = None
  min_tokens: Annotated[Any, _nothing_but(0)] = None
  min_new_tokens: Annotated[Any, _nothing_but(0)] = None
  stop_token_ids: Annotated[Any, _nothing_but([])] = None
  include_stop_str_in_output: Annotated[Any, _nothing_but(False)] = None
  logits_processors: Annotated[Any, _nothing_but([])] = None
  prompt_logprobs: Annotated[Any, _nothing_but(0)] = None
  truncate_prompt_tokens: Annotated[Any, _nothing_but()] = None
  thinking_token_budget: Annotated[Any, _nothing_but()] = None
  modalities: Annotated[Any, _nothing_but(["text"])] = None
  audio: Annotated[Any, _nothing_but()] = None
  web_search_options: Annotated[Any, _nothing_but()] = None
  num_beams: Annotated[Any, _nothing_but(1)] = None
  tfs_z: Annotated[Any, _nothing_but(1)] = None
  top_a: Annotated[Any, _nothing_but(0)] = None
  top_n_sigma: Annotated[Any, _nothing_but(-1, 0)] = None
  dynatemp_range: Annotated[Any, _nothing_but(0)] = None
  smoothing_factor: Annotated[Any, _nothing_but(0)] = None
  guidance_scale: Annotated[Any, _nothing_but(1)] = None
  negative_prompt: Annotated[Any, _nothing_but("")] = None
  banned_strings: Annotated[Any, _nothing_but([])] = None
  skip_special_tokens: Annotated[Any, _nothing_but(True)] = None
  grammar_lazy: Annotated[Any, _nothing_but(False)] = None
  grammar_triggers: Annotated[Any, _nothing_but([])] = None
  guided_json_object: Annotated[Any, _nothing_but(False)] = None
  guided_whitespace_pattern: Annotated[Any, _nothing_but()] = None
  chat_template: Annotated[Any, _nothing_but()] = None
  documents: Annotated[Any, _nothing_but([])] = None

  def check_done(self) -> None:
    """Raises `InvalidRequestError` that names what is not done."""
    if self.top_n_sigma == 0:
      self.top_n_sigma = None  # both are off
    for name, (neutral, reason) in _REASONS.items():
      value = getattr(self, name)
      if value is not None and value not in (neutral, [], {},
                                             "") and not (name == "best_of" and value == (self.n or 1)):
        raise InvalidRequestError(f"{name} is not done here: {reason}", name)


# by field: what says nothing, and what to do instead
_REASONS: dict[str, tuple[Any, str]] = {
    "best_of": (1, "send n, and choose among the answers by their logprobs"),
    "use_beam_search": (False, "leave it out: answers are drawn token by token"),
    "length_penalty": (1, "it weighs beams, and there are none: leave it out"),
    "early_stopping": (False, "it ends beams, and there are none: leave it out"),
    "bad_words": ([], "ban tokens by logit_bias, with -100"),
    "bad_words_ids": ([], "ban tokens by logit_bias, with -100"),
    "allowed_token_ids": ([], "send guided_choice, a grammar, or logit_bias"),
    "min_tokens": (0, "ban the end token by logit_bias, or send ignore_eos with max_tokens"),
    "min_new_tokens": (0, "ban the end token by logit_bias, or send ignore_eos with max_tokens"),
    "stop_token_ids": ([], "send the texts of these tokens as stop"),
    "include_stop_str_in_output": (False, "the stop text is never part of the answer: add it where it is wanted"),
    "logits_processors": ([], "no code of a request is run: send logit_bias, or a grammar"),
    "prompt_logprobs": (0, "send echo and logprobs to /v1/completions"),
    "truncate_prompt_tokens": (None, "shorten the prompt; a 400 says by how much"),
    "thinking_token_budget": (
        None, "send chat_template_kwargs: {\"enable_thinking\": false} where it is to think less"
    ),
    "modalities": (["text"], "answers are text"),
    "audio": (None, "answers are text"),
    "num_beams": (1, "answers are drawn token by token: leave it out"),
    "tfs_z": (1, "send typical_p or min_p"),
    "top_a": (0, "send min_p"),
    "top_n_sigma": (-1, "send min_p"),
    "dynatemp_range": (0, "send temperature"),
    "smoothing_factor": (0, "send temperature"),
    "guidance_scale": (1, "a second prompt is not weighed against the first: leave it out"),
    "negative_prompt": ("", "a second prompt is not weighed against the first: leave it out"),
    "banned_strings": ([], "ban tokens by logit_bias: [[text, false]]"),
    "skip_special_tokens": (True, "special tokens are never part of the answer: leave it out"),
    "grammar_lazy": (False, "a grammar holds from the first token on; calls of tools are held by themselves"),
    "grammar_triggers": ([], "a grammar holds from the first token on; calls of tools are held by themselves"),
    "guided_json_object": (False, "send response_format: {\"type\": \"json_object\"}"),
    "guided_whitespace_pattern": (None, "leave it out, or send a grammar"),
    "chat_template": (None, "the model's own template is used; send /v1/completions a prompt of another form"),
    "documents": ([], "put their text into a message"),
    "web_search_options": (None, "nothing is searched here: offer a tool that does"),
}
