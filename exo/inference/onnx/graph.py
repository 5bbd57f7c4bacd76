"""Builds one ONNX graph in memory and opens an onnxruntime session on it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
_TYPES = {
    "float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8
}
_INLINE_BYTES = 1024
Dims = list[str | int]


class GraphBuilder:
  """Nodes are appended in order; every method returns the name of the value that it adds.

  Weights are handed to the session as they are in memory, never serialized, so a graph may hold more than 2 GB.
  """
  def __init__(self) -> None:
    self._nodes: list[onnx.NodeProto] = []
    self._inputs: list[onnx.ValueInfoProto] = []
    self._outputs: list[onnx.ValueInfoProto] = []
    self._weights: dict[str, npt.NDArray[Any]] = {}
    self._count = 0
    self.packed_bytes = 0  # that the session makes of weights beside their number

  def fresh(self, stem: str) -> str:
    self._count += 1
    return f"{stem}.{self._count}"

  def input(self, name: str, dtype: str, dims: Dims) -> str:
    self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], dims))
    return name

  def output(self, name: str, dtype: str, dims: Dims) -> str:
    self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], dims))
    return name

  def weight(self, value: npt.NDArray[Any], stem: str = "w", *, name: str | None = None) -> str:
    """A constant. With a `name` that is there already, the first value stays."""
    key = name or self.fresh(stem)
    if key not in self._weights:
      self._weights[key] = np.ascontiguousarray(value)
    return key

  def node(self, op: str, inputs: list[str], *, domain: str = "", output: str | None = None, **attributes: Any) -> str:
    """A node with one output."""
    return self.nodes(op, inputs, [output or self.fresh(op)], domain=domain, **attributes)[0]

  def nodes(self, op: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any) -> list[str]:
    """A node with several outputs, some of which may be "" (not wanted)."""
    self._nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
    return outputs

  @property
  def weight_bytes(self) -> int:
    """Of what the session will hold of the weights."""
    return sum(value.nbytes for value in self._weights.values()) + self.packed_bytes

  def session(self, threads: int) -> ort.InferenceSession:
    """Open the session. The builder must not be used afterwards: its weights are given away."""
    initializers, handed = [], {}
    for name, value in self._weights.items():
      if value.nbytes <= _INLINE_BYTES:  # shapes and axes must be readable in the graph itself
        initializers.append(numpy_helper.from_array(value, name))
        continue
      handed[name] = ort.OrtValue.ortvalue_from_numpy(value)
      proto = TensorProto(name=name, data_type=_TYPES[value.dtype.name], dims=value.shape)
      proto.data_location = TensorProto.EXTERNAL
      proto.external_data.add(key="location", value="memory")
      initializers.append(proto)
    graph = helper.make_graph(self._nodes, "shard", self._inputs, self._outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, with its reason
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a spinning pool takes the core from whoever else shares the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if handed:
      options.add_external_initializers(list(handed), list(handed.values()))
    self._weights = {}
    # onnxruntime's own "flash" attention for CPUs is half as fast for one token and no faster for many (1.32)
    os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1"
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
