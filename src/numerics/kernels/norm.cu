// RMSNorm (kind 1) and LayerNorm (kind 2).
//
// Shapes: x [rows, width], y [rows, stride], of which the first `width` are written (positional channels may follow, or go
// before); gain, bias [width] in float32, bias null where there is none; one block a row, grid (rows).
// Dynamic shared memory: 4 bytes for each of the row's entries, so that the row is read from memory once.
#include "norm.cuh"

template <class T>
__device__ void norm(const T* x, const float* gain, const float* bias, T* y, u32 width, u32 stride,
                     float epsilon, u32 kind, float* row, Reduction<float>& shared) {
    Turn turn;
    u64 first = u64(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) row[i] = to_float(x[first + i]);
    // Each thread reads back only what it has written.
    auto at = [&](u32 i) { return row[i]; };
    RowStatistics statistics = row_statistics(at, width, epsilon, kind == LAYER_NORM, shared, turn);
    for (u32 i = threadIdx.x; i < width; i += THREADS)
        y[u64(blockIdx.x) * stride + i] = from_float<T>(normalised(row[i], statistics, gain[i], bias, i));
}

KERNEL norm_f32(const float* x, const float* gain, const float* bias, float* y, u32 width, u32 stride,
                float epsilon, u32 kind) {
    __shared__ Reduction<float> shared;
    DYNAMIC_SHARED(float, row_of_norm);
    norm(x, gain, bias, y, width, stride, epsilon, kind, row_of_norm, shared);
}

KERNEL norm_bf16(const Bf16* x, const float* gain, const float* bias, Bf16* y, u32 width, u32 stride,
                 float epsilon, u32 kind) {
    __shared__ Reduction<float> shared;
    DYNAMIC_SHARED(float, row_of_norm);
    norm(x, gain, bias, y, width, stride, epsilon, kind, row_of_norm, shared);
}
