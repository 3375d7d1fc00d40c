// Edits as a table: in some rows of one place a feature is read, a coefficient is found, and columns are added.
//
// Why: rows with different edits go through the model in one batch, and the host knows before the step what is to be done
// to which of them. interventions/row_edits.rs is the oracle: reading in double precision, so that a change of zero is
// exactly zero, and everything that is written in float32, term by term in its order.
//
// Shapes: x [rows of the place, width]. The table has one line for each edited row: grid (lines), `rows` [lines] says which
// row of x it is (-1: none; a line that a captured graph leaves empty), and its edits are edits[starts[line]] up to the next
// start, carried out in this order, each on what those before it left. No two lines name one row of x or of `sources`.
// `sources` [_, source_width] in float32 holds rows that features are read of elsewhere (the sparse model's); they are moved
// where they were read. `channels`, `weights` and `operands` [_] hold what edits need of each of their channels, operands two
// numbers each. `columns` [_, width] holds columns, directions and control vectors. `later` [_, width] takes changes for places
// that the pass has still to come to. `outcomes` [edits, 4]: the feature's value before and after, the norm of what was
// written, the norm of the row before any edit.
// A control arm's edits of the row's own features, and of directions, go on from moved values that the row does not get: their
// `source` is a row that the first of them fills with a copy of what it finds, and what is written is the control alone.
// Dynamic shared memory: 12 * most_channels + 4 * width bytes.
#include "device.cuh"

// What the feature's value, or each of its channels, is moved to.
enum Operation : int {
    ADD = 0,           // a + value
    ADD_RESIDUAL = 1,  // a direction's: by value times the norm of the row
    SET = 2,           // value
    CLAMP = 3,         // between value and bound
    SCALE = 4,         // a * value
    EACH_TO = 5,       // each channel to its operand: ablations and patches
    ADD_EACH = 6,      // each channel by its operand
    CLAMP_EACH = 7,    // each channel between its operands
    SCALE_EACH = 8,    // each channel times value
    SWAP = 9,          // the channels' values in the opposite order
    READ_ONLY = 10,
    GIVEN = 11,  // the change is the column itself
};

// How the change is written.
enum Write : int {
    ITSELF = 0,   // where it was read
    COLUMNS = 1,  // a column for each channel, times `factor`
    LATER = 2,    // the same, into a row of `later`
};

// Where the feature is read: the row itself, nowhere (the move is known whatever the value: ADD and ADD_EACH alone), or a
// row of `sources`.
enum Source : int { OF_ROW = -1, NOWHERE = -2 };

struct Edit {
    double strength;
    double value;
    double bound;
    double squared_norm;  // of a direction; 0: the feature is channels
    int operation;
    int write;
    int source;
    int first_channel;  // in channels, weights and operands
    int channel_count;
    int column;   // the first of the channels' columns, or the direction
    int control;  // the vector that is written in the change's place, as long as it; -1: none
    int later;
    float factor;  // of the columns
    int stream;    // a row of `sources` whose root mean square multiplies the columns too; -1: none
    int stream_width;
    int fills_source;  // 1: the source is filled with a copy of the row first
};

struct EditTables {
    const int* channels;
    const double* weights;
    const double* operands;
    const float* columns;
    float* later;
};

__device__ inline double clamped(double a, double low, double high) { return a < low ? low : a > high ? high : a; }

// Adds `delta` [width], or the control vector at its length, to a row; returns the length. Each thread reads the channels
// of `delta` that it has written.
template <class R>
__device__ float write_change(R* to, const float* delta, float length, const float* control, u32 width) {
    if (length == 0.0f) return length;
    for (u32 d = threadIdx.x; d < width; d += THREADS) {
        float change = control ? length * control[d] : delta[d];
        to[d] = from_float<R>(to_float(to[d]) + change);
    }
    return length;
}

struct Values {
    double before;
    double after;
    float change_norm;
};

// A direction v of the row: its value is <x, v> / <v, v>, and x moves along v.
template <class T>
__device__ Values move_along(T* row, const Edit& edit, const EditTables& tables, const float* control, float* delta,
                             u32 width, Reduction<double>& shared, Turn& turn) {
    const float* direction = tables.columns + u64(edit.column) * width;
    double dot = 0.0, square = 0.0;
    for (u32 d = threadIdx.x; d < width; d += THREADS) {
        double x = to_float(row[d]);
        dot += x * double(direction[d]);
        square += x * x;
    }
    double p = block_sum(dot, shared, turn) / edit.squared_norm;
    square = block_sum(square, shared, turn);
    double distance = 0.0;
    if (edit.operation == ADD) distance = edit.value;
    if (edit.operation == ADD_RESIDUAL) distance = edit.value * sqrt(square / edit.squared_norm);
    if (edit.operation == SET) distance = edit.value - p;
    if (edit.operation == CLAMP) distance = clamped(p, edit.value, edit.bound) - p;
    if (edit.operation == SCALE) distance = p * edit.value - p;
    double along = edit.strength * distance;
    double changed = 0.0, read = 0.0;
    for (u32 d = threadIdx.x; d < width; d += THREADS) {
        delta[d] = float(along * double(direction[d]));
        changed += double(delta[d]) * double(delta[d]);
        read += double(to_float(from_float<T>(to_float(row[d]) + delta[d]))) * double(direction[d]);
    }
    float length = float(sqrt(block_sum(changed, shared, turn)));
    double after = edit.operation == READ_ONLY ? p : block_sum(read, shared, turn) / edit.squared_norm;
    if (edit.operation != READ_ONLY) write_change(row, delta, length, control, width);
    return Values{p, after, length};
}

// Channels with weights: the value is <u, x>. Fills `steps` with each channel's change; the values are moved if `moves`, and
// null where they need not be known.
template <class R>
__device__ Values move_channels(R* values, bool moves, const Edit& edit, const EditTables& tables, float* steps,
                                double* targets, Reduction<double>& shared, Turn& turn) {
    u32 count = u32(edit.channel_count);
    const int* channels = tables.channels + edit.first_channel;
    const double* weights = tables.weights + edit.first_channel;
    const double* operands = tables.operands ? tables.operands + 2 * u64(edit.first_channel) : nullptr;
    double read = 0.0;
    for (u32 c = threadIdx.x; values && c < count; c += THREADS) read += weights[c] * double(to_float(values[channels[c]]));
    double a = block_sum(read, shared, turn);
    if (edit.operation == READ_ONLY) return Values{a, a, 0.0f};
    double target = edit.operation == SET     ? edit.value
                    : edit.operation == CLAMP ? clamped(a, edit.value, edit.bound)
                                              : a * edit.value;
    bool by_value = edit.operation == SET || edit.operation == CLAMP || edit.operation == SCALE;
    bool by_distance = edit.operation == ADD || edit.operation == ADD_EACH;
    double squares = 0.0;
    for (u32 c = threadIdx.x; c < count; c += THREADS) {
        double x = values ? double(to_float(values[channels[c]])) : 0.0, to = x, step;
        if (edit.operation == ADD) {
            step = edit.strength * edit.value * weights[c];
        } else if (edit.operation == ADD_EACH) {
            step = edit.strength * operands[2 * c];
        } else {
            // One channel: its weight is 1 or -1, and its target is met exactly.
            if (by_value) to = count == 1 ? target * weights[0] : x + weights[c] * (target - a);
            if (edit.operation == EACH_TO) to = operands[2 * c];
            if (edit.operation == CLAMP_EACH) to = clamped(x, operands[2 * c], operands[2 * c + 1]);
            if (edit.operation == SCALE_EACH) to = x * edit.value;
            if (edit.operation == SWAP) to = double(to_float(values[channels[count - 1 - c]]));
            step = edit.strength * (to - x);
        }
        // At full strength the target itself, free of the rounding of a sum.
        targets[c] = by_distance || edit.strength != 1.0 ? x + step : to;
        steps[c] = float(step);
        squares += double(steps[c]) * double(steps[c]);
    }
    float length = float(sqrt(block_sum(squares, shared, turn)));
    if (!values) return Values{0.0, 0.0, length};
    // All have read, which a swap needs, and now all write.
    double read_again = 0.0;
    for (u32 c = threadIdx.x; c < count; c += THREADS) {
        R moved = from_float<R>(float(targets[c]));
        if (moves) values[channels[c]] = moved;
        read_again += weights[c] * double(to_float(moved));
    }
    return Values{a, block_sum(read_again, shared, turn), length};
}

template <class T>
__device__ void row_edits(T* x, float* sources, const int* rows, const int* starts, const Edit* edits, EditTables tables,
                          float* outcomes, u32 width, u32 source_width, u32 most_channels, double* room,
                          Reduction<double>& shared) {
    if (rows[blockIdx.x] < 0) return;
    Turn turn;
    double* targets = room;
    float* delta = reinterpret_cast<float*>(room + most_channels);
    float* steps = delta + width;
    T* row = x + u64(rows[blockIdx.x]) * width;
    double square = 0.0;
    for (u32 d = threadIdx.x; d < width; d += THREADS) square += double(to_float(row[d])) * double(to_float(row[d]));
    float base_norm = float(sqrt(block_sum(square, shared, turn)));
    for (int n = starts[blockIdx.x]; n < starts[blockIdx.x + 1]; n++) {
        const Edit& edit = edits[n];
        const float* control = edit.control < 0 ? nullptr : tables.columns + u64(edit.control) * width;
        Values values{0.0, 0.0, 0.0f};
        if (edit.fills_source) {
            float* copy = sources + u64(edit.source) * source_width;
            for (u32 d = threadIdx.x; d < width; d += THREADS) copy[d] = to_float(row[d]);
            __syncthreads();
        }
        bool is_added = edit.write != ITSELF && edit.operation != READ_ONLY;
        if (edit.operation == GIVEN) {
            is_added = true;
        } else if (edit.squared_norm != 0.0) {
            is_added = false;
            if (edit.source == OF_ROW) {
                values = move_along(row, edit, tables, control, delta, width, shared, turn);
            } else {
                float* source = sources + u64(edit.source) * source_width;
                values = move_along<float>(source, edit, tables, nullptr, delta, width, shared, turn);
                if (edit.operation != READ_ONLY && control)
                    write_change(row, delta, values.change_norm, control, width);
            }
        } else if (edit.source == OF_ROW) {
            // What is added by columns takes the place of a move.
            values = move_channels(row, !is_added, edit, tables, steps, targets, shared, turn);
        } else {
            float* source = edit.source == NOWHERE ? nullptr : sources + u64(edit.source) * source_width;
            values = move_channels(source, true, edit, tables, steps, targets, shared, turn);
            // The row's own feature in a control arm: its moved values are the source's, and the row gets the control.
            if (!is_added && edit.operation != READ_ONLY && control)
                write_change(row, delta, values.change_norm, control, width);
        }
        if (is_added) {
            bool given = edit.operation == GIVEN;
            float factor = edit.factor;
            if (edit.stream >= 0) {
                const float* stream = sources + u64(edit.stream) * source_width;
                double stream_square = 0.0;
                for (u32 d = threadIdx.x; d < u32(edit.stream_width); d += THREADS)
                    stream_square += double(stream[d]) * double(stream[d]);
                factor *= float(sqrt(block_sum(stream_square, shared, turn) / double(edit.stream_width)));
            }
            const float* columns = tables.columns + u64(edit.column) * width;
            double squares = 0.0;
            for (u32 d = threadIdx.x; d < width; d += THREADS) {
                float sum = given ? columns[d] : 0.0f;
                for (u32 c = 0; !given && c < u32(edit.channel_count); c++) {
                    float change = steps[c] * factor;
                    if (change != 0.0f) sum += change * columns[u64(c) * width + d];
                }
                delta[d] = sum;
                squares += double(sum) * double(sum);
            }
            float length = float(sqrt(block_sum(squares, shared, turn)));
            values.change_norm = edit.write == LATER
                                     ? write_change(tables.later + u64(edit.later) * width, delta, length, control, width)
                                     : write_change(row, delta, length, control, width);
        }
        if (threadIdx.x == 0) {
            outcomes[4 * u64(n)] = float(values.before);
            outcomes[4 * u64(n) + 1] = float(values.after);
            outcomes[4 * u64(n) + 2] = values.change_norm;
            outcomes[4 * u64(n) + 3] = base_norm;
        }
        // The next edit reads what this one wrote.
        __syncthreads();
    }
}

KERNEL row_edits_f32(float* x, float* sources, const int* rows, const int* starts, const Edit* edits, const int* channels,
                     const double* weights, const double* operands, const float* columns, float* later, float* outcomes,
                     u32 width, u32 source_width, u32 most_channels) {
    __shared__ Reduction<double> shared;
    DYNAMIC_SHARED(double, room_of_edits);
    row_edits(x, sources, rows, starts, edits, EditTables{channels, weights, operands, columns, later}, outcomes, width,
              source_width, most_channels, room_of_edits, shared);
}

KERNEL row_edits_bf16(Bf16* x, float* sources, const int* rows, const int* starts, const Edit* edits, const int* channels,
                      const double* weights, const double* operands, const float* columns, float* later, float* outcomes,
                      u32 width, u32 source_width, u32 most_channels) {
    __shared__ Reduction<double> shared;
    DYNAMIC_SHARED(double, room_of_edits);
    row_edits(x, sources, rows, starts, edits, EditTables{channels, weights, operands, columns, later}, outcomes, width,
              source_width, most_channels, room_of_edits, shared);
}
