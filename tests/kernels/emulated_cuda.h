// CUDA's kernel language on the host: what a .cu file of plain CUDA C needs to be compiled by a C++17 compiler and run.
//
// Why: a kernel's arithmetic and its barriers are tested on machines without a GPU. Blocks run one after another; every
// thread of a block is a fibre that runs until it comes to a barrier or to an operation of its warp, and goes on when all
// others are there. In which order fibres are taken up can be chosen: results that change with it show a missing barrier.
//
// What ends the process with a message and exit status 3: a barrier or an operation of a warp that some thread never
// reaches, one that threads reach from different lines, and a warp's operation that names only some of its lanes. Shared
// memory is filled with a pattern before every block (static memory lies in a section of its own), so what is read
// before it was written spoils the result. Dynamic shared memory is an allocation of exactly the launch's length: with
// the sanitizers that tests/kernels/emulation.rs names, reads and writes outside of any array are found.
//
// Atomic operations exist for integers alone: a kernel that adds floats atomically, in no fixed order, does not compile.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

// How fibres change: by a few instructions where they are known, otherwise by the system's contexts, which are slower.
#if defined(__x86_64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_SWITCH
#else
#include <ucontext.h>
#endif

namespace emulated {

// The emulation itself is not checked: it would take most of the time.
#define EMULATED_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr std::size_t STACK = 64 << 10;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    unsigned volume() const { return x * y * z; }
};

enum class Order { Forwards, Backwards, Shuffled };
enum class State { Ready, AtBarrier, AtWarp, Ended };

struct Fibre {
#if defined(EMULATED_SWITCH)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    char* stack = nullptr;
    Dim3 index;
    unsigned number = 0;
    State state = State::Ready;
    int line = 0;
    // Operations of its warp that it has come to, modulo two.
    unsigned turn = 0;
};

// Where threads have come together, or are about to.
struct Meeting {
    unsigned arrived = 0;
    int line = 0;
};

struct Warp {
    // Two in turn: a lane may come to the next operation before others have left this one, but not to the one after.
    Meeting meetings[2];
    std::uint64_t values[2][WARP];
};

struct Block {
    Fibre fibres[MOST_THREADS];
    Warp warps[MOST_THREADS / WARP];
    unsigned threads = 0;
    Meeting barrier;
    Fibre scheduler;
    Fibre* current = nullptr;
    unsigned ended = 0;
    const std::function<void()>* kernel = nullptr;
    const char* name = "";
    char* dynamic = nullptr;
};

inline Block block;

}  // namespace emulated

inline emulated::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

[[noreturn]] inline void fail(const char* what, int line, int other) {
    std::fprintf(stderr, "%s, block (%u, %u, %u), thread %u: %s (line %d, line %d)\n", block.name, blockIdx.x, blockIdx.y,
                 blockIdx.z, block.current ? block.current->number : 0, what, line, other);
    std::exit(3);
}

#if defined(EMULATED_SWITCH)
// Saves what a function must preserve on the stack, changes the stack, and returns to whoever saved that one.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, . - emulated_switch
)");
#endif

EMULATED_UNCHECKED inline void change(Fibre& from, Fibre& to) {
#if defined(EMULATED_SWITCH)
    emulated_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}

EMULATED_UNCHECKED inline void leave(State state, int line) {
    Fibre& own = *block.current;
    own.state = state;
    own.line = line;
    change(own, block.scheduler);
}

inline void run_thread() {
    (*block.kernel)();
    block.ended++;
    leave(State::Ended, 0);
    std::abort();
}

EMULATED_UNCHECKED inline void prepare(Fibre& fibre) {
    if (!fibre.stack) fibre.stack = static_cast<char*>(std::malloc(STACK));
    fibre.state = State::Ready;
    fibre.turn = 0;
#if defined(EMULATED_SWITCH)
    // As if run_thread's caller had just called emulated_switch: six registers, the address to return to, and a stack
    // that is aligned as it is behind a call.
    std::uintptr_t top = (reinterpret_cast<std::uintptr_t>(fibre.stack) + STACK) & ~std::uintptr_t(15);
    void** pushed = reinterpret_cast<void**>(top - 16);
    *pushed = reinterpret_cast<void*>(&run_thread);
    for (int n = 1; n <= 6; n++) pushed[-n] = nullptr;
    fibre.stack_pointer = pushed - 6;
#else
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, &run_thread, 0);
#endif
}

// Takes part in a meeting of `wanted` threads; the last to come wakes the others, in `first..first + wanted`.
EMULATED_UNCHECKED inline void meet(Meeting& meeting, unsigned wanted, unsigned first, State state, int line) {
    if (meeting.arrived == 0) meeting.line = line;
    if (meeting.line != line) fail("threads meet at different places", meeting.line, line);
    if (++meeting.arrived < wanted) return leave(state, line);
    meeting.arrived = 0;
    for (unsigned n = first; n < first + wanted; n++) block.fibres[n].state = State::Ready;
}

inline void barrier(int line) {
    meet(block.barrier, block.threads, 0, State::AtBarrier, line);
}

// Lays down a value and returns those of the whole warp once all have come.
EMULATED_UNCHECKED inline const std::uint64_t* exchange(unsigned mask, std::uint64_t value, int line) {
    if (mask != 0xffffffffu) fail("an operation of a part of a warp, which is not emulated", line, line);
    Fibre& own = *block.current;
    Warp& warp = block.warps[own.number / WARP];
    unsigned turn = own.turn;
    own.turn ^= 1;
    warp.values[turn][own.number % WARP] = value;
    meet(warp.meetings[turn], WARP, own.number / WARP * WARP, State::AtWarp, line);
    return warp.values[turn];
}

template <class V> EMULATED_UNCHECKED V shuffle(unsigned mask, V value, unsigned from, int line) {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8, "only words and double words are shuffled");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(V));
    const std::uint64_t* all = exchange(mask, bits, line);
    if (from >= WARP) fail("a shuffle from beyond the warp", line, line);
    std::memcpy(&value, &all[from], sizeof(V));
    return value;
}

EMULATED_UNCHECKED inline unsigned ballot(unsigned mask, bool vote, int line) {
    const std::uint64_t* all = exchange(mask, vote, line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < WARP; lane++) votes |= unsigned(all[lane]) << lane;
    return votes;
}

EMULATED_UNCHECKED inline unsigned sum_of_warp(unsigned mask, unsigned value, int line) {
    const std::uint64_t* all = exchange(mask, value, line);
    unsigned sum = 0;
    for (unsigned lane = 0; lane < WARP; lane++) sum += unsigned(all[lane]);
    return sum;
}

EMULATED_UNCHECKED inline unsigned largest_of_warp(unsigned mask, unsigned value, int line) {
    const std::uint64_t* all = exchange(mask, value, line);
    unsigned largest = 0;
    for (unsigned lane = 0; lane < WARP; lane++) largest = all[lane] > largest ? unsigned(all[lane]) : largest;
    return largest;
}

inline unsigned own_lane() { return block.current->number % WARP; }

inline std::uint64_t random(std::uint64_t& state) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

inline void arrange(std::vector<unsigned>& numbers, Order order, std::uint64_t& state) {
    for (unsigned n = 0; n < numbers.size(); n++)
        numbers[n] = order == Order::Backwards ? unsigned(numbers.size()) - 1 - n : n;
    if (order != Order::Shuffled) return;
    for (std::size_t n = numbers.size(); n > 1; n--) std::swap(numbers[n - 1], numbers[random(state) % n]);
}

extern "C" char __start_emulated_shared[] __attribute__((weak));
extern "C" char __stop_emulated_shared[] __attribute__((weak));

// Not by memset, which the sanitizer would stop at the guards between arrays.
EMULATED_UNCHECKED __attribute__((noinline)) inline void fill(char* from, char* to, unsigned char pattern) {
    for (; from < to && reinterpret_cast<std::uintptr_t>(from) % 8 != 0; from++) *(volatile char*)from = char(pattern);
    for (; from + 8 <= to; from += 8) *(volatile std::uint64_t*)from = pattern * 0x0101010101010101u;
    for (; from < to; from++) *(volatile char*)from = char(pattern);
}

struct Launch {
    const char* name;
    Dim3 grid, block;
    std::size_t dynamic_bytes;
    Order order;
    std::uint64_t seed;
    // What shared memory holds at first. 0xff makes every float of it a NaN.
    unsigned char pattern;
};

EMULATED_UNCHECKED inline void run_block(const Launch& launch, std::vector<unsigned>& threads, std::uint64_t& random_state) {
    if (__start_emulated_shared) fill(__start_emulated_shared, __stop_emulated_shared, launch.pattern);
    fill(block.dynamic, block.dynamic + launch.dynamic_bytes, launch.pattern);
    block.barrier = {};
    block.ended = 0;
    for (unsigned n = 0; n < block.threads / WARP; n++) block.warps[n].meetings[0] = block.warps[n].meetings[1] = {};
    for (unsigned n = 0; n < block.threads; n++) prepare(block.fibres[n]);
    while (block.ended < block.threads) {
        bool progress = false;
        if (launch.order == Order::Shuffled) arrange(threads, launch.order, random_state);
        for (unsigned number : threads) {
            Fibre& fibre = block.fibres[number];
            if (fibre.state != State::Ready) continue;
            progress = true;
            block.current = &fibre;
            threadIdx = fibre.index;
            change(block.scheduler, fibre);
        }
        if (progress) continue;
        for (unsigned n = 0; n < block.threads; n++) {
            Fibre& fibre = block.fibres[n];
            block.current = &fibre;
            if (fibre.state == State::AtBarrier) fail("waits at a barrier that not all threads reach", fibre.line, 0);
            if (fibre.state == State::AtWarp) fail("waits for lanes that never come", fibre.line, 0);
        }
    }
    block.current = nullptr;
}

inline void run(const Launch& launch, const std::function<void()>& kernel) {
    block.name = launch.name;
    block.kernel = &kernel;
    gridDim = launch.grid;
    blockDim = launch.block;
    unsigned count = launch.block.volume();
    if (count == 0 || count > MOST_THREADS || count % WARP != 0) fail("a block is not of whole warps", 0, 0);
    block.threads = count;
    for (unsigned n = 0; n < count; n++) {
        unsigned x = launch.block.x, y = launch.block.y;
        block.fibres[n].number = n;
        block.fibres[n].index = {n % x, n / x % y, n / x / y};
    }
    block.dynamic = static_cast<char*>(std::malloc(launch.dynamic_bytes));
    std::uint64_t random_state = launch.seed * 2 + 1;
    std::vector<unsigned> threads(count), blocks(launch.grid.volume());
    arrange(threads, launch.order, random_state);
    arrange(blocks, launch.order, random_state);
    for (unsigned n : blocks) {
        unsigned x = launch.grid.x, y = launch.grid.y;
        blockIdx = {n % x, n / x % y, n / x / y};
        run_block(launch, threads, random_state);
    }
    std::free(block.dynamic);
}

}  // namespace emulated

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("emulated_shared")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulated::block.dynamic)

#define __syncthreads() emulated::barrier(__LINE__)
#define __syncwarp(...) ((void)emulated::exchange(0xffffffffu, 0, __LINE__))
#define __shfl_sync(mask, value, from) emulated::shuffle(mask, value, unsigned(from), __LINE__)
#define __shfl_xor_sync(mask, value, lanes) emulated::shuffle(mask, value, emulated::own_lane() ^ unsigned(lanes), __LINE__)
// A lane without a partner keeps its own value.
#define __shfl_up_sync(mask, value, by) \
    emulated::shuffle(mask, value, emulated::own_lane() - (unsigned(by) <= emulated::own_lane() ? unsigned(by) : 0u), __LINE__)
#define __shfl_down_sync(mask, value, by) \
    emulated::shuffle(mask, value, emulated::own_lane() + (unsigned(by) + emulated::own_lane() < 32u ? unsigned(by) : 0u), __LINE__)
#define __ballot_sync(mask, vote) emulated::ballot(mask, vote, __LINE__)
#define __any_sync(mask, vote) (emulated::ballot(mask, vote, __LINE__) != 0)
#define __all_sync(mask, vote) (emulated::ballot(mask, vote, __LINE__) == 0xffffffffu)
#define __reduce_add_sync(mask, value) emulated::sum_of_warp(mask, value, __LINE__)
#define __reduce_max_sync(mask, value) emulated::largest_of_warp(mask, value, __LINE__)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
// No fibre is interrupted, so a plain operation is atomic.
inline unsigned atomicAdd(unsigned* at, unsigned x) { return std::exchange(*at, *at + x); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long x) { return std::exchange(*at, *at + x); }
inline unsigned atomicOr(unsigned* at, unsigned x) { return std::exchange(*at, *at | x); }
inline unsigned atomicMax(unsigned* at, unsigned x) { return std::exchange(*at, *at > x ? *at : x); }
template <class V> V atomicAdd(V* at, V x) = delete;
