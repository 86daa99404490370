"""Tiny ONNX files in protobuf's wire format, by hand: an embedder whose numbers are the mean colours of a face."""

import struct
from pathlib import Path

FLOAT, FLOAT16 = 1, 10  # TensorProto.DataType
INT, TEXT = 0, 2  # wire types


def varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3 | INT) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | TEXT) + varint(len(content)) + content


def value_info(name: str, kind: int, dims: list[int | str]) -> bytes:
    shape = b"".join(field(1, field(2 if isinstance(dim, str) else 1, dim)) for dim in dims)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def node(operator: str, inputs: list[str], outputs: list[str]) -> bytes:
    return (
        b"".join(field(1, name) for name in inputs)
        + b"".join(field(2, name) for name in outputs)
        + field(4, operator)
    )


def write_embedder(path: Path, *, half: bool = False, norm: bool = False, scale: float = 1.0) -> Path:
    """(N, 3, 112, 112) -> "output" (N, 3): the mean of each channel times `scale`, which lies in PATH.data.

    `norm` adds the output "norm", (N, 1): the largest of them; `half` computes in float16.
    """
    kind = FLOAT16 if half else FLOAT
    path.with_name(f"{path.name}.data").write_bytes(struct.pack("<e" if half else "<f", scale))
    place = field(13, field(1, "location") + field(2, f"{path.name}.data"))
    initializer = field(1, 1) + field(2, kind) + field(8, "scale") + place + field(14, 1)
    nodes = [
        node("GlobalAveragePool", ["image"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Mul", ["flat", "scale"], ["output"]),
    ]
    outputs = [value_info("output", kind, ["n", 3])]
    if norm:
        nodes.append(node("ReduceMax", ["flat"], ["norm"]))
        outputs.append(value_info("norm", kind, [1, 1]))
    graph = b"".join(field(1, each) for each in nodes) + field(2, "embedder") + field(5, initializer)
    graph += field(11, value_info("image", kind, ["n", 3, 112, 112]))
    graph += b"".join(field(12, each) for each in outputs)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    return path
