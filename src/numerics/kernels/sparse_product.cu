// The product of a sparse matrix with a small batch of rows, and the transposition that it reads through.
//
// Why: with several rows most columns are active in some row, so each weight is read once and meets all rows: a lane is a
// row. Rows of x lie far apart, so x is transposed first and lanes read neighbours.
//
// transpose: x [rows, width] -> by_channel [width, stride], stride >= rows; grid (ceil(width / 32), ceil(rows / 32)). Places
// between `rows` and `stride` are left as they are.
// sparse_product: the weights by rows: those of output o are starts[o]..starts[o + 1], `inputs` ascending; bias [outputs] in
// float32, or null; y [rows, outputs]; grid (ceil(outputs / 32), ceil(rows / 32)).
// Inputs of zero are skipped, as sparse_decode.cu does, and the sum has its order: within the segments that its warps
// have, then over the segments. So a row has the same bits from either kernel.
#include "selection.cuh"

constexpr u32 OUTPUTS_OF_WARP = LANES / WARPS;

struct Tile {
    float values[LANES][LANES + 1];
};

template <class T> __device__ void transpose(const T* x, T* by_channel, u32 rows, u32 width, u32 stride, Tile& tile) {
    u32 channel = blockIdx.x * LANES, row = blockIdx.y * LANES, lane = lane_number();
    for (u32 r = warp_number(); r < LANES; r += WARPS)
        if (row + r < rows && channel + lane < width)
            tile.values[r][lane] = to_float(x[u64(row + r) * width + channel + lane]);
    __syncthreads();
    for (u32 c = warp_number(); c < LANES; c += WARPS)
        if (row + lane < rows && channel + c < width)
            by_channel[u64(channel + c) * stride + row + lane] = from_float<T>(tile.values[lane][c]);
}

KERNEL transpose_f32(const float* x, float* by_channel, u32 rows, u32 width, u32 stride) {
    __shared__ Tile tile;
    transpose(x, by_channel, rows, width, stride, tile);
}

KERNEL transpose_bf16(const Bf16* x, Bf16* by_channel, u32 rows, u32 width, u32 stride) {
    __shared__ Tile tile;
    transpose(x, by_channel, rows, width, stride, tile);
}

template <class T>
__device__ void sparse_product(const T* by_channel, const u32* starts, const u16* inputs, const T* weights,
                               const float* bias, T* y, u32 rows, u32 width, u32 outputs, u32 stride, Tile& tile) {
    u32 lane = lane_number(), segment = segment_of(width);
    u32 row = blockIdx.y * LANES + lane;
    for (u32 own = 0; own < OUTPUTS_OF_WARP; own++) {
        u32 offset = warp_number() * OUTPUTS_OF_WARP + own;
        u32 o = blockIdx.x * LANES + offset;
        if (o >= outputs) break;
        float total = bias ? bias[o] : 0.0f;
        float part = 0.0f;
        u32 segment_end = segment;
        for (u32 n = starts[o]; n < starts[o + 1]; n++) {
            u32 channel = inputs[n];
            for (; channel >= segment_end; segment_end += segment) {
                total += part;
                part = 0.0f;
            }
            float value = row < rows ? to_float(by_channel[u64(channel) * stride + row]) : 0.0f;
            // Skipped like an inactive channel: zero times an infinite weight would not be zero.
            if (value != 0.0f) part = fmaf(value, to_float(weights[n]), part);
        }
        tile.values[lane][offset] = total + part;
    }
    __syncthreads();
    u32 o = blockIdx.x * LANES + lane;
    for (u32 r = warp_number(); r < LANES; r += WARPS) {
        u32 to = blockIdx.y * LANES + r;
        if (to < rows && o < outputs) y[u64(to) * outputs + o] = from_float<T>(tile.values[r][lane]);
    }
}

KERNEL sparse_product_f32(const float* by_channel, const u32* starts, const u16* inputs, const float* weights,
                          const float* bias, float* y, u32 rows, u32 width, u32 outputs, u32 stride) {
    __shared__ Tile tile;
    sparse_product(by_channel, starts, inputs, weights, bias, y, rows, width, outputs, stride, tile);
}

KERNEL sparse_product_bf16(const Bf16* by_channel, const u32* starts, const u16* inputs, const Bf16* weights,
                           const float* bias, Bf16* y, u32 rows, u32 width, u32 outputs, u32 stride) {
    __shared__ Tile tile;
    sparse_product(by_channel, starts, inputs, weights, bias, y, rows, width, outputs, stride, tile);
}
