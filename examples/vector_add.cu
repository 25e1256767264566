// Adds two vectors of a size that no block divides, and checks every element.
//
//     nvcc -O2 -o vector_add vector_add.cu && ./vector_add
//
// The Triton counterpart is lesson 01, notebooks/01_vector_add.ipynb.

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

// One thread an element.
__global__ void add(const float* x, const float* y, float* output, int size) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element < size) {  // the last block reaches past the end
        output[element] = x[element] + y[element];
    }
}

int main() {
    const int size = 1'000'003, threads = 256;
    const size_t bytes = size * sizeof(float);
    std::vector<float> x(size), y(size), output(size);
    for (int i = 0; i < size; ++i) {
        x[i] = i;
        y[i] = 0.5f * i;
    }

    float *device_x, *device_y, *device_output;
    CHECK(cudaMalloc(&device_x, bytes));
    CHECK(cudaMalloc(&device_y, bytes));
    CHECK(cudaMalloc(&device_output, bytes));
    CHECK(cudaMemcpy(device_x, x.data(), bytes, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(device_y, y.data(), bytes, cudaMemcpyHostToDevice));

    const int blocks = (size + threads - 1) / threads;
    add<<<blocks, threads>>>(device_x, device_y, device_output, size);
    CHECK(cudaGetLastError());  // a launch that was refused
    CHECK(cudaMemcpy(output.data(), device_output, bytes, cudaMemcpyDeviceToHost));  // waits for the kernel

    int wrong = 0;
    for (int i = 0; i < size; ++i) {
        wrong += output[i] != x[i] + y[i];
    }
    std::printf("%d elements in %d blocks of %d threads, %d wrong\n", size, blocks, threads, wrong);
    CHECK(cudaFree(device_x));
    CHECK(cudaFree(device_y));
    CHECK(cudaFree(device_output));
    return wrong != 0;
}
