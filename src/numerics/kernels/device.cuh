// What every kernel here is written with: how a block is divided, bfloat16, reductions of fixed order, the exponential.
//
// Why: plain CUDA C without libraries, so that the same text is compiled by NVRTC, by nvcc, and by the system's C++
// compiler with tests/kernels/emulated_cuda.h in front of it.
//
// Every kernel runs in blocks of THREADS threads, whatever its shapes. A sum over a row is taken by each thread over its
// stride, by the lanes of a warp in a butterfly, and over the warps in ascending order: which numbers meet when depends on
// the row's width alone, so a row has the same bits alone and in a batch. Sums of floats never go through atomics.
// Products and sums are contracted only where fmaf is written: compile with --fmad=false, or the device's rounding is not
// the one that was tested.
#ifndef CAUSEWAY_DEVICE_CUH
#define CAUSEWAY_DEVICE_CUH

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 LANES = 32;
constexpr u32 WARPS = 8;
constexpr u32 THREADS = LANES * WARPS;
enum : u32 { ALL_LANES = 0xffffffffu };
constexpr u32 INFINITY_BITS = 0x7f800000u;

// An array whose length the launch says. Under emulation it is a buffer of exactly that length.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif
#define KERNEL extern "C" __global__ void __launch_bounds__(256)

__device__ inline u32 lane_number() { return threadIdx.x % LANES; }
__device__ inline u32 warp_number() { return threadIdx.x / LANES; }
__device__ inline float infinity() { return __uint_as_float(INFINITY_BITS); }
__device__ inline float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ inline u32 magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ inline u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
__device__ inline u64 smaller(u64 a, u64 b) { return a < b ? a : b; }

// The upper half of a float32.
struct Bf16 {
    u16 bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <class T> __device__ T from_float(float x);

template <> __device__ inline float from_float<float>(float x) { return x; }

// To the nearest, ties to even. The carry of rounding would turn some NaNs into infinity or zero.
template <> __device__ inline Bf16 from_float<Bf16>(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > INFINITY_BITS) return Bf16{u16(bits >> 16 | 0x40u)};
    return Bf16{u16((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <class V> __device__ V warp_sum(V x) {
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) x = x + __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// NaN is never the larger, on either side, so that all lanes agree.
template <class V> __device__ V larger(V a, V b) { return b > a || a != a ? b : a; }

template <class V> __device__ V warp_largest(V x) {
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// Whole numbers have the same sum in every order, and an instruction that takes it at once.
template <> __device__ inline u32 warp_sum<u32>(u32 x) { return __reduce_add_sync(ALL_LANES, x); }
template <> __device__ inline u32 warp_largest<u32>(u32 x) { return __reduce_max_sync(ALL_LANES, x); }

// What the warps of a block hand to one another. Two halves in turn: a warp that is one reduction ahead writes the other
// half, and two ahead it cannot be, so one barrier a reduction is enough.
template <class V> struct Reduction {
    V parts[2][WARPS];
};

// Each thread's own count of the reductions it has taken part in, modulo two; the same in all of them.
struct Turn {
    u32 half = 0;
};

template <class V> __device__ V block_sum(V x, Reduction<V>& shared, Turn& turn) {
    x = warp_sum(x);
    V* parts = shared.parts[turn.half];
    turn.half ^= 1;
    if (lane_number() == 0) parts[warp_number()] = x;
    __syncthreads();
    V total = parts[0];
    for (u32 warp = 1; warp < WARPS; warp++) total = total + parts[warp];
    return total;
}

template <class V> __device__ V block_largest(V x, Reduction<V>& shared, Turn& turn) {
    x = warp_largest(x);
    V* parts = shared.parts[turn.half];
    turn.half ^= 1;
    if (lane_number() == 0) parts[warp_number()] = x;
    __syncthreads();
    V largest = parts[0];
    for (u32 warp = 1; warp < WARPS; warp++) largest = larger(largest, parts[warp]);
    return largest;
}

// e^x by the polynomial of numerics/exponential.rs, so that both sides round alike: 0 below about -87, saturating near
// the largest float above 88, NaN for NaN.
__device__ inline float exponential(float x) {
    float clamped = x < -87.3f ? -87.3f : x > 88.0f ? 88.0f : x;
    const float round = 12582912.0f;
    float shifted = clamped * 1.44269504088896340736f + round;
    float n = shifted - round;
    float r = clamped - n * 0.6933594f + n * 2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    float power = __uint_as_float((__float_as_uint(shifted) - __float_as_uint(round) + 127u) << 23);
    return x < -87.3f ? 0.0f : p * power;
}

__device__ inline float hyperbolic_tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

#endif
