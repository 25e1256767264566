"""Answers to the exercises of lesson 08: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import math

import torch

import vitcourse.kernels

# ruff: isort: split
import triton
import triton.language as tl

# ---- Offsets and bytes ----------------------------------------------------------------------------------------------------


def offset(batch, token, which, head, d, tokens, heads, head_size):
    return (batch * tokens + token) * 3 * heads * head_size + (which * heads + head) * head_size + d


def offset_by_tensor(*case):
    """The same, from the strides of a tensor of that shape."""
    *index, tokens, heads, head_size = case
    strides = torch.empty((9, tokens, 3, heads, head_size), device="meta").stride()
    return sum(i * stride for i, stride in zip(index, strides))


def traffic(batch, heads, tokens, head_size):
    return 8 * batch * heads * tokens * (head_size + tokens)


def traffic_by_kernel(batch, heads, tokens, head_size):
    vectors, scores = tokens * head_size, tokens * tokens
    kernels = [vectors + vectors + scores, scores + scores, scores + vectors + vectors]
    return batch * heads * sum(2 * elements for elements in kernels)


# ---- A batch of products: the plain mistakes, each switched on by its name ----------------------------------------------------


@triton.jit
def product(
    a_ptr, b_ptr, c_ptr, M, N, K,
    a_batch_stride, a_row_stride, a_column_stride, b_batch_stride, b_row_stride, b_column_stride,
    MISTAKE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    if MISTAKE == "tiles exchanged":
        m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if MISTAKE != "no batch" and MISTAKE != "no batch for a":
        a_ptr += batch * a_batch_stride
    if MISTAKE != "no batch" and MISTAKE != "no batch for b":
        b_ptr += batch * b_batch_stride
    if MISTAKE != "no batch for c":
        c_ptr += batch * M * N
    a_ptrs = a_ptr + m[:, None] * a_row_stride + k[None, :] * a_column_stride
    b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :] * b_column_stride
    if MISTAKE == "b transposed":
        b_ptrs = b_ptr + k[:, None] * b_column_stride + n[None, :] * b_row_stride
    if MISTAKE == "a as contiguous":
        a_ptrs = a_ptr + m[:, None] * K + k[None, :]
    if MISTAKE == "no column stride":
        b_ptrs = b_ptr + k[:, None] * b_row_stride + n[None, :]
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if MISTAKE == "float16":
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float16)
    if MISTAKE == "sum in a's type":
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), a_ptr.dtype.element_ty)
    last = K
    if MISTAKE == "one step":
        last = tl.minimum(K, BLOCK_K)
    if MISTAKE == "whole steps":
        last = K // BLOCK_K * BLOCK_K
    for start in range(0, last, BLOCK_K):
        left = K - start
        if MISTAKE == "k < K":
            left = K
        a_mask = (m[:, None] < M) & (k[None, :] < left)
        b_mask = (k[:, None] < left) & (n[None, :] < N)
        if MISTAKE == "no mask along K":
            a_mask = (m[:, None] < M) & (k[None, :] >= 0)
            b_mask = (k[:, None] >= 0) & (n[None, :] < N)
        if MISTAKE == "no mask":
            a = tl.load(a_ptrs)
            b = tl.load(b_ptrs)
        else:
            a = tl.load(a_ptrs, mask=a_mask, other=0.0)
            b = tl.load(b_ptrs, mask=b_mask, other=0.0)
        if MISTAKE == "float16":
            accumulator += tl.dot(a, b).to(tl.float16)
        elif MISTAKE == "sum in a's type":
            accumulator += tl.dot(a, b).to(a_ptr.dtype.element_ty)
        elif MISTAKE == "last step":
            accumulator = tl.dot(a, b)
        else:
            accumulator = tl.dot(a, b, accumulator)
        if MISTAKE == "no stride along K":
            a_ptrs += BLOCK_K
            b_ptrs += BLOCK_K
        elif MISTAKE == "no stride along K for b":
            a_ptrs += BLOCK_K * a_column_stride
            b_ptrs += BLOCK_K
        elif MISTAKE == "a stays":
            b_ptrs += BLOCK_K * b_row_stride
        elif MISTAKE == "b stays":
            a_ptrs += BLOCK_K * a_column_stride
        elif MISTAKE != "stays":
            a_ptrs += BLOCK_K * a_column_stride
            b_ptrs += BLOCK_K * b_row_stride
        if MISTAKE == "stores in the loop":
            tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator, mask=(m[:, None] < M) & (n[None, :] < N))
    c_ptrs = c_ptr + m[:, None] * N + n[None, :]
    if MISTAKE == "stored transposed":
        c_ptrs = c_ptr + m[:, None] + n[None, :] * M
    if MISTAKE == "no mask on store":
        tl.store(c_ptrs, accumulator)
    else:
        tl.store(c_ptrs, accumulator, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def product_flat(
    a_ptr, b_ptr, c_ptr, M, N, K,
    a_batch_stride, a_row_stride, a_column_stride, b_batch_stride, b_row_stride, b_column_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Right, written differently: a grid of one axis, addresses made anew in each step, early second dimensions."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles = tiles_m * tl.cdiv(N, BLOCK_N)
    batch = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    row = (tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    column = (tile // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(K, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        a_where = batch * a_batch_stride + row * a_row_stride + k[None, :] * a_column_stride
        b_where = batch * b_batch_stride + k[:, None] * b_row_stride + column * b_column_stride
        a = tl.load(a_ptr + a_where, (row < M) & (k[None, :] < K), 0.0)
        b = tl.load(b_ptr + b_where, (k[:, None] < K) & (column < N), 0.0)
        total += tl.dot(a, b, input_precision="ieee")
    tl.store(c_ptr + (batch * M + row) * N + column, total.to(c_ptr.dtype.element_ty), (row < M) & (column < N))


def tiles_of(batch, M, N, block):
    return (batch, triton.cdiv(M, block), triton.cdiv(N, block))


def products(mistake="", grid=tiles_of, block=32, output=None, change=lambda x: x, strides=lambda a, b: (a, b)):
    """An answer to bmm. strides: those that the kernel is given for a and b, from the true ones."""

    def function(a, b):
        a, b = change(a), change(b)
        (batch, M, K), N = a.shape, b.shape[2]
        c = output(a, b) if output else torch.empty((batch, M, N), dtype=a.dtype, device=a.device)
        a_strides, b_strides = strides(a.stride(), b.stride())
        blocks = {"BLOCK_M": block, "BLOCK_N": block, "BLOCK_K": block}
        product[grid(batch, M, N, block)](a, b, c, M, N, K, *a_strides, *b_strides, MISTAKE=mistake, **blocks)
        return c

    return function


def products_flat(a, b):
    (batch, M, K), N = a.shape, b.shape[2]
    c = a.new_empty((batch, M, N))
    grid = (batch * triton.cdiv(M, 16) * triton.cdiv(N, 64),)
    blocks = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 32}
    product_flat[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), **blocks)
    return c


def entry_by_entry(a, b):
    c = torch.empty((a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device)
    for i in range(len(a)):
        products(output=lambda *_, i=i: c[i : i + 1])(a[i : i + 1], b[i : i + 1])
    return c


def not_contiguous(a, b):
    batch, M, N = a.shape[0], a.shape[1], b.shape[2]
    c = torch.empty((batch, N, M), dtype=a.dtype, device=a.device)
    products(output=lambda *_: c)(b.mT, a.mT)
    return c.mT


def swapped(strides):
    batch, row, column = strides
    return batch, column, row


# ---- Attention over PyTorch's functions ---------------------------------------------------------------------------------------


def softmax(scores):
    return torch.softmax(scores, -1)


def by_view(x, batch, tokens, heads, head_size):
    return x.view(batch, tokens, 3, heads, head_size).permute(2, 0, 3, 1, 4).unbind()


def tokens_first(o):
    return o.transpose(1, 2).reshape(o.shape[0], o.shape[2], -1)


def attention(unpack=by_view, scale=lambda hidden, head_size: head_size**-0.5, weigh=softmax, pack=tokens_first, scores=None):
    def function(qkv, heads):
        batch, tokens, width = qkv.shape
        q, k, v = unpack(qkv, batch, tokens, heads, width // 3 // heads)
        s = scores(q, k) if scores else q @ k.transpose(-2, -1)
        return pack(weigh(s * scale(width // 3, q.shape[-1])) @ v)

    return function


def by_kernels(qkv, heads):
    batch, tokens, width = qkv.shape
    head_size = width // 3 // heads
    q, k, v = (part.flatten(0, 1) for part in by_view(qkv, batch, tokens, heads, head_size))
    scores = vitcourse.kernels.bmm(q, k.mT, scale=1 / math.sqrt(head_size))
    o = vitcourse.kernels.bmm(vitcourse.kernels.softmax(scores, -1), v)
    return o.view(batch, heads, tokens, head_size).transpose(1, 2).reshape(batch, tokens, -1)


def by_pytorch(qkv, heads):
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def head_by_head(qkv, heads):
    q, k, v = (part.chunk(heads, -1) for part in qkv.chunk(3, -1))
    result = torch.empty_like(qkv[:, :, : qkv.shape[2] // 3])
    for head, (one_q, one_k, one_v) in enumerate(zip(q, k, v)):
        size = one_q.shape[-1]
        result[:, :, head * size : (head + 1) * size] = softmax(one_q @ one_k.mT * size**-0.5) @ one_v
    return result


def one_missing(qkv, heads):
    result = head_by_head(qkv, heads)
    unfinished = torch.empty_like(result)
    unfinished[:, :-1] = result[:, :-1]
    return unfinished


def of_parts(choose):
    """An attention whose q, k and v are chosen from the right ones."""
    return attention(lambda *arguments: choose(*by_view(*arguments)))


def unpacked(shape, order):
    return attention(lambda x, b, t, h, d: x.view(*shape(b, t, h, d)).permute(*order).unbind())


def all_as_one(qkv, heads):
    q, k, v = qkv.chunk(3, -1)
    return softmax(q @ k.mT * q.shape[-1] ** -0.5) @ v


def in_place(qkv, heads):
    q = qkv[:, :, : qkv.shape[2] // 3]
    q *= (qkv.shape[2] // 3 // heads) ** -0.5
    return attention(scale=lambda *_: 1.0)(qkv, heads)


def exponentials(scores):
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


WRONG = {
    "head_offset": [
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + (h * 3 + w) * D + d, "head before which"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + (w * D + d) * H + h, "d runs fastest"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + (h * D + d) * 3 + w, "the last, d, runs fastest"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * H * D + (w * H + h) * D + d, "the 3 is missing"),
        (lambda b, t, w, h, d, T, H, D: (b + t) * 3 * H * D + (w * H + h) * D + d, "begins at batch \\* tokens"),
        (lambda b, t, w, h, d, T, H, D: ((b * 3 + w) * T + t) * H * D + h * D + d, "side by side within each token"),
        (lambda b, t, w, h, d, T, H, D: (((b * 3 + w) * H + h) * T + t) * D + d, "heads of a token lie within it"),
        (lambda b, t, w, h, d, T, H, D: t * 3 * H * D + (w * H + h) * D + d, "batch was left out"),
        (lambda b, t, w, h, d, T, H, D: b * T * 3 * H * D + (w * H + h) * D + d, "token was left out"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + h * D + d, "which was left out"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + w * H * D + d, "head was left out"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + (w * H + h) * D, "d was left out"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + (w + h) * D + d, "not head_size"),
        (lambda b, t, w, h, d, T, H, D: (b * T + t) * 3 * H * D + w * H * D + h + d, "head_size, not 1"),
        (lambda *case: 2 * offset(*case), "counts elements"),
        (lambda *case: [offset(*case)], "Return a plain number"),
        (lambda *case: 42, "five products"),
    ],
    "attention_traffic": [
        (lambda *case: traffic(*case) // 2, "each has 2 bytes"),
        (lambda *case: traffic(*case) * 2, "2 bytes here, not 4"),
        (lambda b, h, t, d: 8 * b * h * t * d, "what one kernel would move"),
        (lambda b, h, t, d: 2 * b * h * (4 * t * d + 2 * t * t), "scores were counted once"),
        (lambda b, h, t, d: 2 * b * h * (4 * t * d + 3 * t * t), "one is missing"),
        (lambda b, h, t, d: 2 * b * h * (4 * t * d + t * t), "One matrix"),
        (lambda b, h, t, d: 2 * b * h * (4 * t * d + 6 * t * t), "scale costs no pass"),
        (lambda b, h, t, d: 2 * b * h * (4 * t * d + 5 * t * t), "no reading either"),
        (lambda b, h, t, d: 2 * b * h * (3 * t * d + 4 * t * t), "output is written as well"),
        (lambda b, h, t, d: 8 * b * h * t * t, "values and the output move too"),
        (lambda b, h, t, d: traffic(b, 1, t, d), "times heads"),
        (lambda b, h, t, d: traffic(1, h, t, d), "times batch"),
        (lambda b, h, t, d: 2 * b * (h * 4 * t * d + 4 * t * t), "own matrix of scores"),
        (lambda b, h, t, d: 2 * h * (4 * b * t * d + 4 * (b * t) ** 2), "do not look at each other"),
        (lambda b, h, t, d: 16 * b * h * t * d, "not tokens x head_size"),
        (lambda b, h, t, d: str(traffic(b, h, t, d)), "Return a plain number"),
        (lambda b, h, t, d: 1000, "Three kernels"),
    ],
    "bmm": [
        (products("no mask"), "(?s)loads outside.*no mask.*k < K - start"),
        (products("no mask along K"), "(?s)loads outside.*k < K - start"),
        (products("sum in a's type"), r"(?s)\(2, 2752\).*in float16.*too few digits"),
        (products("k < K"), "(?s)loads outside.*k counts from 0 in every step"),
        (products("no mask on store"), "(?s)stores outside of c_ptr.*store has no mask"),
        (products("float16"), "three digits"),
        (products("last step"), "(?s)\\(3, 70\\).*last step along K only"),
        (products("last step", block=16), "(?s)\\(3, 70\\).*last step along K only"),
        (products("one step"), "(?s)\\(3, 70\\).*Only the first BLOCK_K"),
        (products("whole steps"), "(?s)\\(3, 5\\).*makes no turn"),
        (products("stays"), "(?s)\\(3, 70\\).*stay at the first step"),
        (products("a stays"), "(?s)a's pointers stay"),
        (products("b stays"), "(?s)b's pointers stay"),
        (products("no stride along K"), "(?s)\\(3, 70\\).*BLOCK_K \\* b_row_stride"),
        (products("no stride along K for b"), "(?s)\\(3, 70\\).*BLOCK_K \\* b_row_stride"),
        (products("b transposed"), "(?s)loads outside of b_ptr|b's row stride and column stride are exchanged"),
        (products("a as contiguous"), "(?s)a transposed.*a is read as if it were contiguous"),
        (products("no column stride"), "(?s)b transposed|b's column stride is left out"),
        (products(strides=lambda a, b: (b, a)), "(?s)strides"),
        (products(strides=lambda a, b: (swapped(a), b)), "(?s)strides"),
        (products("no batch"), "a and b of the first entry"),
        (products("no batch for a"), "a of the first entry"),
        (products("no batch for b"), "b of the first entry"),
        (products("no batch for c"), "Every program stores to the first entry of the batch"),
        (products(grid=lambda batch, M, N, block: (1, *tiles_of(batch, M, N, block)[1:])), "first axis is the batch"),
        (products(grid=lambda batch, M, N, block: (batch, M // block, N // block)), "grid has no programs"),
        (products(grid=lambda batch, M, N, block: (batch, triton.cdiv(M, block), max(1, N // block))), "never stored.*rounded"),
        (products("tiles exchanged"), "(?s)never stored"),
        (products("stored transposed"), "stored transposed"),
        (products("stores in the loop"), "store after the loop"),
        (products(change=lambda x: x.contiguous()), "(?s)was copied first"),
        (not_contiguous, "not contiguous"),
        (entry_by_entry, "(?s)2 kernels were launched.*One launch"),
        (products(output=lambda a, b: torch.empty_like(a)), "Allocate it in that shape"),
        (products(output=lambda a, b: a.new_empty((len(a), a.shape[1], b.shape[2]), dtype=torch.float32)), "wrong type: float32"),
        (torch.bmm, "No kernel was launched"),
    ],
    "plain_attention": [
        (attention(pack=lambda o: o.reshape(o.shape[0], o.shape[2], -1)), "heads are mixed up.*side by side"),
        (attention(scale=lambda hidden, head_size: hidden**-0.5), "root of the hidden size"),
        (attention(scale=lambda hidden, head_size: 1.0), "not scaled"),
        (attention(scale=lambda hidden, head_size: 1 / head_size), "divided by the head size: it is its root"),
        (attention(scale=lambda hidden, head_size: head_size**0.5), "multiplied by the root"),
        (attention(weigh=lambda scores: torch.softmax(scores, -2)), "softmax runs over the queries"),
        (attention(weigh=lambda scores: torch.softmax(scores, 1)), "softmax runs over the heads"),
        (attention(weigh=lambda scores: scores), "no softmax"),
        (attention(weigh=torch.exp), "not divided by their sum"),
        (attention(weigh=exponentials), "(?s)large scores.*89 is infinite"),
        (of_parts(lambda q, k, v: (k, q, v)), "Queries and keys are exchanged"),
        (of_parts(lambda q, k, v: (q, v, k)), "Keys and values are exchanged"),
        (of_parts(lambda q, k, v: (v, k, q)), "Queries and values are exchanged"),
        (of_parts(lambda q, k, v: (q, k, k)), "keys were summed"),
        (of_parts(lambda q, k, v: (q, q, v)), "queries with queries"),
        (unpacked(lambda b, t, h, d: (b, t, h, 3, d), (3, 0, 2, 1, 4)), "heads before the 3"),
        (unpacked(lambda b, t, h, d: (b, t, h, d, 3), (4, 0, 2, 1, 3)), "the 3 last"),
        (unpacked(lambda b, t, h, d: (b, t, 3, d, h), (2, 0, 4, 1, 3)), "head size before the heads"),
        (attention(lambda x, b, t, h, d: [part.reshape(b, h, t, d) for part in x.chunk(3, -1)]), "mixes tokens"),
        (attention(scores=lambda q, k: q @ k), "keys are not transposed"),
        (attention(scores=lambda q, k: q @ k.reshape(*k.shape[:2], k.shape[3], -1)), "keys are not transposed"),
        (all_as_one, "All heads were taken as one"),
        (in_place, "(?s)changed its input qkv.*works in place"),
        (one_missing, "never stored"),
        (attention(pack=lambda o: o), "Allocate it in that shape|shape"),
        (attention(pack=lambda o: tokens_first(o).float()), "(?s)in float16.*wrong type: float32"),
        (attention(pack=lambda o: tokens_first(o) + 1), "step by step"),
        (lambda qkv, heads: qkv.view(len(qkv), 3, heads, 5), "(?s)Your code raised RuntimeError"),
    ],
}  # fmt: skip

RIGHT = {
    "head_offset": [offset, offset_by_tensor],
    "attention_traffic": [traffic, traffic_by_kernel],
    "bmm": [products(), products(block=16), products_flat],
    "plain_attention": [attention(), by_kernels, by_pytorch, head_by_head],
}
