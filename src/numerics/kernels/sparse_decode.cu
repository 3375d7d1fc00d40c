// One step of a sparse layer in decoding: norm, AbsTopK, and the product with the columns of the channels that stayed.
//
// Why: a quarter of the channels is active and one weight in 64 or fewer is not zero, so a row's product reads some
// thousand weights; a launch for each of the three would cost more than the work.
//
// Shapes: x [rows, width], y [rows, outputs]; grid (rows, panels). The outputs are divided into panels of `panel` (the last
// may be shorter); a block makes one panel of one row and finds the norm and the active channels anew. The weights are
// stored by columns within each panel: those of channel c in panel p are starts[p * (width + 1) + c] up to the next start;
// `indices` count from the panel's first output and ascend within a column. With one panel this is the layout of
// numerics/columns. `gain` and `norm_bias` [width] and `bias` [outputs] are float32; the two biases may be null; kind 0
// norms nothing, k of `width` or more keeps everything. `active` [rows, width] takes what entered the product; it may be
// null.
//
// Order of a sum: each warp adds the active channels of its own segment (segment_of) in ascending order, then the bias and
// the warps' sums are added in ascending order. sparse_product.cu has the same order and gives the same bits.
// Dynamic shared memory: 4 * (width + WARPS * panel) bytes.
#include "norm.cuh"
#include "selection.cuh"

struct DecodeShared {
    Reduction<float> sums;
    Selection selection;
};

template <class T>
__device__ void norm_top_k_product(const T* x, const float* gain, const float* norm_bias, const u32* starts,
                                   const u16* indices, const T* weights, const float* bias, T* active, T* y, u32 width,
                                   u32 outputs, u32 panel, float epsilon, u32 kind, u32 k, float* row,
                                   DecodeShared& shared) {
    Turn sums_turn, counts_turn;
    u32 lane = lane_number(), warp = warp_number();
    float* all_sums = row + width;
    float* sums = all_sums + warp * panel;
    x += u64(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) row[i] = to_float(x[i]);
    for (u32 o = lane; o < panel; o += LANES) sums[o] = 0.0f;
    if (kind != NO_NORM) {
        auto at = [&](u32 i) { return row[i]; };
        RowStatistics statistics = row_statistics(at, width, epsilon, kind == LAYER_NORM, shared.sums, sums_turn);
        // Rounded as the norm's own kernel would store it: fused or not, the same channels stay.
        for (u32 i = threadIdx.x; i < width; i += THREADS)
            row[i] = to_float(from_float<T>(normalised(row[i], statistics, gain[i], norm_bias, i)));
    }
    __syncthreads();
    auto magnitude = [&](u32 i) { return magnitude_bits(row[i]); };
    Threshold threshold = find_threshold(magnitude, width, k, shared.selection, counts_turn);
    starts += u64(blockIdx.y) * (width + 1);
    visit_kept(magnitude, width, threshold, shared.selection, [&](u32 i, bool stays) {
        float value = stays ? row[i] : 0.0f;
        if (active && blockIdx.y == 0 && i < width) active[u64(blockIdx.x) * width + i] = from_float<T>(value);
        u32 word = __ballot_sync(ALL_LANES, value != 0.0f);
        u32 base = i - lane;
        while (word != 0) {
            u32 source = __ffs(word) - 1;
            word &= word - 1;
            float channel = __shfl_sync(ALL_LANES, value, source);
            u32 end = starts[base + source + 1];
            for (u32 n = starts[base + source] + lane; n < end; n += LANES) {
                u32 o = indices[n];
                sums[o] = fmaf(channel, to_float(weights[n]), sums[o]);
            }
            // The next column may have the same outputs.
            __syncwarp();
        }
    });
    __syncthreads();
    u32 first = blockIdx.y * panel;
    u32 here = smaller(panel, outputs - first);
    for (u32 o = threadIdx.x; o < here; o += THREADS) {
        float total = bias ? bias[first + o] : 0.0f;
        for (u32 other = 0; other < WARPS; other++) total += all_sums[other * panel + o];
        y[u64(blockIdx.x) * outputs + first + o] = from_float<T>(total);
    }
}

KERNEL norm_top_k_product_f32(const float* x, const float* gain, const float* norm_bias, const u32* starts,
                              const u16* indices, const float* weights, const float* bias, float* active, float* y,
                              u32 width, u32 outputs, u32 panel, float epsilon, u32 kind, u32 k) {
    __shared__ DecodeShared shared;
    DYNAMIC_SHARED(float, row_and_sums);
    norm_top_k_product(x, gain, norm_bias, starts, indices, weights, bias, active, y, width, outputs, panel, epsilon,
                       kind, k, row_and_sums, shared);
}

KERNEL norm_top_k_product_bf16(const Bf16* x, const float* gain, const float* norm_bias, const u32* starts,
                               const u16* indices, const Bf16* weights, const float* bias, Bf16* active, Bf16* y,
                               u32 width, u32 outputs, u32 panel, float epsilon, u32 kind, u32 k) {
    __shared__ DecodeShared shared;
    DYNAMIC_SHARED(float, row_and_sums);
    norm_top_k_product(x, gain, norm_bias, starts, indices, weights, bias, active, y, width, outputs, panel, epsilon,
                       kind, k, row_and_sums, shared);
}
