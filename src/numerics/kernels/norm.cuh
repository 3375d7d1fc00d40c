// The statistics that RMSNorm and LayerNorm divide by, over one row held by a block.
//
// numerics/norm.rs is the oracle: two passes for a LayerNorm (the mean, then the squared deviations from it), and NaN for
// a row whose squares overflow, because the inverse of infinity is zero and a row of zeros would look sound.
#ifndef CAUSEWAY_NORM_CUH
#define CAUSEWAY_NORM_CUH

#include "device.cuh"

// What kernels take as `kind`.
enum NormKind : u32 { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };

struct RowStatistics {
    float mean;
    float inverse;
};

template <class At>
__device__ RowStatistics row_statistics(At at, u32 width, float epsilon, bool centre, Reduction<float>& shared,
                                        Turn& turn) {
    float mean = 0.0f;
    if (centre) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += THREADS) sum += at(i);
        mean = block_sum(sum, shared, turn) / float(width);
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        float deviation = at(i) - mean;
        squares = fmaf(deviation, deviation, squares);
    }
    float mean_square = block_sum(squares, shared, turn) / float(width);
    float inverse = mean_square == infinity() ? not_a_number() : 1.0f / sqrtf(mean_square + epsilon);
    return RowStatistics{mean, inverse};
}

__device__ inline float normalised(float x, RowStatistics statistics, float gain, const float* bias, u32 i) {
    float scaled = (x - statistics.mean) * statistics.inverse * gain;
    return bias ? scaled + bias[i] : scaled;
}

#endif
