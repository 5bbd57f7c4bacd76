"""Fields that other servers know, that would constrain or change the text, and that are not done here: told, not passed over."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, get_type_hints

from msgspec import Meta

from exo.api.schema import SamplingFields
from exo.errors import InvalidRequestError


def _undone(reason: str, *neutral: Any) -> Any:
  """A field that takes only what says nothing; anything else is refused in words, hence not by its type."""
  return Meta(extra_json_schema={"enum": [None, *neutral], "description": reason})


class NotDone(SamplingFields, kw_only=True):
  """Of chat and text completions."""
  best_of: Annotated[Any, _undone("send n, and choose among the answers by their logprobs", 1)] = None
  use_beam_search: Annotated[Any, _undone("leave it out: answers are drawn token by token", False)] = None
  length_penalty: Annotated[Any, _undone("it weighs beams, and there are none: leave it out", 1)] = None
  early_stopping: Annotated[Any, _undone("it ends beams, and there are none: leave it out", False)] = None
  bad_words: Annotated[Any, _undone("ban tokens by logit_bias, with -100", [])] = None
  bad_words_ids: Annotated[Any, _undone("ban tokens by logit_bias, with -100", [])] = None
  allowed_token_ids: Annotated[Any, _undone("send guided_choice, a grammar, or logit_bias", [])] = None
  min_tokens: Annotated[Any, _undone("ban the end token by logit_bias, or send ignore_eos with max_tokens", 0)] = None
  min_new_tokens: Annotated[Any,
                            _undone("ban the end token by logit_bias, or send ignore_eos with max_tokens", 0)] = None
  stop_token_ids: Annotated[Any, _undone("send the texts of these tokens as stop", [])] = None
  include_stop_str_in_output: Annotated[
      Any, _undone("the stop text is never part of the answer: add it where it is wanted", False)] = None
  logits_processors: Annotated[Any, _undone("no code of a request is run: send logit_bias, or a grammar", [])] = None
  prompt_logprobs: Annotated[Any, _undone("send echo and logprobs to /v1/completions", 0)] = None
  truncate_prompt_tokens: Annotated[Any, _undone("shorten the prompt; a 400 says by how much")] = None
  thinking_token_budget: Annotated[
      Any, _undone("send chat_template_kwargs: {\"enable_thinking\": false} where it is to think less")] = None
  modalities: Annotated[Any, _undone("answers are text", ["text"])] = None
  audio: Annotated[Any, _undone("answers are text")] = None
  web_search_options: Annotated[Any, _undone("nothing is searched here: offer a tool that does")] = None
  num_beams: Annotated[Any, _undone("answers are drawn token by token: leave it out", 1)] = None
  tfs_z: Annotated[Any, _undone("send typical_p or min_p", 1)] = None
  top_a: Annotated[Any, _undone("send min_p", 0)] = None
  top_n_sigma: Annotated[Any, _undone("send min_p", -1, 0)] = None
  dynatemp_range: Annotated[Any, _undone("send temperature", 0)] = None
  smoothing_factor: Annotated[Any, _undone("send temperature", 0)] = None
  guidance_scale: Annotated[Any, _undone("a second prompt is not weighed against the first: leave it out", 1)] = None
  negative_prompt: Annotated[Any, _undone("a second prompt is not weighed against the first: leave it out", "")] = None
  banned_strings: Annotated[Any, _undone("ban tokens by logit_bias: [[text, false]]", [])] = None
  skip_special_tokens: Annotated[Any, _undone("special tokens are never part of the answer: leave it out", True)] = None
  grammar_lazy: Annotated[
      Any, _undone("a grammar holds from the first token on; calls of tools are held by themselves", False)] = None
  grammar_triggers: Annotated[
      Any, _undone("a grammar holds from the first token on; calls of tools are held by themselves", [])] = None
  guided_json_object: Annotated[Any, _undone("send response_format: {\"type\": \"json_object\"}", False)] = None
  guided_whitespace_pattern: Annotated[Any, _undone("leave it out, or send a grammar")] = None
  chat_template: Annotated[
      Any, _undone("the model's own template is used; send /v1/completions a prompt of another form")] = None
  documents: Annotated[Any, _undone("put their text into a message", [])] = None

  def check_done(self) -> None:
    """Raises `InvalidRequestError` that names what is not done, and says what to do instead."""
    for name, (neutral, reason) in _undone_fields().items():
      value = getattr(self, name)
      # to Python true is 1, to JSON it is not
      said = all(value != known or isinstance(value, bool) is not isinstance(known, bool) for known in neutral)
      if said and not (name == "best_of" and value == (self.n or 1)):
        raise InvalidRequestError(f"{name} is not done here: {reason}", name)


@lru_cache(maxsize=1)
def _undone_fields() -> dict[str, tuple[list[Any], str]]:
  """By name, as the document has them."""
  hints = get_type_hints(NotDone, include_extras=True)
  told = {name: hints[name].__metadata__[0].extra_json_schema for name in NotDone.__annotations__}
  return {name: (schema["enum"], schema["description"]) for name, schema in told.items()}
