// Kernels with one fault each, which the emulation must find: what tests/kernels.rs proves it with. out, x [THREADS].
#include "device.cuh"

// None: every thread reads its neighbour's number behind a barrier.
KERNEL fault_none(const float* x, float* out) {
    __shared__ float row[THREADS];
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row[(threadIdx.x + 1) % THREADS];
}

KERNEL fault_missing_barrier(const float* x, float* out) {
    __shared__ float row[THREADS];
    row[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = row[(threadIdx.x + 1) % THREADS];
}

KERNEL fault_barrier_in_a_branch(const float* x, float* out) {
    if (threadIdx.x != 77) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

KERNEL fault_unwritten_shared(const float* x, float* out) {
    __shared__ float row[THREADS];
    if (threadIdx.x != 77) row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}

KERNEL fault_past_buffer(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x + 1]; }

// The index goes through memory, or the compiler would see the fault itself.
KERNEL fault_past_static_shared(const float* x, float* out) {
    __shared__ float row[THREADS];
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    volatile u32 next = threadIdx.x + 1;
    float* any = row;
    out[threadIdx.x] = any[next];
}

KERNEL fault_past_dynamic_shared(const float* x, float* out) {
    DYNAMIC_SHARED(float, dynamic_row);
    dynamic_row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = dynamic_row[threadIdx.x + 1];
}
