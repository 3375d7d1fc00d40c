// Rotary positions: pairs of channels of every head turned by an angle of the row's own, in place; the gradient turns back.
//
// Shapes: x [rows, heads * d_head]; cosines, sines [rows, pairs] in float32; grid (rows). Of each head the first 2 * pairs
// channels are turned, (a, b) -> (a cos - b sin, b cos + a sin). `neighbours`: channel 2i goes with 2i + 1, otherwise i with
// i + pairs. `back`: the other way round, for the gradient.
#include "device.cuh"

template <class T>
__device__ void rotate(T* x, const float* cosines, const float* sines, u32 width, u32 d_head, u32 pairs, u32 neighbours,
                       u32 back) {
    x += u64(blockIdx.x) * width;
    cosines += u64(blockIdx.x) * pairs;
    sines += u64(blockIdx.x) * pairs;
    u32 heads = width / d_head;
    for (u32 n = threadIdx.x; n < heads * pairs; n += THREADS) {
        u32 head = n / pairs, pair = n % pairs;
        T* first = x + head * d_head + (neighbours ? 2 * pair : pair);
        T* second = first + (neighbours ? 1 : pairs);
        float a = to_float(*first), b = to_float(*second);
        float cosine = cosines[pair], sine = back ? -sines[pair] : sines[pair];
        *first = from_float<T>(a * cosine - b * sine);
        *second = from_float<T>(b * cosine + a * sine);
    }
}

KERNEL rotary_f32(float* x, const float* cosines, const float* sines, u32 width, u32 d_head, u32 pairs, u32 neighbours,
                  u32 back) {
    rotate(x, cosines, sines, width, d_head, pairs, neighbours, back);
}

KERNEL rotary_bf16(Bf16* x, const float* cosines, const float* sines, u32 width, u32 d_head, u32 pairs, u32 neighbours,
                   u32 back) {
    rotate(x, cosines, sines, width, d_head, pairs, neighbours, back);
}
