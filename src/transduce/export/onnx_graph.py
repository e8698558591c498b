"""The network as two graphs of ONNX operators, added one by one: nothing is traced, weights keep their names.

`encoder_graph` turns sources into the keys and values that the decoder's layers attend to; `step_graph` appends one
token to each output and gives the log-probabilities of the next. Both need the package `onnx`.
Letters: B batch, S source, T queries, P tokens so far, L decoder layers, H heads, D d_model, K head_dim.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from transduce.model.positional import sinusoidal_table
from transduce.model.residual import build_norm
from transduce.model.transformer import Transformer

_OPSET, _IR_VERSION = 17, 8  # of 2022: the first with layer normalization, known to every engine since

# Weights use 7 of their 8 bits: then the sum of two products fits the 16 bits in which many CPUs add them.
_LARGEST_WEIGHT_CODE = 63
_ZERO_CODE = 128  # of an activation, which is an unsigned byte
_TINY = 1e-30  # so that a row of zeros has a scale, too

_PAST, _PRESENT, _CROSS = (("layers", "batch", "heads", f"{which}len", "head_dim") for which in ("past_", "", "src_"))
_STATE = {"past_keys": _PAST, "past_values": _PAST, "cross_keys": _CROSS, "cross_values": _CROSS}


def encoder_graph(model: Transformer, *, int8: bool = False) -> ModelProto:
    """source_ids (B, S), padded on the right -> cross_keys, cross_values (L, B, H, S, K), source_mask (B, S)."""
    graph, config = _Graph(model, int8=int8), model.config
    pad_id = graph.constant(model.vocabulary.pad_id)
    source_mask = graph.add("Not", graph.add("Equal", "source_ids", pad_id))
    mask = graph.add("Unsqueeze", source_mask, graph.constant([1, 2]))  # (B, S) -> (B, 1, 1, S)
    src_len = graph.add("Squeeze", graph.add("Shape", "source_ids", start=1, end=2))
    positions = graph.add("Range", graph.constant(0), src_len, graph.constant(1))
    x = graph.embed("source_ids", positions, "src")
    for index in range(config.num_encoder_layers):
        x = _encoder_layer(graph, x, f"encoder.layers.{index}", positions, mask)
    keys, values = _project_memory(graph, graph.final_norm(x, "encoder"))
    graph.add_input("source_ids", TensorProto.INT64, ("batch", "src_len"))
    graph.add_output(keys, "cross_keys", TensorProto.FLOAT, _CROSS)
    graph.add_output(values, "cross_values", TensorProto.FLOAT, _CROSS)
    graph.add_output(source_mask, "source_mask", TensorProto.BOOL, ("batch", "src_len"))
    return graph.finish("encoder")


def step_graph(model: Transformer, *, int8: bool = False) -> ModelProto:
    """One more token: tokens (B,), the outputs of `encoder_graph`, past_keys and past_values (L, B, H, P, K) ->
    log_probs (B, num_target_ids), keys and values (L, B, H, P + 1, K), the past of the next step.
    """
    graph, num_layers = _Graph(model, int8=int8), model.config.num_decoder_layers
    position = graph.add("Shape", "past_keys", start=3, end=4)  # the number of tokens so far
    mask = graph.add("Unsqueeze", "source_mask", graph.constant([1, 2]))
    x = graph.embed(graph.add("Unsqueeze", "tokens", graph.constant([1])), position, "tgt")
    keys, values = [], []
    for index in range(num_layers):
        x, k, v = _decoder_layer(graph, x, index, position, mask)
        keys.append(k)
        values.append(v)
    hidden = graph.reshape(graph.final_norm(x, "decoder"), -1, model.config.d_model)  # (B, 1, D) -> (B, D)
    log_probs = graph.add("LogSoftmax", graph.logits(hidden), axis=-1)
    graph.add_input("tokens", TensorProto.INT64, ("batch",))
    for name, shape in _STATE.items():
        graph.add_input(name, TensorProto.FLOAT, shape)
    graph.add_input("source_mask", TensorProto.BOOL, ("batch", "src_len"))
    graph.add_output(log_probs, "log_probs", TensorProto.FLOAT, ("batch", model.vocabulary.num_target_ids))
    graph.add_output(graph.stack(keys), "keys", TensorProto.FLOAT, _PRESENT)
    graph.add_output(graph.stack(values), "values", TensorProto.FLOAT, _PRESENT)
    return graph.finish("decoder_step")


def _encoder_layer(graph: "_Graph", x: str, name: str, positions: str, mask: str) -> str:
    def attend(x: str) -> str:
        q, k, v = graph.project_self(x, f"{name}.self_attention", positions)
        return graph.attention(q, k, v, f"{name}.self_attention", mask)

    x = graph.add_and_norm(x, f"{name}.residual_1", attend)
    return graph.add_and_norm(x, f"{name}.residual_2", lambda x: graph.feed_forward(x, f"{name}.feed_forward"))


def _decoder_layer(graph: "_Graph", x: str, index: int, position: str, mask: str) -> tuple[str, str, str]:
    """The layer's output, and its keys and values of all tokens so far."""
    name, number = f"decoder.layers.{index}", graph.constant(index)
    past_k, past_v, cross_k, cross_v = (graph.add("Gather", cache, number, axis=0) for cache in _STATE)
    k, v = past_k, past_v

    def attend_to_own_past(x: str) -> str:
        nonlocal k, v
        q, new_k, new_v = graph.project_self(x, f"{name}.self_attention", position)
        k, v = graph.add("Concat", past_k, new_k, axis=2), graph.add("Concat", past_v, new_v, axis=2)
        return graph.attention(q, k, v, f"{name}.self_attention")

    def attend_to_source(x: str) -> str:
        q = graph.split_heads(graph.linear(x, f"{name}.cross_attention.q_proj"))
        return graph.attention(q, cross_k, cross_v, f"{name}.cross_attention", mask)

    x = graph.add_and_norm(x, f"{name}.residual_1", attend_to_own_past)
    x = graph.add_and_norm(x, f"{name}.residual_2", attend_to_source)
    x = graph.add_and_norm(x, f"{name}.residual_3", lambda x: graph.feed_forward(x, f"{name}.feed_forward"))
    return x, k, v


def _project_memory(graph: "_Graph", memory: str) -> Sequence[str]:
    """Keys and values (L, B, H, S, K) for the cross-attention of all decoder layers: one product."""
    projected = graph.reshape(graph.linear(memory, "memory_proj"), 0, 0, -1, 2, *graph.heads)  # (B, S, L, 2, H, K)
    stacked = graph.add("Transpose", projected, perm=(3, 2, 0, 4, 1, 5))  # (2, L, B, H, S, K)
    return [graph.add("Gather", stacked, graph.constant(part), axis=0) for part in (0, 1)]


class _Graph:
    """A graph under construction. Values are known by name: methods take names and return names.

    With `int8` every matrix is held in bytes, with a scale for each row.
    """

    def __init__(self, model: Transformer, *, int8: bool) -> None:
        self.heads = (model.config.num_heads, model.config.d_model // model.config.num_heads)
        self._config, self._int8 = model.config, int8
        self._weights = _weights_of(model)
        self._epsilon: Any = build_norm(1, model.config.norm).eps
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self._add(operator, inputs, 1, attributes)[0]

    def split(self, x: str, num_parts: int) -> list[str]:
        """Equal parts of the last axis."""
        return self._add("Split", (x,), num_parts, {"axis": -1})

    def reshape(self, x: str, *shape: int) -> str:
        """`x` in another shape, in which 0 keeps an axis and -1 takes the rest."""
        return self.add("Reshape", x, self.constant(shape))

    def stack(self, parts: Sequence[str]) -> str:
        """Values of one shape along a new first axis."""
        return self.add("Concat", *(self.add("Unsqueeze", part, self.constant([0])) for part in parts), axis=0)

    def constant(self, value: ArrayLike) -> str:
        """A constant: int64 for whole numbers, else float32."""
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return self._initialize(f"{array.dtype}{array.tolist()}", array)

    def product(self, x: str, name: str) -> str:
        """x W^T for the matrix `name`: (..., in) -> (..., out). An engine transposes it once, on loading."""
        if self._int8:
            return self._int8_product(x, name)
        return self.add("MatMul", x, self.add("Transpose", self._weight(name), perm=(1, 0)))

    def linear(self, x: str, name: str) -> str:
        return self.add("Add", self.product(x, f"{name}.weight"), self._weight(f"{name}.bias"))

    def embed(self, ids: str, positions: str, side: str) -> str:
        """(B, T) -> (B, T, D); `positions` (T,)."""
        rows = self._rows(f"{side}_embedding.weight", ids)
        x = self.add("Mul", rows, self.constant(math.sqrt(self._config.d_model)))
        if self._config.positions == "sinusoidal":
            table = sinusoidal_table(self._config.max_len, self._config.d_model).numpy()
            return self.add("Add", x, self.add("Gather", self._initialize("sinusoids", table), positions))
        if self._config.positions == "learned":
            return self.add("Add", x, self.add("Gather", self._weight(f"{side}_positions.weight"), positions))
        return x

    def logits(self, hidden: str) -> str:
        weight = "tgt_embedding.weight" if self._config.tie_embeddings else "separate_output_weight"
        scores = self.product(hidden, weight)
        return self.add("Add", scores, self._weight("output_bias")) if self._config.output_bias else scores

    def norm(self, x: str, name: str) -> str:
        weight = self._weight(f"{name}.weight")
        if self._config.norm == "layer":
            return self.add("LayerNormalization", x, weight, self._weight(f"{name}.bias"), epsilon=self._epsilon)
        mean_square = self.add("ReduceMean", self.add("Mul", x, x), axes=(-1,))
        root = self.add("Sqrt", self.add("Add", mean_square, self.constant(self._epsilon)))
        return self.add("Mul", self.add("Div", x, root), weight)

    def final_norm(self, x: str, name: str) -> str:
        return self.norm(x, f"{name}.final_norm") if self._config.norm_first else x

    def add_and_norm(self, x: str, name: str, sublayer: Callable[[str], str]) -> str:
        if self._config.norm_first:
            return self.add("Add", x, sublayer(self.norm(x, f"{name}.norm")))
        return self.norm(self.add("Add", x, sublayer(x)), f"{name}.norm")

    def split_heads(self, x: str) -> str:
        return self.add("Transpose", self.reshape(x, 0, 0, *self.heads), perm=(0, 2, 1, 3))  # (B, T, D) -> (B, H, T, K)

    def project_self(self, x: str, name: str, positions: str) -> tuple[str, str, str]:
        """Queries, keys and values (B, H, T, K) of one sequence."""
        q, k, v = (self.split_heads(part) for part in self.split(self.linear(x, f"{name}.qkv_proj"), 3))
        if self._config.positions == "rotary":
            q, k = self._rotate(q, positions), self._rotate(k, positions)
        return q, k, v

    def attention(self, q: str, k: str, v: str, name: str, mask: str | None = None) -> str:
        """Multi-head attention: equation 1, heads concatenated, and W^O: (B, T, D)."""
        scaled = self.add("Mul", q, self.constant(self.heads[1] ** -0.5))
        scores = self.add("MatMul", scaled, self.add("Transpose", k, perm=(0, 1, 3, 2)))
        if mask is not None:
            scores = self.add("Where", mask, scores, self.constant(-math.inf))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        joined = self.reshape(self.add("Transpose", mixed, perm=(0, 2, 1, 3)), 0, 0, -1)  # (B, H, T, K) -> (B, T, D)
        return self.linear(joined, f"{name}.out_proj")

    def feed_forward(self, x: str, name: str) -> str:
        if self._config.feed_forward == "swiglu":
            gate, up = self.split(self.linear(x, f"{name}.gate_up_proj"), 2)
            inner = self.add("Mul", self._silu(gate), up)
        else:
            up = self.linear(x, f"{name}.up_proj")
            inner = {"relu": self._relu, "gelu": self._gelu, "silu": self._silu}[self._config.feed_forward](up)
        return self.linear(inner, f"{name}.down_proj")

    def add_input(self, name: str, kind: int, shape: Sequence[str | int]) -> None:
        """Declare an input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def add_output(self, value: str, name: str, kind: int, shape: Sequence[str | int]) -> None:
        """Declare `value` an output of the graph, called `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def finish(self, name: str) -> ModelProto:
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, [*self._initializers.values()])
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, producer_name="transduce", opset_imports=[opset], ir_version=_IR_VERSION)

    def _add(self, operator: str, inputs: Sequence[str], num_outputs: int, attributes: dict[str, Any]) -> list[str]:
        outputs = [f"{operator}_{len(self._nodes)}_{number}" for number in range(num_outputs)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def _initialize(self, name: str, array: NDArray[Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _weight(self, name: str) -> str:
        return self._initialize(name, self._weights[name])

    def _rows(self, name: str, ids: str) -> str:
        """The rows `ids` of a matrix."""
        if not self._int8:
            return self.add("Gather", self._weight(name), ids)
        codes, scales = (self.add("Gather", part, ids) for part in self._codes(name))
        return self.add("Mul", self._float(codes), self.add("Unsqueeze", scales, self.constant([-1])))

    def _codes(self, name: str) -> tuple[str, str]:
        """A matrix in int8, and the scale of each row."""
        weight = self._weights[name]
        scales = np.maximum(np.abs(weight).max(axis=1), _TINY) / _LARGEST_WEIGHT_CODE
        codes = np.round(weight / scales[:, None]).astype(np.int8)
        return self._initialize(f"{name}.codes", codes), self._initialize(f"{name}.scales", scales)

    def _int8_product(self, x: str, name: str) -> str:
        """The product in integers. Each token has its own scale, so that no sentence depends on its batch."""
        codes, scales = self._codes(name)
        largest = self.add("Max", self.add("ReduceMax", self.add("Abs", x), axes=(-1,)), self.constant(_TINY))
        x_scale = self.add("Div", largest, self.constant(_ZERO_CODE - 1.0))
        shifted = self.add("Add", self.add("Round", self.add("Div", x, x_scale)), self.constant(float(_ZERO_CODE)))
        x_codes = self.add("Cast", shifted, to=TensorProto.UINT8)
        zero = self._initialize("zero_code", np.array(_ZERO_CODE, dtype=np.uint8))
        whole = self.add("MatMulInteger", x_codes, self.add("Transpose", codes, perm=(1, 0)), zero)
        return self.add("Mul", self.add("Mul", self._float(whole), x_scale), scales)

    def _float(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.FLOAT)

    def _rotate(self, x: str, positions: str) -> str:
        """Rotary positions: each pair of channels rotated by its angle, as x cos + (x rotated by 90 degrees) sin."""
        head_dim = self.heads[1]
        sines_and_cosines = sinusoidal_table(self._config.max_len, head_dim).numpy()  # in alternate columns
        quarter_turn = np.kron(np.eye(head_dim // 2), [[0, 1], [-1, 0]]).astype(np.float32)
        sin, cos = (
            self.add("Gather", self._initialize(part, sines_and_cosines[:, first::2].repeat(2, axis=1)), positions)
            for part, first in (("sines", 0), ("cosines", 1))
        )
        rotated = self.add("MatMul", x, self._initialize("quarter_turn", quarter_turn))
        return self.add("Add", self.add("Mul", x, cos), self.add("Mul", rotated, sin))

    def _relu(self, x: str) -> str:
        return self.add("Relu", x)

    def _silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def _gelu(self, x: str) -> str:
        erf = self.add("Erf", self.add("Mul", x, self.constant(math.sqrt(0.5))))
        return self.add("Mul", self.add("Mul", x, self.constant(0.5)), self.add("Add", erf, self.constant(1.0)))


def _weights_of(model: Transformer) -> dict[str, NDArray[np.float32]]:
    """The weights by name, the cross-attention projections split into queries (by layer) and memory (of all layers)."""
    weights = {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}
    # Target ids come first; the ids after them occur in sources only.
    weights["tgt_embedding.weight"] = weights["tgt_embedding.weight"][: model.vocabulary.num_target_ids]
    memory_parts: dict[str, list[NDArray[np.float32]]] = {"weight": [], "bias": []}
    for index in range(model.config.num_decoder_layers):
        name = f"decoder.layers.{index}.cross_attention"
        for part, parts_of_layers in memory_parts.items():
            q, k, v = np.split(weights[f"{name}.qkv_proj.{part}"], 3)
            weights[f"{name}.q_proj.{part}"] = q
            parts_of_layers.append(np.concatenate((k, v)))
    return weights | {f"memory_proj.{part}": np.concatenate(layers) for part, layers in memory_parts.items()}
