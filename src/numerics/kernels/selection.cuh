// Which entries of a row are its k largest in magnitude: what AbsTopK, the sparse products and the weight mask share.
//
// A row is anything that gives the bits of its magnitudes by index: `magnitude(i)`, 0 <= i < width. The threshold is found
// by bisection on those bits, which order like the numbers; a NaN has more than infinity's and is among the largest. Among
// equals at the threshold the first stay. This is numerics/abs_top_k.rs, to the bit.
//
// To keep entries in ascending order each warp has a segment of the row to itself: a whole number of words of 32 entries.
#ifndef CAUSEWAY_SELECTION_CUH
#define CAUSEWAY_SELECTION_CUH

#include "device.cuh"

struct Selection {
    Reduction<u32> counts;
    u32 equal[WARPS];
    u32 listed[WARPS];
};

// Entries above the threshold stay, and of those at it the first `room`.
struct Threshold {
    u32 bits;
    u64 room;
};

__device__ inline u32 segment_of(u32 width) { return (width + THREADS - 1) / THREADS * LANES; }

template <class Magnitude>
__device__ u32 count_at_least(Magnitude magnitude, u32 width, u32 bits, Selection& shared, Turn& turn) {
    u32 count = 0;
    for (u32 i = threadIdx.x; i < width; i += THREADS) count += magnitude(i) >= bits;
    return block_sum(count, shared.counts, turn);
}

template <class Magnitude>
__device__ Threshold find_threshold(Magnitude magnitude, u32 width, u32 k, Selection& shared, Turn& turn) {
    if (k == 0) return Threshold{0xffffffffu, 0};
    if (k >= width) return Threshold{0, width};
    u32 largest = 0;
    for (u32 i = threadIdx.x; i < width; i += THREADS) largest = magnitude(i) > largest ? magnitude(i) : largest;
    largest = block_largest(largest, shared.counts, turn);
    // count(low) >= k > count(high).
    u32 low = 0, high = largest + 1;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        u32 above = count_at_least(magnitude, width, middle, shared, turn);
        if (above >= k) low = middle;
        else high = middle;
        // Nothing between `middle` and the k-th magnitude can change which entries stay.
        if (above == k) break;
    }
    return Threshold{low, k - count_at_least(magnitude, width, low + 1, shared, turn)};
}

// Calls `visit(i, stays)` for every entry, each by one thread, a warp's own segment in ascending order, 32 entries at
// once; all lanes call it, also those past the row's end, where `stays` is false. Returns how many entries of the whole
// row are at the threshold. Ends without a barrier.
template <class Magnitude, class Visit>
__device__ u32 visit_kept(Magnitude magnitude, u32 width, Threshold threshold, Selection& shared, Visit visit) {
    u32 lane = lane_number(), warp = warp_number();
    u32 segment = segment_of(width);
    u32 from = warp * segment, to = smaller(width, from + segment);
    u32 equal = 0;
    for (u32 base = from; base < to; base += LANES) {
        u32 i = base + lane;
        equal += __popc(__ballot_sync(ALL_LANES, i < to && magnitude(i) == threshold.bits));
    }
    if (lane == 0) shared.equal[warp] = equal;
    __syncthreads();
    u32 before = 0, all = 0;
    for (u32 other = 0; other < WARPS; other++) {
        before += other < warp ? shared.equal[other] : 0;
        all += shared.equal[other];
    }
    for (u32 base = from; base < to; base += LANES) {
        u32 i = base + lane;
        u32 bits = i < to ? magnitude(i) : 0;
        bool at_threshold = i < to && bits == threshold.bits;
        u32 equals = __ballot_sync(ALL_LANES, at_threshold);
        u32 rank = before + __popc(equals & ((1u << lane) - 1u));
        before += __popc(equals);
        visit(i, i < to && (bits > threshold.bits || (at_threshold && rank < threshold.room)));
    }
    return all;
}

#endif
