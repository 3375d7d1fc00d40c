// The next token of each row: the largest logit's, or one drawn by its probability.
//
// Why: a token is four bytes, the logits of a vocabulary are some hundred thousand.
//
// Shapes: logits [rows, vocabulary] in float32; inverses [rows], one over the temperature, 0 for the largest logit; shares
// [rows] in 0..1, where in the sum of all weights exp((logit - largest) * inverse) the draw falls; tokens [rows], -1 where a
// logit is not a finite number. Grid (rows).
// Order of the sums: that of numerics/softmax.rs, blocks of 64 weights in 16 lanes; a share falls on the same token.
// Dynamic shared memory: 4 bytes for each block of 64 weights.
#include "device.cuh"

constexpr u32 WEIGHTS = 64;
constexpr u32 SUMS = 16;

__device__ inline float weight_of(float logit, float largest, float inverse) {
    float power = (logit - largest) * inverse;
    return power <= 0.0f ? exponential(power) : 0.0f;
}

__device__ float sum_of_weights(const float* logits, u32 count, float largest, float inverse) {
    float lanes[SUMS] = {};
    u32 whole = count / SUMS * SUMS;
    for (u32 i = 0; i < whole; i += SUMS)
        for (u32 lane = 0; lane < SUMS; lane++) lanes[lane] += weight_of(logits[i + lane], largest, inverse);
    float sum = 0.0f, rest = 0.0f;
    for (u32 lane = 0; lane < SUMS; lane++) sum += lanes[lane];
    for (u32 i = whole; i < count; i++) rest += weight_of(logits[i], largest, inverse);
    return sum + rest;
}

// The token that the share falls on, by one thread.
__device__ int token_at(const float* logits, const float* sums, u32 vocabulary, float largest, float inverse, double share) {
    u32 blocks = (vocabulary + WEIGHTS - 1) / WEIGHTS;
    double total = 0.0;
    for (u32 b = 0; b < blocks; b++) total += double(sums[b]);
    double left = share * total;
    for (u32 b = 0; b < blocks; b++) {
        double inside = sums[b];
        if (inside <= 0.0) continue;
        if (left >= inside) {
            left -= inside;
            continue;
        }
        int last = -1;
        for (u32 i = b * WEIGHTS; i < smaller(vocabulary, (b + 1) * WEIGHTS); i++) {
            float weight = weight_of(logits[i], largest, inverse);
            if (weight <= 0.0f) continue;
            left -= double(weight);
            last = int(i);
            if (left < 0.0) break;
        }
        return last;
    }
    // Rounding has carried the share past all blocks.
    for (u32 i = vocabulary; i-- > 0;)
        if (weight_of(logits[i], largest, inverse) > 0.0f) return int(i);
    return -1;
}

KERNEL draw_f32(const float* logits, const float* inverses, const double* shares, int* tokens, u32 vocabulary) {
    __shared__ Reduction<float> floats;
    __shared__ Reduction<u32> counts;
    DYNAMIC_SHARED(float, sums_of_blocks);
    Turn float_turn, count_turn;
    logits += u64(blockIdx.x) * vocabulary;
    float largest = -infinity();
    u32 at = 0, unusable = 0;
    for (u32 i = threadIdx.x; i < vocabulary; i += THREADS) {
        float logit = logits[i];
        unusable += magnitude_bits(logit) >= INFINITY_BITS;
        if (logit > largest) {
            largest = logit;
            at = i;
        }
    }
    float own = largest;
    largest = block_largest(largest, floats, float_turn);
    // The first of equals has the largest complement.
    at = ~block_largest(own == largest ? ~at : 0u, counts, count_turn);
    unusable = block_sum(unusable, counts, count_turn);
    float inverse = inverses[blockIdx.x];
    if (unusable != 0 || inverse == 0.0f) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = unusable != 0 ? -1 : int(at);
        return;
    }
    for (u32 first = threadIdx.x * WEIGHTS; first < vocabulary; first += THREADS * WEIGHTS)
        sums_of_blocks[first / WEIGHTS] =
            sum_of_weights(logits + first, smaller(WEIGHTS, vocabulary - first), largest, inverse);
    __syncthreads();
    if (threadIdx.x == 0)
        tokens[blockIdx.x] = token_at(logits, sums_of_blocks, vocabulary, largest, inverse, shares[blockIdx.x]);
}
