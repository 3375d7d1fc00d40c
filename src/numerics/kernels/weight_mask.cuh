// How the weight mask's threshold is found: the bits of the magnitudes, eleven or ten at a time, from the upper ones down.
//
// Each level divides what is left into BUCKETS by its next bits; the bucket that the wanted weight falls into is all that
// the next level looks at. Three levels give all 31 bits: the exact threshold, by integer counts that are the same in
// whatever order blocks add them.
#ifndef CAUSEWAY_WEIGHT_MASK_CUH
#define CAUSEWAY_WEIGHT_MASK_CUH

#include "device.cuh"

constexpr u32 BUCKETS = 2048;

// Where the search stands, and at its end: weights above `bits` stay, and of those at it the first `room`.
struct Search {
    u32 bits;
    u32 level;
    u64 room;
};

__device__ inline u32 shift_of(u32 level) { return level == 0 ? 20 : level == 1 ? 10 : 0; }

__device__ inline u32 bucket_of(u32 bits, u32 level) { return bits >> shift_of(level) & (level == 0 ? 2047u : 1023u); }

// Whether what levels before this one have found is true of these bits.
__device__ inline bool is_candidate(u32 bits, u32 found, u32 level) {
    return level == 0 || bits >> shift_of(level - 1) == found >> shift_of(level - 1);
}

__device__ inline void clear_bins(u32* bins) {
    for (u32 b = threadIdx.x; b < BUCKETS; b += THREADS) bins[b] = 0;
    __syncthreads();
}

__device__ inline void add_bins(const u32* bins, u32* counts) {
    __syncthreads();
    for (u32 b = threadIdx.x; b < BUCKETS; b += THREADS)
        if (bins[b] != 0) atomicAdd(&counts[b], bins[b]);
}

#endif
