"""The parsers of the commands that may start a node: each shows its own flags, and takes those of a node, too."""

from __future__ import annotations

from exo.cli.arguments import add_node_flags
from exo.cli.parser import Parser

_ALSO = "Every flag of `exo --help` is taken, too."
_STARTS = "Where no node of yours runs on this machine, one is started for the while. " + _ALSO
_MODEL = (
    "a known name (NAME:Q8_0, NAME:gguf, NAME:mlx, NAME:safetensors for one form of it) or a Hugging Face id: org/name, "
    "org/name@revision, org/name:Q4_K_M"
)
_WHERE_MODELS_ARE = ("--model-dir", "--inference-engine", "--quantize")


def run_parser() -> Parser:
  parser = Parser(
      prog="exo run",
      usage="exo run [MODEL] [TEXT] [FLAG …]",
      words="words",
      description="Answer one prompt, or chat. Only the answer goes to standard output.\n\n"
      "  exo run                                     a chat with the default model (/help tells what it can do)\n"
      "  exo run llama-3.2-3b                        a chat with this one\n"
      "  exo run \"Name three seas.\"                  one answer: a single word is a model, a text with blanks a prompt\n"
      "  exo run llama-3.2-3b \"Name three seas.\"     one answer of this model\n"
      "  cat notes.txt | exo run \"Summarize this:\"   standard input comes after the prompt",
      epilog=f"{_STARTS}\nA last word - waits for standard input for however long it takes."
  )
  parser.add_argument("words", nargs="*", metavar="MODEL, TEXT", help=f"{_MODEL}, or a folder or GGUF file; and a text")
  parser.add_argument("--prompt", metavar="TEXT", help="the text, as a flag")
  parser.add_argument("--model", "--run-model", dest="run_model", metavar="MODEL", help="the model, as a flag")
  parser.add_argument("--max-tokens", type=int, metavar="N", help="at most this many tokens in the answer")
  add_node_flags(parser)
  parser.show_only((
      "--prompt", "--model", "--max-tokens", "--system-prompt", "--default-temp", "--default-model", "--context",
      *_WHERE_MODELS_ARE
  ))
  return parser


def models_parser() -> Parser:
  parser = Parser(
      prog="exo models",
      usage="exo models [MODEL] [FLAG …]",
      description="List the models: what there is, what is here and whether it runs here; or one in all its forms.",
      epilog=_ALSO
  )
  parser.add_argument(
      "model_name", nargs="?", metavar="MODEL", help="only this one, in every form in which it can be had"
  )
  parser.add_argument("--json", action="store_true", help="a list for programs")
  add_node_flags(parser)
  parser.show_only(("--json", "--max-memory", "--context", "--parallel", "--devices", *_WHERE_MODELS_ARE))
  return parser


def pull_parser() -> Parser:
  parser = Parser(
      prog="exo pull",
      usage="exo pull MODEL [FLAG …]",
      description=
      "Fetch a whole model onto this machine, from the ring's other nodes first. Ctrl-C stops, the next pull goes on.",
      epilog=_STARTS
  )
  parser.add_argument("model_name", metavar="MODEL", help=_MODEL)
  add_node_flags(parser)
  parser.show_only(("--max-parallel-downloads", "--download-limit", "--download-quick-check", *_WHERE_MODELS_ARE))
  return parser


def rm_parser() -> Parser:
  parser = Parser(
      prog="exo rm",
      usage="exo rm MODEL [FLAG …]",
      description="Delete a model from this machine. Nodes of yours that run here let go of it first.",
      epilog=_ALSO
  )
  parser.add_argument("model_name", metavar="MODEL", help=_MODEL)
  add_node_flags(parser)
  parser.show_only(())
  return parser


def join_parser() -> Parser:
  parser = Parser(
      prog="exo join",
      usage="exo join [TOKEN] [FLAG …]",
      description="Become part of a ring with a cluster key, and start a node in it. From then on `exo` alone does.",
      epilog="Every flag of `exo --help` is taken, too: it is a node that starts."
  )
  parser.add_argument(
      "token",
      nargs="?",
      metavar="TOKEN",
      help="what `exo key token` printed (default: asked for, where nobody sees it)"
  )
  add_node_flags(parser)
  parser.show_only(("--cluster-key-file", "--node-id", "--disable-tui"))
  return parser


def doctor_parser() -> Parser:
  parser = Parser(
      prog="exo doctor",
      usage="exo doctor [FLAG …]",
      description=
      "Say what keeps this machine from being a good node: engines, interfaces, ports, firewall, clock, models, peers.\n"
      "The exit status is 1 where something is wrong.",
      epilog="Every flag of `exo --help` is taken, too: give those that the node gets."
  )
  parser.add_argument("--json", action="store_true", help="the findings for programs")
  add_node_flags(parser)
  parser.show_only(
      ("--json", "--inference-engine", "--chatgpt-api-port", "--listen-port", "--discovery-module", "--model-dir")
  )
  return parser
