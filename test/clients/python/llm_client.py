"""`llm`, the command: a model of OpenAI's kind in a folder of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asked import MODEL, URL

with tempfile.TemporaryDirectory() as folder:
  Path(folder,
       "extra-openai-models.yaml").write_text(f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {URL}/v1\n\n")
  command = [sys.executable, "-m", "llm", "-m", "mine", "hello", "-o", "max_tokens", "10", "--key", "none"]
  done = subprocess.run(
      command,
      env=os.environ | {"LLM_USER_PATH": folder},
      capture_output=True,
      text=True,
      timeout=100,
      stdin=subprocess.DEVNULL
  )
  assert done.returncode == 0 and done.stdout.strip(), done.stderr
