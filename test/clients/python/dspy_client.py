"""dspy: a prediction, whose parsing the model may fail, by OpenAI's routes and Ollama's."""

import dspy
from asked import MODEL, URL

for name, base in ((f"openai/{MODEL}", f"{URL}/v1"), (f"ollama_chat/{MODEL}", URL)):
  model = dspy.LM(name, api_base=base, api_key="none", max_tokens=60, cache=False)
  assert model("hello")[0]
  dspy.configure(lm=model)
  try:
    dspy.Predict("question -> answer")(question="What is 2 + 2?")
  except (dspy.utils.exceptions.AdapterParseError, ValueError) as error:
    assert "pars" in str(error).lower() or "adapter" in str(error).lower(), error
