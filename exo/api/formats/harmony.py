"""gpt-oss: an answer is messages with a channel and, where it is a call, a recipient. `HarmonyParser` reads them."""

from __future__ import annotations

from exo.api.formats.json_calls import no_calls
from exo.api.formats.tool_format import ToolFormat

# the token that ends a call ends the answer: it is not written by grammars, which end where an answer may end
HARMONY = ToolFormat(
    "harmony", ("<|channel|>", ),
    "",
    no_calls,
    before_name="commentary to=functions.",
    before_arguments=" <|constrain|>json<|message|>",
    others=("<|start|>", "<|end|>", "<|return|>", "<|call|>"),
    single=True,
    guided=False
)
# what stands before an answer that is held to a schema
FINAL = "<|channel|>final<|message|>"
