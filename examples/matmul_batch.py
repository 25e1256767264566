"""A batch of matrix products, C[b] = A[b] B[b], a program for each tile of the result; checked against PyTorch.

    python examples/matmul_batch.py

matmul_batch.cu is the same in CUDA C++. With no GPU this runs in Triton's interpreter.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the package is found from any folder

import torch

from vitcourse import runtime  # before triton: it decides between GPU and interpreter

# ruff: isort: split
import triton
import triton.language as tl


# kernel: begin
@triton.jit
def matmul_batch_kernel(a_ptr, b_ptr, c_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    batch = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + batch * M * K + m * K + k[None, :], mask=(m < M) & (k[None, :] < K), other=0.0)
        b = tl.load(b_ptr + batch * K * N + k[:, None] * N + n, mask=(k[:, None] < K) & (n < N), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(c_ptr + batch * M * N + m * N + n, total, mask=(m < M) & (n < N))


# kernel: end


def matmul_batch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(batches, M, K) and (batches, K, N), contiguous, to (batches, M, N)."""
    (batches, M, K), N = a.shape, b.shape[2]
    c = torch.empty((batches, M, N), dtype=a.dtype, device=a.device)
    # launch: begin
    blocks = (triton.cdiv(N, 16), triton.cdiv(M, 16), batches)
    matmul_batch_kernel[blocks](a, b, c, M, N, K, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16)
    # launch: end
    return c


def main() -> int:
    batches, M, N, K = 3, 37, 29, 50
    a = (torch.arange(batches * M * K) * 7 % 11 - 5).float().reshape(batches, M, K)
    b = (torch.arange(batches * K * N) * 5 % 13 - 6).float().reshape(batches, K, N)
    c = matmul_batch(a.to(runtime.DEVICE), b.to(runtime.DEVICE))
    largest = (c.cpu().double() - a.double() @ b.double()).abs().max().item()
    print(f"{batches} products of {M} x {N} x {K}, largest error {largest:g}")
    return int(largest != 0.0)  # small whole numbers: float32 is exact


if __name__ == "__main__":
    sys.exit(main())
