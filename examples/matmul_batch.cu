// A batch of matrix products, C[b] = A[b] B[b], a thread for each element of the result; checked against the CPU.
//
//     nvcc -O2 -o matmul_batch matmul_batch.cu && ./matmul_batch
//
// matmul_batch.py is the same in Triton. This is the plain kernel, to be read beside it, and no fast one: neither uses what
// lesson 06 does about tiles in shared memory and tensor cores.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                      \
    do {                                                                                 \
        cudaError_t status = (call);                                                     \
        if (status != cudaSuccess) {                                                     \
            std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status));         \
            std::exit(1);                                                                \
        }                                                                                \
    } while (0)

// kernel: begin
__global__ void matmul_batch(const float* a, const float* b, float* c, int M, int N, int K) {
    int batch = blockIdx.z;
    int m = blockIdx.y * blockDim.y + threadIdx.y;
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= M || n >= N) return;

    const float* a_row = a + (size_t)batch * M * K + m * K;  // row m of A[batch]
    const float* b_column = b + (size_t)batch * K * N + n;   // column n of B[batch]
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) {
        sum += a_row[k] * b_column[k * N];
    }
    c[(size_t)batch * M * N + m * N + n] = sum;
}
// kernel: end

int main() {
    const int batches = 3, M = 37, N = 29, K = 50;
    std::vector<float> a(batches * M * K), b(batches * K * N), c(batches * M * N);
    for (size_t i = 0; i < a.size(); ++i) a[i] = (float)(i * 7 % 11) - 5.0f;
    for (size_t i = 0; i < b.size(); ++i) b[i] = (float)(i * 5 % 13) - 6.0f;

    float *device_a, *device_b, *device_c;
    CHECK(cudaMalloc(&device_a, a.size() * sizeof(float)));
    CHECK(cudaMalloc(&device_b, b.size() * sizeof(float)));
    CHECK(cudaMalloc(&device_c, c.size() * sizeof(float)));
    CHECK(cudaMemcpy(device_a, a.data(), a.size() * sizeof(float), cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(device_b, b.data(), b.size() * sizeof(float), cudaMemcpyHostToDevice));

    // launch: begin
    dim3 threads(16, 16);
    dim3 blocks((N + 15) / 16, (M + 15) / 16, batches);
    matmul_batch<<<blocks, threads>>>(device_a, device_b, device_c, M, N, K);
    // launch: end
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(c.data(), device_c, c.size() * sizeof(float), cudaMemcpyDeviceToHost));

    double largest = 0.0;
    for (int batch = 0; batch < batches; ++batch) {
        for (int m = 0; m < M; ++m) {
            for (int n = 0; n < N; ++n) {
                double sum = 0.0;
                for (int k = 0; k < K; ++k) {
                    sum += (double)a[(batch * M + m) * K + k] * b[(batch * K + k) * N + n];
                }
                largest = std::fmax(largest, std::fabs(c[(batch * M + m) * N + n] - sum));
            }
        }
    }
    std::printf("%d products of %d x %d x %d, largest error %g\n", batches, M, N, K, largest);
    CHECK(cudaFree(device_a));
    CHECK(cudaFree(device_b));
    CHECK(cudaFree(device_c));
    return largest != 0.0;  // small whole numbers: float32 is exact
}
