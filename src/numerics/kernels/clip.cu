// The gradient's norm, and what clipping multiplies it by: what adamw_f32 reads, without a word to the host.
//
// Shapes: gradient [count] in float32 of one parameter, squares [chunks] in doubles, chunks = ceil(count / 4096) with those of
// all parameters one after another. gradient_squares, grid (chunks of the parameter), is given where its own begin;
// clip_scale, grid (1), sums them in ascending order within a fixed division between threads: `scale` [1], `norm` [1].
// mode 0: the norm is at most `limit`; 1: its root mean square over all `count` entries is; 2: that is made `limit`.
#include "device.cuh"

constexpr u32 GRADIENT_CHUNK = 4096;
constexpr double TINY = 2.2250738585072014e-308;

enum ClipMode : u32 { CLIP_NORM = 0, CLIP_RMS = 1, NORMALISE_RMS = 2 };

KERNEL gradient_squares(const float* gradient, double* squares, u64 count) {
    __shared__ Reduction<double> shared;
    Turn turn;
    u64 first = u64(blockIdx.x) * GRADIENT_CHUNK, end = smaller(count, first + GRADIENT_CHUNK);
    double sum = 0.0;
    for (u64 n = first + threadIdx.x; n < end; n += THREADS) sum += double(gradient[n]) * double(gradient[n]);
    sum = block_sum(sum, shared, turn);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

KERNEL clip_scale(const double* squares, float* scale, double* norm, u32 chunks, u64 count, u32 mode, double limit) {
    __shared__ Reduction<double> shared;
    Turn turn;
    double sum = 0.0;
    for (u32 chunk = threadIdx.x; chunk < chunks; chunk += THREADS) sum += squares[chunk];
    double found = sqrt(block_sum(sum, shared, turn));
    if (threadIdx.x != 0) return;
    double measure = mode == CLIP_NORM ? found : found / sqrt(double(count));
    double ratio = limit / (measure > TINY ? measure : TINY);
    *norm = found;
    *scale = float(mode != NORMALISE_RMS && ratio > 1.0 ? 1.0 : ratio);
}
