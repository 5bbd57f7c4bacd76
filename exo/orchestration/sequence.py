"""A running sequence, as the first stage of its plan knows it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from exo.networking.messages import Request, WideStep


def salt_of(request: Request, far: bool) -> str:
  """Of a sequence that may be too long for the model's near context, or not."""
  return f"{request.cache_salt} far" if far else request.cache_salt


@dataclass(slots=True)
class RunningSequence:
  """`computed` of its `tokens` are in the caches or on their way there; a result may say that more are.

  `number` may have belonged to another request before; what comes of steps before `first_step` is that one's.
  `cut` means that the caches may hold more than `computed` tokens. `reserved` is the KV that it may come to need. `far` is as in
  `BatchEntry`. `stepped` is the last step in which it was decoded. The caches of its first `as_prompt` tokens are, or will be, what any longer prompt that begins with them makes of them.
  Copies of its caches are to be kept when it has computed so many tokens as `marks` say, in ascending order.
  """
  number: int
  request: Request
  reserved: int
  tokens: list[int]
  first_step: int
  computed: int = 0
  far: bool = False
  as_prompt: int = 0
  stepped: int = 0
  cut: bool = False
  mu: float = 0.0  # Mirostat's, after the last token
  marks: list[int] = field(default_factory=list)
  wide: list[WideStep] = field(default_factory=list)  # of its steps that gave tokens here, those that had drafts
  prompt_tokens: int = field(init=False)
  reused: int = field(init=False)  # of its prompt, found in a kept cache

  def __post_init__(self) -> None:
    self.prompt_tokens, self.mu = len(self.request.prompt_ids), self.request.mu
    self.reused = self.computed

  @property
  def salt(self) -> str:
    """Only sequences of the same begin with its cache."""
    return salt_of(self.request, self.far)

  @property
  def prompt_left(self) -> int:
    return max(0, self.prompt_tokens - self.computed)

  @property
  def generated(self) -> int:
    return len(self.tokens) - self.prompt_tokens

  @property
  def decoding(self) -> bool:
    """Its first token is there."""
    return self.prompt_tokens <= self.computed and self.prompt_tokens < len(self.tokens)

  def replay_step(self, most: int) -> tuple[list[int], int]:
    """The next tokens to compute again, at most so many, and how many of them stay: wrong drafts may have been anything, but were there."""
    index = self.computed - self.prompt_tokens
    wide = next((w for w in self.request.replay_wide if w.index == index), WideStep(index, 1, 1))
    if wide.width > most:  # the plan that computed them could do more at once and alike
      return self.tokens[self.computed:self.computed + 1], 1
    stay = self.tokens[self.computed:self.computed + wide.count]
    return stay + stay[-1:] * (wide.width - wide.count), wide.count

  def note_wide(self, position: int, tokens: int, width: int) -> None:
    """A step of `width` tokens from that position on gave so many."""
    self.wide.append(WideStep(position - self.prompt_tokens, tokens, width))

  def again(self) -> Request:
    """What to ask for where it must be computed again: its client has its tokens."""
    if not self.generated:
      return self.request
    return replace(
        self.request,
        replay_ids=tuple(self.tokens[self.prompt_tokens:]),
        replay_wide=(*self.request.replay_wide, *self.wide),
        prompt_logprobs=None,
        mu=self.mu
    )
