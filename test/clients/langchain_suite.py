"""LangChain's standard tests of chat models, through `langchain-openai`; `test_clients.py` runs this file by itself.

The node to ask stands in `EXO_TEST_URL`, its model in `EXO_TEST_MODEL`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestExo(ChatModelIntegrationTests):
  @property
  def chat_model_class(self) -> type[BaseChatModel]:
    return ChatOpenAI

  @property
  def chat_model_params(self) -> dict[str, Any]:
    return {
        "base_url": f"{os.environ['EXO_TEST_URL']}/v1", "api_key": "none", "model": os.environ["EXO_TEST_MODEL"],
        "temperature": 0, "max_tokens": 120, "max_retries": 0, "timeout": 120, "stream_usage": True
    }

  @property
  def supports_json_mode(self) -> bool:
    return True

  @property
  def supports_image_inputs(self) -> bool:
    return False

  @property
  def returns_usage_metadata(self) -> bool:
    return True

  # what a model of 135M parameters cannot do; the API's part of each is tested elsewhere

  @pytest.mark.xfail(reason="told of keys in words alone, so small a model chooses others")
  def test_json_mode(self, model: BaseChatModel) -> None:
    super().test_json_mode(model)

  @pytest.mark.xfail(reason="free to call or not, so small a model answers without")
  def test_agent_loop(self, model: BaseChatModel) -> None:
    super().test_agent_loop(model)

  @pytest.mark.xfail(reason="so small a model does not repeat Japanese names")
  def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
    super().test_unicode_tool_call_integration(model)
