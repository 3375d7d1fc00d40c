// The magnitude mask: after every step a matrix keeps its `keep` largest weights, the first among equals, and loses the others.
//
// training/weight_mask.rs is the oracle. The launches of one matrix, all on the device, without a word to the host:
//   1. mask_begin, grid (1): the search is set to `keep`, the counts to zero
//   2. mask_protect, grid (lines), where weights are protected: the bits of the `protect` largest of each line are set
//   3. adamw_f32 has counted level 0, or mask_count does: grid (any)
//   4. mask_narrow, grid (1); then mask_count and mask_narrow for levels 1 and 2
//   5. mask_equals, grid (chunks): how many weights of each chunk are at the threshold
//   6. mask_offsets, grid (1): how many before it
//   7. mask_apply, grid (chunks): weights go, and a bf16 copy is made for the passes to read
//
// Shapes: weights [count] in float32; search [1], counts [BUCKETS]; equals [chunks], chunks = ceil(count / MASK_CHUNK);
// protected [ceil(count / 32)] bits, zero at first, or null; copy [count] or null. `keep` is below `count`, or none of this
// is launched. A protected weight counts as infinite.
#include "selection.cuh"
#include "weight_mask.cuh"

constexpr u32 MASK_CHUNK = 4096;

__device__ inline u32 rank_of(const float* weights, const u32* is_protected, u64 n) {
    if (is_protected && is_protected[n / LANES] >> n % LANES & 1u) return INFINITY_BITS;
    return magnitude_bits(weights[n]);
}

KERNEL mask_begin(Search* search, u32* counts, u64 keep) {
    for (u32 b = threadIdx.x; b < BUCKETS; b += THREADS) counts[b] = 0;
    if (threadIdx.x == 0) *search = Search{keep == 0 ? 0xffffffffu : 0u, 0, keep};
}

// Line l has `length` weights, weights[l * line_stride + i * stride]: rows or columns of a matrix.
KERNEL mask_protect(const float* weights, u32* is_protected, u32 length, u64 line_stride, u64 stride, u32 protect) {
    __shared__ Selection shared;
    Turn turn;
    u64 first = blockIdx.x * line_stride;
    auto magnitude = [&](u32 i) { return magnitude_bits(weights[first + i * stride]); };
    Threshold threshold = find_threshold(magnitude, length, protect, shared, turn);
    visit_kept(magnitude, length, threshold, shared, [&](u32 i, bool stays) {
        u64 n = first + i * stride;
        // A weight of zero is not worth a place.
        if (stays && magnitude(i) != 0) atomicOr(&is_protected[n / LANES], 1u << n % LANES);
    });
}

KERNEL mask_count(const float* weights, const u32* is_protected, const Search* search, u32* counts, u64 count) {
    __shared__ u32 bins[BUCKETS];
    clear_bins(bins);
    u32 found = search->bits, level = search->level;
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < count; n += u64(gridDim.x) * THREADS) {
        u32 rank = rank_of(weights, is_protected, n);
        if (is_candidate(rank, found, level)) atomicAdd(&bins[bucket_of(rank, level)], 1u);
    }
    add_bins(bins, counts);
}

// Finds the bucket that the weight of the wanted rank is in, and clears the counts for the next level.
KERNEL mask_narrow(Search* search, u32* counts) {
    __shared__ u64 sums[THREADS];
    constexpr u32 OWN = BUCKETS / THREADS;
    u64 room = search->room;
    u32 level = search->level, bits = search->bits;
    // Thread t has the t-th highest buckets.
    u32 highest = BUCKETS - 1 - threadIdx.x * OWN;
    u64 own = 0;
    for (u32 b = 0; b < OWN; b++) own += counts[highest - b];
    sums[threadIdx.x] = own;
    // Behind the barrier all have read the search, and one may change it.
    __syncthreads();
    u64 above = 0;
    for (u32 thread = 0; thread < threadIdx.x; thread++) above += sums[thread];
    if (room > above && room <= above + own) {
        u32 bucket = highest;
        while (room > above + counts[bucket]) above += counts[bucket--];
        *search = Search{bits | bucket << shift_of(level), level + 1, room - above};
    } else if (room == 0 && threadIdx.x == 0) {
        search->level = level + 1;
    }
    for (u32 b = 0; b < OWN; b++) counts[highest - b] = 0;
}

KERNEL mask_equals(const float* weights, const u32* is_protected, const Search* search, u32* equals, u64 count) {
    __shared__ Reduction<u32> shared;
    Turn turn;
    u64 first = u64(blockIdx.x) * MASK_CHUNK, end = smaller(count, first + MASK_CHUNK);
    u32 found = 0;
    for (u64 n = first + threadIdx.x; n < end; n += THREADS) found += rank_of(weights, is_protected, n) == search->bits;
    found = block_sum(found, shared, turn);
    if (threadIdx.x == 0) equals[blockIdx.x] = found;
}

// Each of equals becomes the sum of those before it; past 2^32 - 1 there are no weights to count.
KERNEL mask_offsets(u32* equals, u32 chunks) {
    __shared__ u32 sums[THREADS];
    u32 own = (chunks + THREADS - 1) / THREADS;
    u32 first = smaller(chunks, threadIdx.x * own), end = smaller(chunks, first + own);
    u32 sum = 0;
    for (u32 c = first; c < end; c++) sum += equals[c];
    sums[threadIdx.x] = sum;
    __syncthreads();
    u32 before = 0;
    for (u32 thread = 0; thread < threadIdx.x; thread++) before += sums[thread];
    for (u32 c = first; c < end; c++) {
        u32 here = equals[c];
        equals[c] = before;
        before += here;
    }
}

KERNEL mask_apply(float* weights, const u32* is_protected, const Search* search, const u32* equals, Bf16* copy,
                  u64 count) {
    __shared__ Selection shared;
    u64 first = u64(blockIdx.x) * MASK_CHUNK;
    u32 here = u32(smaller(count - first, u64(MASK_CHUNK)));
    u64 before = equals[blockIdx.x], room = search->room;
    Threshold threshold{search->bits, room > before ? room - before : 0};
    // The ranks as they were: a weight that goes no longer has its own.
    auto rank = [&](u32 i) { return rank_of(weights, is_protected, first + i); };
    visit_kept(rank, here, threshold, shared, [&](u32 i, bool stays) {
        if (i >= here) return;
        float weight = stays ? weights[first + i] : 0.0f;
        weights[first + i] = weight;
        if (copy) copy[first + i] = from_float<Bf16>(weight);
    });
}
