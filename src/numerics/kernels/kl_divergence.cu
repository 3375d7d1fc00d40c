// KL(softmax(teacher) || softmax(student)) a row, over the vocabulary in chunks, and its gradient.
//
// Why chunks: logits of a whole batch over a large vocabulary need not be in memory at once; a chunk of both models' is
// made, taken in and forgotten, and made once more for the gradient.
//
// With t, s the logits, T, S their log-sum-exps: KL = sum_i exp(t_i - T) (t_i - s_i) - T + S. A row's state is five doubles: the
// largest t and the sum of exp(t - largest), the same of s, and the sum of exp(t - largest t) (t - s). In float32 the three
// terms would cancel to nothing where teacher and student are close.
//
// Shapes: teacher, student, gradient [rows, width of the chunk]; state [rows, 5]; grid (rows).
// kl_begin, grid (ceil(rows / THREADS)), then kl_take_in for each chunk in ascending order, then kl_end, grid
// (ceil(rows / THREADS)): losses [rows] in nats, totals [rows, 2] = T, S. kl_gradient: scales[row] * (exp(s - S) - exp(t - T)),
// of a chunk. A row's bits depend on where its vocabulary is cut, so the cut must not depend on the batch.
#include "device.cuh"

constexpr u32 STATE = 5;

KERNEL kl_begin(double* state, u32 rows) {
    u32 row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    state += u64(row) * STATE;
    state[0] = state[2] = -infinity();
    state[1] = state[3] = state[4] = 0.0;
}

// What a sum of exponentials is multiplied by when its largest grows.
__device__ inline double rescaled(double from, float to) {
    return from == double(to) ? 1.0 : double(exponential(float(from) - to));
}

template <class T>
__device__ void take_in(const T* teacher, const T* student, double* state, u32 width, Reduction<float>& floats,
                        Reduction<double>& doubles) {
    Turn largest_turn, sum_turn;
    teacher += u64(blockIdx.x) * width;
    student += u64(blockIdx.x) * width;
    state += u64(blockIdx.x) * STATE;
    float old_t = float(state[0]), old_s = float(state[2]);
    float most_t = old_t, most_s = old_s;
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        float t = to_float(teacher[i]), s = to_float(student[i]);
        most_t = t > most_t ? t : most_t;
        most_s = s > most_s ? s : most_s;
    }
    most_t = block_largest(most_t, floats, largest_turn);
    most_s = block_largest(most_s, floats, largest_turn);
    double sum_t = 0.0, sum_s = 0.0, cross = 0.0;
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        float t = to_float(teacher[i]), s = to_float(student[i]);
        double weight = exponential(t - most_t);
        sum_t += weight;
        sum_s += double(exponential(s - most_s));
        // A token that the teacher rules out adds nothing, however far apart the two are.
        if (weight != 0.0) cross += weight * (double(t) - double(s));
    }
    sum_t = block_sum(sum_t, doubles, sum_turn);
    sum_s = block_sum(sum_s, doubles, sum_turn);
    cross = block_sum(cross, doubles, sum_turn);
    if (threadIdx.x != 0) return;
    double factor_t = rescaled(old_t, most_t), factor_s = rescaled(old_s, most_s);
    state[0] = most_t;
    state[1] = state[1] * factor_t + sum_t;
    state[2] = most_s;
    state[3] = state[3] * factor_s + sum_s;
    state[4] = state[4] * factor_t + cross;
}

KERNEL kl_take_in_f32(const float* teacher, const float* student, double* state, u32 width) {
    __shared__ Reduction<float> floats;
    __shared__ Reduction<double> doubles;
    take_in(teacher, student, state, width, floats, doubles);
}

KERNEL kl_take_in_bf16(const Bf16* teacher, const Bf16* student, double* state, u32 width) {
    __shared__ Reduction<float> floats;
    __shared__ Reduction<double> doubles;
    take_in(teacher, student, state, width, floats, doubles);
}

KERNEL kl_end(const double* state, float* losses, float* totals, u32 rows) {
    u32 row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    state += u64(row) * STATE;
    double total_t = state[0] + log(state[1]), total_s = state[2] + log(state[3]);
    losses[row] = float(state[4] / state[1] - total_t + total_s);
    totals[2 * u64(row)] = float(total_t);
    totals[2 * u64(row) + 1] = float(total_s);
}

template <class T>
__device__ void kl_gradient(const T* teacher, const T* student, const float* totals, const float* scales, T* gradient,
                            u32 width) {
    u64 first = u64(blockIdx.x) * width;
    float total_t = totals[2 * u64(blockIdx.x)], total_s = totals[2 * u64(blockIdx.x) + 1], scale = scales[blockIdx.x];
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        float t = to_float(teacher[first + i]), s = to_float(student[first + i]);
        gradient[first + i] = from_float<T>(scale * (exponential(s - total_s) - exponential(t - total_t)));
    }
}

KERNEL kl_gradient_f32(const float* teacher, const float* student, const float* totals, const float* scales,
                       float* gradient, u32 width) {
    kl_gradient(teacher, student, totals, scales, gradient, width);
}

KERNEL kl_gradient_bf16(const Bf16* teacher, const Bf16* student, const float* totals, const float* scales,
                        Bf16* gradient, u32 width) {
    kl_gradient(teacher, student, totals, scales, gradient, width);
}
