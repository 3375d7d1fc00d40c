// Attention of one new token a row over a cache of keys and values, with sinks, grouped heads and sliding windows.
//
// y = sum_j p[j] v[j], p[j] = exp(s[j]) / (exp(sink) + sum_i exp(s[i])), s[j] = q . k[j] * scale, over the keys j up to the row's
// own position that its window still shows. A sink of minus infinity is none.
//
// Shapes: q, y [rows, heads * d_head]; k, v [rows, kv_heads * d_head]; sinks [heads] in float32; d_head is at most THREADS.
// The cache is a pool of blocks of 64 positions, as models/kv_cache.rs lays a slot out: from a block to the next are
// `block_stride` numbers, and at `layer_offset` in it stand a layer's keys by channel [kv_heads, d_head, 64], then its values
// by position [kv_heads, 64, d_head]. `table` [rows, table_width] says which block of the pool holds which 64 positions of
// the row's sequence: with a slot's blocks one after another it is a slot, otherwise pages. `positions` [rows]; -1 is no row
// (a place that a captured graph leaves empty): its result is zero.
//
// Order of a sum: positions go in chunks of 256 counted from the sequence's beginning, a thread a key; a chunk's parts are
// joined in ascending order. attention (grid (heads, rows)) goes through all chunks of a row; attention_chunk (grid (heads,
// rows, chunks)) takes one each, for few rows and long sequences, and attention_join (grid (heads, rows)) joins what they
// left in `parts` [rows, heads, chunks, d_head + 2]. Both ways give the same bits.
#include "device.cuh"

constexpr u32 POSITIONS = 64;
constexpr u32 CHUNK = THREADS;

struct Heads {
    u32 count;
    u32 kv_count;
    u32 d_head;
    float scale;
    float soft_cap;  // 0: none
    u32 window;      // 0: all keys are seen
};

struct Cache {
    u64 block_stride;
    u64 layer_offset;
    u32 table_width;
};

struct AttentionShared {
    float weights[CHUNK];
    float sums[THREADS];
    float q[THREADS];
    Reduction<float> reduction;
};

// What has been seen of a row: the largest score, the sum of exp(score - largest), and in thread d the same sum times
// channel d of the values.
struct Seen {
    float largest;
    float total;
    float weighted;
};

__device__ inline u32 first_seen(u32 count, u32 window) { return window == 0 || count < window ? 0 : count - window; }

__device__ inline Seen only_sink(float sink) { return Seen{sink, sink == -infinity() ? 0.0f : 1.0f, 0.0f}; }

__device__ inline Seen join(Seen one, Seen other) {
    float largest = other.largest > one.largest ? other.largest : one.largest;
    // Equal infinities have no difference.
    float first = one.largest == largest ? 1.0f : exponential(one.largest - largest);
    float second = other.largest == largest ? 1.0f : exponential(other.largest - largest);
    return Seen{largest, one.total * first + other.total * second, one.weighted * first + other.weighted * second};
}

// One chunk of the row that is the `count`-th token of its sequence. All threads return the same largest and total.
template <class T>
__device__ Seen attend_chunk(const T* pool, const int* table, u32 kv_head, u32 count, u32 chunk, Heads heads, Cache cache,
                             AttentionShared& shared, Turn& turn) {
    u32 d_head = heads.d_head;
    u32 begin = chunk * CHUNK, hidden = first_seen(count, heads.window);
    u32 low = hidden > begin ? hidden - begin : 0, high = smaller(CHUNK, count - begin);
    u64 values_offset = u64(heads.kv_count) * d_head * POSITIONS;
    u64 head_offset = cache.layer_offset + u64(kv_head) * d_head * POSITIONS;
    bool seen = threadIdx.x >= low && threadIdx.x < high;
    float score = -infinity();
    if (seen) {
        u32 position = begin + threadIdx.x;
        const T* keys = pool + u64(table[position / POSITIONS]) * cache.block_stride + head_offset + position % POSITIONS;
        float sum = 0.0f;
        for (u32 d = 0; d < d_head; d++) sum = fmaf(shared.q[d], to_float(keys[d * POSITIONS]), sum);
        score = sum * heads.scale;
        if (heads.soft_cap != 0.0f) score = heads.soft_cap * hyperbolic_tangent(score / heads.soft_cap);
    }
    float largest = block_largest(score, shared.reduction, turn);
    float weight = seen ? exponential(score - largest) : 0.0f;
    shared.weights[threadIdx.x] = weight;
    float total = block_sum(weight, shared.reduction, turn);
    // As many groups of threads as have room go through the values side by side, a thread a channel.
    u32 group = threadIdx.x / d_head, groups = THREADS / d_head, d = threadIdx.x % d_head;
    float sum = 0.0f;
    if (group < groups) {
        for (u32 j = group; j < high; j += groups) {
            // What lies outside of the window may be another sequence's, or not a number.
            if (j < low) continue;
            u32 position = begin + j;
            const T* values = pool + u64(table[position / POSITIONS]) * cache.block_stride + head_offset + values_offset;
            sum = fmaf(shared.weights[j], to_float(values[u64(position % POSITIONS) * d_head + d]), sum);
        }
    }
    shared.sums[threadIdx.x] = sum;
    __syncthreads();
    float weighted = 0.0f;
    if (threadIdx.x < d_head)
        for (u32 g = 0; g < groups; g++) weighted += shared.sums[g * d_head + threadIdx.x];
    // The next chunk writes weights and sums behind its reduction's barrier, when all have read these.
    return Seen{largest, total, weighted};
}

template <class T>
__device__ void attention(const T* q, const T* pool, const int* table, const int* positions, const float* sinks, T* y,
                          float* parts, Heads heads, Cache cache, AttentionShared& shared) {
    Turn turn;
    u32 head = blockIdx.x, row = blockIdx.y, d_head = heads.d_head;
    u64 place = (u64(row) * heads.count + head) * d_head;
    if (positions[row] < 0) {
        if (y && threadIdx.x < d_head) y[place + threadIdx.x] = from_float<T>(0.0f);
        return;
    }
    u32 count = u32(positions[row]) + 1;
    u32 first_chunk = first_seen(count, heads.window) / CHUNK, chunks = (count + CHUNK - 1) / CHUNK;
    if (threadIdx.x < d_head) shared.q[threadIdx.x] = to_float(q[place + threadIdx.x]);
    __syncthreads();
    table += u64(row) * cache.table_width;
    u32 kv_head = head / (heads.count / heads.kv_count);
    if (parts) {
        u32 chunk = blockIdx.z;
        if (chunk < first_chunk || chunk >= chunks) return;
        Seen seen = attend_chunk(pool, table, kv_head, count, chunk, heads, cache, shared, turn);
        float* part = parts + ((u64(row) * heads.count + head) * gridDim.z + chunk) * (d_head + 2);
        if (threadIdx.x == 0) {
            part[0] = seen.largest;
            part[1] = seen.total;
        }
        if (threadIdx.x < d_head) part[2 + threadIdx.x] = seen.weighted;
        return;
    }
    Seen all = only_sink(sinks[head]);
    for (u32 chunk = first_chunk; chunk < chunks; chunk++)
        all = join(all, attend_chunk(pool, table, kv_head, count, chunk, heads, cache, shared, turn));
    if (threadIdx.x < d_head) y[place + threadIdx.x] = from_float<T>(all.weighted / all.total);
}

template <class T>
__device__ void attention_join(const float* parts, const int* positions, const float* sinks, T* y, u32 heads, u32 d_head,
                               u32 chunks_of_parts, u32 window) {
    u32 head = blockIdx.x, row = blockIdx.y, d = threadIdx.x;
    if (d >= d_head) return;
    u64 place = u64(row) * heads + head;
    if (positions[row] < 0) {
        y[place * d_head + d] = from_float<T>(0.0f);
        return;
    }
    u32 count = u32(positions[row]) + 1;
    Seen all = only_sink(sinks[head]);
    for (u32 chunk = first_seen(count, window) / CHUNK; chunk * CHUNK < count; chunk++) {
        const float* part = parts + (place * chunks_of_parts + chunk) * (d_head + 2);
        all = join(all, Seen{part[0], part[1], part[2 + d]});
    }
    y[place * d_head + d] = from_float<T>(all.weighted / all.total);
}

// Puts keys and values into the cache. Entry n puts row sources[n] of k, v to place places[n] of the pool's block
// blocks[n]; -1 is none. A row may have several places: the same token of the same text in other sequences. Grid (entries).
template <class T>
__device__ void cache_store(const T* k, const T* v, T* pool, const int* sources, const int* blocks, const int* places,
                            u32 kv_heads, u32 d_head, u64 block_stride, u64 layer_offset) {
    if (blocks[blockIdx.x] < 0) return;
    u32 width = kv_heads * d_head;
    T* keys = pool + u64(blocks[blockIdx.x]) * block_stride + layer_offset;
    T* values = keys + u64(width) * POSITIONS;
    u32 place = u32(places[blockIdx.x]);
    u64 row = u64(sources[blockIdx.x]) * width;
    for (u32 c = threadIdx.x; c < width; c += THREADS) {
        keys[u64(c) * POSITIONS + place] = k[row + c];
        values[u64(c / d_head) * d_head * POSITIONS + place * d_head + c % d_head] = v[row + c];
    }
}

KERNEL attention_f32(const float* q, const float* pool, const int* table, const int* positions, const float* sinks,
                     float* y, u32 heads, u32 kv_heads, u32 d_head, float scale, float soft_cap, u32 window,
                     u64 block_stride, u64 layer_offset, u32 table_width) {
    __shared__ AttentionShared shared;
    attention(q, pool, table, positions, sinks, y, nullptr, Heads{heads, kv_heads, d_head, scale, soft_cap, window},
              Cache{block_stride, layer_offset, table_width}, shared);
}

KERNEL attention_bf16(const Bf16* q, const Bf16* pool, const int* table, const int* positions, const float* sinks,
                      Bf16* y, u32 heads, u32 kv_heads, u32 d_head, float scale, float soft_cap, u32 window,
                      u64 block_stride, u64 layer_offset, u32 table_width) {
    __shared__ AttentionShared shared;
    attention(q, pool, table, positions, sinks, y, nullptr, Heads{heads, kv_heads, d_head, scale, soft_cap, window},
              Cache{block_stride, layer_offset, table_width}, shared);
}

KERNEL attention_chunk_f32(const float* q, const float* pool, const int* table, const int* positions, float* parts,
                           u32 heads, u32 kv_heads, u32 d_head, float scale, float soft_cap, u32 window,
                           u64 block_stride, u64 layer_offset, u32 table_width) {
    __shared__ AttentionShared shared;
    float* none = nullptr;
    attention(q, pool, table, positions, none, none, parts, Heads{heads, kv_heads, d_head, scale, soft_cap, window},
              Cache{block_stride, layer_offset, table_width}, shared);
}

KERNEL attention_chunk_bf16(const Bf16* q, const Bf16* pool, const int* table, const int* positions, float* parts,
                            u32 heads, u32 kv_heads, u32 d_head, float scale, float soft_cap, u32 window,
                            u64 block_stride, u64 layer_offset, u32 table_width) {
    __shared__ AttentionShared shared;
    float* no_sinks = nullptr;
    Bf16* no_result = nullptr;
    attention(q, pool, table, positions, no_sinks, no_result, parts,
              Heads{heads, kv_heads, d_head, scale, soft_cap, window}, Cache{block_stride, layer_offset, table_width},
              shared);
}

KERNEL attention_join_f32(const float* parts, const int* positions, const float* sinks, float* y, u32 heads, u32 d_head,
                          u32 chunks, u32 window) {
    attention_join(parts, positions, sinks, y, heads, d_head, chunks, window);
}

KERNEL attention_join_bf16(const float* parts, const int* positions, const float* sinks, Bf16* y, u32 heads, u32 d_head,
                           u32 chunks, u32 window) {
    attention_join(parts, positions, sinks, y, heads, d_head, chunks, window);
}

KERNEL cache_store_f32(const float* k, const float* v, float* pool, const int* sources, const int* blocks,
                       const int* places, u32 kv_heads, u32 d_head, u64 block_stride, u64 layer_offset) {
    cache_store(k, v, pool, sources, blocks, places, kv_heads, d_head, block_stride, layer_offset);
}

KERNEL cache_store_bf16(const Bf16* k, const Bf16* v, Bf16* pool, const int* sources, const int* blocks,
                        const int* places, u32 kv_heads, u32 d_head, u64 block_stride, u64 layer_offset) {
    cache_store(k, v, pool, sources, blocks, places, kv_heads, d_head, block_stride, layer_offset);
}
