"""`scaled_dot_product_attention`: softmax(query @ key.T * scale) @ value in one kernel, without the matrix of scores.

A program owns BLOCK_M queries of one head. It walks over the keys and values BLOCK_N at a time and keeps, for each query,
the largest score so far, the sum of exponentials and the weighted sum of values, rescaling them whenever a larger score
turns up (FlashAttention-2, Dao, arXiv 2307.08691). Operands are read where they lie, by their strides: packed queries,
keys and values of a ViT need no copy, and the result is laid out as tokens.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from ..runtime import INTERPRETER, Config, Configs, check_forward_only, dot_precision, multiprocessors

LARGEST_HEAD = 256


@triton.jit
def attention_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, scale, heads, queries, keys,
    query_batch_stride, query_head_stride, query_row_stride, query_column_stride,
    key_batch_stride, key_head_stride, key_row_stride, key_column_stride,
    value_batch_stride, value_head_stride, value_row_stride, value_column_stride,
    output_batch_stride, output_head_stride, output_row_stride,
    head_size, value_size, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_M)
    first = (tl.program_id(0) % blocks) * BLOCK_M
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride

    m = first + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    m_mask = m < queries
    m64 = m.to(tl.int64)
    q_mask = m_mask[:, None] & (d < head_size)[None, :]
    q = tl.load(query_ptr + m64[:, None] * query_row_stride + d[None, :] * query_column_stride, mask=q_mask, other=0.0)

    # Exponentials to base 2 are one instruction; log2(e) goes into the scale.
    base2_scale = scale * 1.4426950408889634
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, first + BLOCK_M)
    for start in range(0, last, BLOCK_N):
        column = start + n
        rows = column.to(tl.int64)
        k_mask = (column < keys)[None, :] & (d < head_size)[:, None]
        k = tl.load(key_ptr + rows[None, :] * key_row_stride + d[:, None] * key_column_stride, mask=k_mask, other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION) * base2_scale
        # A key past the end scores 0 after its masked load, and exp(0) is 1: it has to be -inf to count for nothing.
        visible = (column < keys)[None, :]
        if CAUSAL:
            visible = visible & (column[None, :] <= m[:, None])
        scores = tl.where(visible, scores, -float("inf"))
        larger = tl.maximum(maximum, tl.max(scores, axis=1))
        p = tl.exp2(scores - larger[:, None])
        correction = tl.exp2(maximum - larger)
        total = total * correction + tl.sum(p, axis=1)
        v_mask = (column < keys)[:, None] & (v < value_size)[None, :]
        values = tl.load(value_ptr + rows[:, None] * value_row_stride + v[None, :] * value_column_stride, mask=v_mask, other=0.0)
        accumulator = tl.dot(p.to(values.dtype), values, accumulator * correction[:, None], input_precision=PRECISION)
        maximum = larger

    out_mask = m_mask[:, None] & (v < value_size)[None, :]
    tl.store(output_ptr + m64[:, None] * output_row_stride + v[None, :], accumulator / total[:, None], mask=out_mask)


def _shared_bytes(config: Config, itemsize: int) -> int:
    b = config.blocks
    keys_and_values = b["BLOCK_N"] * (b["BLOCK_D"] + b["BLOCK_V"]) * itemsize * config.num_stages
    widest = max(b["BLOCK_D"], b["BLOCK_V"])
    # Besides keys and values, for each query: its elements, its weights and a float32 to reduce, or a float32 row that
    # changes its layout. On sm_75, in place of all that: float32 rows of the result and of the weights.
    a_query = max((widest + b["BLOCK_N"]) * itemsize + 4, max(widest, b["BLOCK_N"]) * 4)
    if itemsize == 4:  # tf32x3 keeps what is left of the queries after rounding beside them
        a_query = max(a_query, 2 * b["BLOCK_D"] * 4)
    # What a block of keys has beyond a block of values finds no room in the buffers that the two share.
    longer_keys = b["BLOCK_N"] * max(b["BLOCK_D"] - b["BLOCK_V"], 0) * 4
    return longer_keys + max(keys_and_values + b["BLOCK_M"] * a_query, b["BLOCK_M"] * (widest + b["BLOCK_N"]) * 4)


@functools.cache
def _configs(block_d: int, block_v: int) -> Configs:
    def config(m: int, n: int, stages: int) -> Config:
        return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": block_d, "BLOCK_V": block_v}, num_warps=4, num_stages=stages)

    tall, short, tall_shallow, short_shallow = config(128, 32, 3), config(64, 64, 3), config(128, 32, 2), config(64, 64, 2)
    return Configs(
        f"attention {block_d} {block_v}",
        candidates=[tall, short, tall_shallow, short_shallow, config(64, 32, 2), config(32, 32, 1), config(16, 16, 1)],
        shared_bytes=_shared_bytes,
        # Measured with ViT-B/16's heads at batch 1, 8, 32 and 256. Shape class and bytes an element.
        pinned={"NVIDIA H200": {"few 2": short, "many 2": tall, "few 4": short_shallow, "many 4": tall_shallow}}
        if block_d == block_v == 64
        else {},
    )


def _shape_class(batch: int, heads: int, queries: int) -> str:
    """Whether blocks of 128 queries keep every multiprocessor busy with two programs."""
    return "many" if batch * heads * triton.cdiv(queries, 128) >= 2 * multiprocessors() else "few"


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: softmax(query @ key.T * scale) @ value for every head.

    query: (batch, heads, queries, head_size); key: (batch, heads, keys, head_size); value: (batch, heads, keys, value_size);
    any strides, head sizes up to 256. scale is 1/sqrt(head_size) unless given. is_causal: query i sees keys 0 to i.
    attn_mask, dropout_p and enable_gqa are not supported. The result is (batch, heads, queries, value_size) and lies in
    memory as (batch, queries, heads, value_size), so `result.transpose(1, 2).flatten(2)` is a view of tokens.
    """
    check_forward_only("scaled_dot_product_attention", query=query, key=key, value=value)
    for name, given in (("attn_mask", attn_mask is not None), ("dropout_p", dropout_p != 0), ("enable_gqa", enable_gqa)):
        if given:
            raise ValueError(f"scaled_dot_product_attention: {name} is not supported")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if (
        not query.ndim == key.ndim == value.ndim == 4
        or not query.shape[:2] == key.shape[:2] == value.shape[:2]
        or query.shape[3] != key.shape[3]
        or key.shape[2] != value.shape[2]
    ):
        accepted = "(batch, heads, queries, head_size), (batch, heads, keys, head_size), (batch, heads, keys, value_size)"
        raise ValueError(f"scaled_dot_product_attention: {shapes}; accepted: {accepted}")
    batch, heads, queries, head_size = query.shape
    keys, value_size = value.shape[2:]
    if not 0 < head_size <= LARGEST_HEAD or value_size > LARGEST_HEAD:
        raise ValueError(f"scaled_dot_product_attention: {shapes}; head sizes from 1 to {LARGEST_HEAD} are accepted")
    output = torch.empty((batch, queries, heads, value_size), dtype=query.dtype, device=query.device).transpose(1, 2)
    if keys == 0 or output.numel() == 0:
        return output.zero_()
    scale = 1.0 / math.sqrt(head_size) if scale is None else scale
    block_d, block_v = (max(16, triton.next_power_of_2(size)) for size in (head_size, value_size))

    def launch(config: Config) -> None:
        attention_kernel[(batch * heads * triton.cdiv(queries, config.blocks["BLOCK_M"]),)](
            query, key, value, output, scale, heads, queries, keys,
            *query.stride(), *key.stride(), *value.stride(), *output.stride()[:3], head_size, value_size,
            CAUSAL=is_causal, PRECISION=dot_precision(query.dtype), **config.options(),
        )  # fmt: skip

    if INTERPRETER:
        m, n = (min(max(16, triton.next_power_of_2(size)), 256) for size in (queries, keys))
        launch(Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": block_d, "BLOCK_V": block_v}))
        return output
    launch(_configs(block_d, block_v).choose(_shape_class(batch, heads, queries), query.dtype, launch))
    return output
