// AbsTopK: keeps the k entries of a row that are largest in magnitude, and its gradient.
//
// Shapes: x, y [rows, width]; one block a row, grid (rows). `mask` [rows, ceil(width / 32)] has bit i % 32 of word i / 32
// set where the gradient passes: where the result is not zero, or everywhere if k is the width or more. `indices` and
// `values` [rows, k] list the kept entries that are not zero in ascending order, -1 and 0 behind them; `counts` [rows]
// says how many there are. `y`, `mask` and the three of the list may be null: not wanted.
// Dynamic shared memory: 4 bytes for each of the row's entries and 4 for each word of its mask.
#include "selection.cuh"

template <class T>
__device__ void abs_top_k(const T* x, T* y, u32* mask, int* indices, T* values, u32* counts, u32 width, u32 k,
                          u32* room, Selection& shared) {
    Turn turn;
    u32 words = (width + LANES - 1) / LANES;
    float* row = reinterpret_cast<float*>(room);
    u32* kept = room + width;
    x += u64(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) row[i] = to_float(x[i]);
    __syncthreads();
    auto magnitude = [&](u32 i) { return magnitude_bits(row[i]); };
    Threshold threshold = find_threshold(magnitude, width, k, shared, turn);
    u32 listed = 0;
    visit_kept(magnitude, width, threshold, shared, [&](u32 i, bool stays) {
        if (y && i < width) y[u64(blockIdx.x) * width + i] = stays ? x[i] : from_float<T>(0.0f);
        u32 word = __ballot_sync(ALL_LANES, stays && magnitude(i) != 0);
        u32 passes = __ballot_sync(ALL_LANES, stays && (k >= width || magnitude(i) != 0));
        if (lane_number() == 0) {
            kept[i / LANES] = word;
            if (mask) mask[u64(blockIdx.x) * words + i / LANES] = passes;
        }
        listed += __popc(word);
    });
    if (!indices) return;
    if (lane_number() == 0) shared.listed[warp_number()] = listed;
    __syncthreads();
    u32 before = 0, all = 0;
    for (u32 warp = 0; warp < WARPS; warp++) {
        before += warp < warp_number() ? shared.listed[warp] : 0;
        all += shared.listed[warp];
    }
    indices += u64(blockIdx.x) * k;
    values += u64(blockIdx.x) * k;
    u32 segment = segment_of(width);
    u32 from = warp_number() * segment, to = smaller(width, from + segment);
    for (u32 base = from; base < to; base += LANES) {
        u32 word = kept[base / LANES], below = (1u << lane_number()) - 1u;
        if (word >> lane_number() & 1u) {
            u32 place = before + __popc(word & below);
            indices[place] = int(base + lane_number());
            values[place] = x[base + lane_number()];
        }
        before += __popc(word);
    }
    for (u32 place = all + threadIdx.x; place < k; place += THREADS) {
        indices[place] = -1;
        values[place] = from_float<T>(0.0f);
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

KERNEL abs_top_k_f32(const float* x, float* y, u32* mask, int* indices, float* values, u32* counts, u32 width, u32 k) {
    __shared__ Selection shared;
    DYNAMIC_SHARED(u32, room_of_top_k);
    abs_top_k(x, y, mask, indices, values, counts, width, k, room_of_top_k, shared);
}

KERNEL abs_top_k_bf16(const Bf16* x, Bf16* y, u32* mask, int* indices, Bf16* values, u32* counts, u32 width, u32 k) {
    __shared__ Selection shared;
    DYNAMIC_SHARED(u32, room_of_top_k);
    abs_top_k(x, y, mask, indices, values, counts, width, k, room_of_top_k, shared);
}

// The gradient where the mask has a bit, else zero. grad, grad_x [rows, width]; grid (any).
template <class T> __device__ void masked_gradient(const T* grad, const u32* mask, T* grad_x, u32 rows, u32 width) {
    u64 count = u64(rows) * width;
    u32 words = (width + LANES - 1) / LANES;
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < count; n += u64(gridDim.x) * THREADS) {
        u32 i = u32(n % width);
        bool passes = mask[n / width * words + i / LANES] >> i % LANES & 1u;
        grad_x[n] = passes ? grad[n] : from_float<T>(0.0f);
    }
}

KERNEL abs_top_k_backward_f32(const float* grad, const u32* mask, float* grad_x, u32 rows, u32 width) {
    masked_gradient(grad, mask, grad_x, rows, width);
}

KERNEL abs_top_k_backward_bf16(const Bf16* grad, const u32* mask, Bf16* grad_x, u32 rows, u32 width) {
    masked_gradient(grad, mask, grad_x, rows, width);
}
