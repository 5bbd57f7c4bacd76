"""instructor: an answer of a type, by a call and by a schema."""

import instructor
from asked import HELLO, MODEL, URL
from instructor.core.exceptions import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel


class City(BaseModel):
  name: str
  is_large: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
  client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
  try:
    found = client.chat.completions.create(
        model=MODEL, messages=HELLO, response_model=City, max_tokens=300, max_retries=1
    )
    assert isinstance(found, City), mode
  except InstructorRetryException as error:  # JSON alone says nothing of the fields
    if mode is not instructor.Mode.JSON or "validation error" not in str(error):
      raise
