// AdamW with the gradient scaled by clipping; the counting that finds the weight mask's threshold begins in the same pass.
//
// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, w = w shrink - step m / (sqrt(v square_scale) + epsilon): the
// expression of training/optimizer.rs, term by term. `shrink` is 1 - rate * decay, `step` the rate over the first moment's
// correction, `square_scale` one over the second's. `scale` [1] multiplies the gradient; it is read from memory, so that a
// step need not wait for the host to know the gradient's norm.
//
// Shapes: weights, gradient, mean, square [count] in float32; grid (any). `counts` [BUCKETS] is added to: the new weights'
// magnitudes by their upper bits, for weight_mask.cu; null where the mask protects weights or there is none.
#include "weight_mask.cuh"

KERNEL adamw_f32(float* weights, const float* gradient, float* mean, float* square, const float* scale, u32* counts,
                 u64 count, float beta1, float beta2, float step, float square_scale, float epsilon, float shrink) {
    __shared__ u32 bins[BUCKETS];
    if (counts) clear_bins(bins);
    float clip = *scale;
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < count; n += u64(gridDim.x) * THREADS) {
        float g = gradient[n] * clip;
        float m = beta1 * mean[n] + (1.0f - beta1) * g;
        float v = beta2 * square[n] + (1.0f - beta2) * g * g;
        float weight = weights[n] * shrink - step * m / (sqrtf(v * square_scale) + epsilon);
        mean[n] = m;
        square[n] = v;
        weights[n] = weight;
        if (counts) atomicAdd(&bins[bucket_of(magnitude_bits(weight), 0)], 1u);
    }
    if (counts) add_bins(bins, counts);
}
