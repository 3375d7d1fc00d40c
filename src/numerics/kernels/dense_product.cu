// The product of a dense matrix with rows, whose sums have one order whatever the number of rows.
//
// Why: a library picks another kernel, and with it another order of sums, for a row alone than for a batch. Here a row has
// the same bits alone and among others. Weights may be bfloat16: fewer bytes to read, while rows, sums and results stay
// float32.
//
// Shapes: x [rows, width] and y [rows, outputs] in float32; weights [width, outputs], the matrix transposed, so that
// neighbouring threads read neighbouring outputs; bias [outputs] in float32, or null.
// dense_decode: a block takes 32 outputs of at most ROWS_OF_BLOCK rows, and each of its warps one segment of the inputs; grid
// (ceil(outputs / 32), ceil(rows / ROWS_OF_BLOCK)). For few rows, whose product takes as long as reading the weights.
// dense_tile: a block takes a tile of 64 rows and 64 outputs, a thread 4 of each; grid (ceil(outputs / 64), ceil(rows / 64)).
// For many rows.
//
// Order of a sum: inputs are divided into as many segments as a block has warps (segment_of); a segment's products are added
// in ascending order, then the bias and the segments' sums in ascending order: the order of sparse_decode.cu.
#include "selection.cuh"

constexpr u32 ROWS_OF_BLOCK = 4;
constexpr u32 TILE = 64;
constexpr u32 OWN = 4;
constexpr u32 DEPTH = 16;

struct DecodeSums {
    float parts[WARPS][ROWS_OF_BLOCK][LANES];
};

template <class W>
__device__ void dense_decode(const float* x, const W* weights, const float* bias, float* y, u32 rows, u32 width,
                             u32 outputs, DecodeSums& shared) {
    u32 lane = lane_number(), warp = warp_number(), segment = segment_of(width);
    u32 output = blockIdx.x * LANES + lane, first_row = blockIdx.y * ROWS_OF_BLOCK;
    u32 here = smaller(ROWS_OF_BLOCK, rows - first_row);
    u32 from = smaller(width, warp * segment), to = smaller(width, from + segment);
    float sums[ROWS_OF_BLOCK] = {};
    x += u64(first_row) * width;
    if (output < outputs) {
#pragma unroll 8
        for (u32 i = from; i < to; i++) {
            float weight = to_float(weights[u64(i) * outputs + output]);
            for (u32 r = 0; r < ROWS_OF_BLOCK; r++)
                if (r < here) sums[r] = fmaf(x[u64(r) * width + i], weight, sums[r]);
        }
    }
    for (u32 r = 0; r < ROWS_OF_BLOCK; r++) shared.parts[warp][r][lane] = sums[r];
    __syncthreads();
    // A warp a row joins the segments.
    if (warp >= here || output >= outputs) return;
    float total = bias ? bias[output] : 0.0f;
    for (u32 other = 0; other < WARPS; other++) total += shared.parts[other][warp][lane];
    y[u64(first_row + warp) * outputs + output] = total;
}

struct DenseTiles {
    // A column more, so that threads which write one input of neighbouring rows meet different banks.
    float x[DEPTH][TILE + 1];
    float weights[DEPTH][TILE];
};

template <class W>
__device__ void dense_tile(const float* x, const W* weights, const float* bias, float* y, u32 rows, u32 width,
                           u32 outputs, DenseTiles& tiles) {
    u32 segment = segment_of(width);
    u32 first_row = blockIdx.y * TILE, first_output = blockIdx.x * TILE;
    u32 own_row = threadIdx.x / (TILE / OWN) * OWN, own_output = threadIdx.x % (TILE / OWN) * OWN;
    float totals[OWN][OWN];
    for (u32 o = 0; o < OWN; o++) {
        u32 output = first_output + own_output + o;
        float begin = bias && output < outputs ? bias[output] : 0.0f;
        for (u32 r = 0; r < OWN; r++) totals[r][o] = begin;
    }
    for (u32 part = 0; part < WARPS; part++) {
        u32 from = smaller(width, part * segment), to = smaller(width, from + segment);
        float sums[OWN][OWN] = {};
        for (u32 base = from; base < to; base += DEPTH) {
            for (u32 n = threadIdx.x; n < DEPTH * TILE; n += THREADS) {
                u32 row = n / DEPTH, deep = n % DEPTH;
                bool inside = first_row + row < rows && base + deep < to;
                tiles.x[deep][row] = inside ? x[u64(first_row + row) * width + base + deep] : 0.0f;
            }
            for (u32 n = threadIdx.x; n < DEPTH * TILE; n += THREADS) {
                u32 deep = n / TILE, output = n % TILE;
                bool inside = first_output + output < outputs && base + deep < to;
                tiles.weights[deep][output] =
                    inside ? to_float(weights[u64(base + deep) * outputs + first_output + output]) : 0.0f;
            }
            __syncthreads();
            u32 deep_end = smaller(DEPTH, to - base);
            for (u32 deep = 0; deep < deep_end; deep++)
                for (u32 r = 0; r < OWN; r++)
                    for (u32 o = 0; o < OWN; o++)
                        sums[r][o] = fmaf(tiles.x[deep][own_row + r], tiles.weights[deep][own_output + o], sums[r][o]);
            __syncthreads();
        }
        for (u32 r = 0; r < OWN; r++)
            for (u32 o = 0; o < OWN; o++) totals[r][o] += sums[r][o];
    }
    for (u32 r = 0; r < OWN; r++) {
        for (u32 o = 0; o < OWN; o++) {
            u32 row = first_row + own_row + r, output = first_output + own_output + o;
            if (row < rows && output < outputs) y[u64(row) * outputs + output] = totals[r][o];
        }
    }
}

KERNEL dense_decode_f32(const float* x, const float* weights, const float* bias, float* y, u32 rows, u32 width,
                        u32 outputs) {
    __shared__ DecodeSums shared;
    dense_decode(x, weights, bias, y, rows, width, outputs, shared);
}

KERNEL dense_decode_bf16(const float* x, const Bf16* weights, const float* bias, float* y, u32 rows, u32 width,
                         u32 outputs) {
    __shared__ DecodeSums shared;
    dense_decode(x, weights, bias, y, rows, width, outputs, shared);
}

KERNEL dense_tile_f32(const float* x, const float* weights, const float* bias, float* y, u32 rows, u32 width,
                      u32 outputs) {
    __shared__ DenseTiles tiles;
    dense_tile(x, weights, bias, y, rows, width, outputs, tiles);
}

KERNEL dense_tile_bf16(const float* x, const Bf16* weights, const float* bias, float* y, u32 rows, u32 width,
                       u32 outputs) {
    __shared__ DenseTiles tiles;
    dense_tile(x, weights, bias, y, rows, width, outputs, tiles);
}
