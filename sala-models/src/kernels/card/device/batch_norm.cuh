// Batch norm of rows of channels, with what follows it in a residual block; `kernels/batch_norm/mod.rs` has the
// equations.

#pragma once

#include "tiles.cuh"

// x, sums: of each chunk of rows and each channel, the sum of x - k and of its square, for the channel's first value k.
// Without k, squares of values far from 0 would lose the spread.
template <class S> struct NormSums {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * WIDTH * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Tile tile(a, 0, block);
        const S *x = array<const S>(a, 0);
        const bool packed = tile.packed() && aligned(a, 0);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T sum[WIDTH] = {}, square[WIDTH] = {};
            const int count = tile.count(t);
            if (count > 0) {
                const int64_t channel = tile.channel(t);
                const Pack<S> origin = load(x + channel, count, packed);
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const Pack<S> values = load(x + row * tile.channels + channel, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        const T shifted = wide(values.at[i]) - wide(origin.at[i]);
                        sum[i] += shifted;
                        square[i] += shifted * shifted;
                    }
                }
            }
            for (int i = 0; i < WIDTH; i++) {
                sums[i * THREADS + t] = sum[i];
                sums[(WIDTH + i) * THREADS + t] = square[i];
            }
        }
        write_tile_sums<T, 2>(tile, tile.chunk(a, 0, block), sums, array<double>(a, 1));
    }
};

// x, sums, mean, inverse, running mean, running variance; numbers: rows, channels, chunks. Mean and 1 / sqrt(variance + eps)
// of each channel, from the sums, or from the running statistics if there are no chunks. factors: eps, and the
// share with which the running statistics move: not at all if it is 0, and where the batch's are not finite.
template <class S> struct NormStatistics {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(double);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const int64_t channels = a.numbers[1], chunks = a.numbers[2];
        const double rows = (double)a.numbers[0], share = a.factors[1];
        double *sums = (double *)memory;
        add_chunks<2>(array<const double>(a, 1), chunks, channels, block, sums);
        EACH_THREAD(t) {
            const int64_t channel = (int64_t)block * (THREADS / TEAM) + t / TEAM;
            if (t % TEAM == 0 && channel < channels) {
                T *running_mean = array<T>(a, 4) + channel, *running_variance = array<T>(a, 5) + channel;
                double mean, variance;
                if (chunks > 0) {
                    const double off = sums[t] / rows;
                    mean = (double)wide(array<const S>(a, 0)[channel]) + off;
                    variance = sums[THREADS + t] / rows - off * off;
                    if (variance < 0.0) variance = 0.0;
                } else {
                    mean = (double)*running_mean;
                    variance = (double)*running_variance;
                }
                array<T>(a, 2)[channel] = (T)mean;
                array<T>(a, 3)[channel] = (T)(1.0 / sqrt(variance + a.factors[0]));
                if (share > 0.0) {
                    const double unbiased = variance * (rows / (rows - 1.0));
                    const T new_mean = (T)((1.0 - share) * (double)*running_mean + share * mean);
                    const T new_variance = (T)((1.0 - share) * (double)*running_variance + share * unbiased);
                    // x - x is 0 for a finite x, and NaN for any other.
                    if (new_mean - new_mean == T(0) && new_variance - new_variance == T(0)) {
                        *running_mean = new_mean;
                        *running_variance = new_variance;
                    }
                }
            }
        }
    }
};

// x, y, mean, inverse, weight, bias, residual: y = (x - mean) inverse weight + bias + residual, cut off at 0 if
// numbers[5] says so. Numbers[6] says whether parameters are of the type computed in.
template <class S> struct Normalise {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool relu = a.numbers[5] != 0, computed = a.numbers[6] != 0, added = given(a, 6);
        const bool packed = tile.packed() && aligned(a, 0) && aligned(a, 1) && aligned(a, 6);
        EACH_THREAD(t) {
            const int count = tile.count(t);
            if (count > 0) {
                const int64_t channel = tile.channel(t);
                T mean[WIDTH] = {}, slope[WIDTH] = {}, bias[WIDTH] = {};
                for (int i = 0; i < count; i++) {
                    mean[i] = array<const T>(a, 2)[channel + i];
                    slope[i] = array<const T>(a, 3)[channel + i] * read_either<S>(a, 4, computed, channel + i);
                    bias[i] = read_either<S>(a, 5, computed, channel + i);
                }
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const int64_t at = row * tile.channels + channel;
                    const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                    Pack<S> residual = {}, y = {};
                    if (added) residual = load(array<const S>(a, 6) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        T value = (wide(x.at[i]) - mean[i]) * slope[i] + bias[i];
                        if (added) value += wide(residual.at[i]);
                        // Of a NaN value <= 0 does not hold: it stays.
                        narrow(relu && value <= T(0) ? T(0) : value, y.at[i]);
                    }
                    store(array<S>(a, 1) + at, y, count, packed);
                }
            }
        }
    }
};

// What arrives at the normalised values: dy, or where a relu let something through.
template <class S> INLINE typename Computed<S>::Type passed(S dy, S y, bool relu) {
    using T = typename Computed<S>::Type;
    return relu && wide(y) <= T(0) ? T(0) : wide(dy);
}

// x, sums, y, dy, mean: the sums of g and of g (x - mean).
template <class S> struct NormGradientSums {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * WIDTH * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool relu = a.numbers[5] != 0;
        const bool packed = tile.packed() && aligned(a, 0) && aligned(a, 2) && aligned(a, 3);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T sum[WIDTH] = {}, product[WIDTH] = {};
            const int count = tile.count(t);
            if (count > 0) {
                const int64_t channel = tile.channel(t);
                T mean[WIDTH] = {};
                for (int i = 0; i < count; i++) mean[i] = array<const T>(a, 4)[channel + i];
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const int64_t at = row * tile.channels + channel;
                    const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                    const Pack<S> dy = load(array<const S>(a, 3) + at, count, packed);
                    Pack<S> y = {};
                    if (relu) y = load(array<const S>(a, 2) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        const T g = passed(dy.at[i], y.at[i], relu);
                        sum[i] += g;
                        product[i] += g * (wide(x.at[i]) - mean[i]);
                    }
                }
            }
            for (int i = 0; i < WIDTH; i++) {
                sums[i * THREADS + t] = sum[i];
                sums[(WIDTH + i) * THREADS + t] = product[i];
            }
        }
        write_tile_sums<T, 2>(tile, tile.chunk(a, 0, block), sums, array<double>(a, 1));
    }
};

// inverse, sums, gradient of the weight, of the bias, constant, slope; numbers: rows, channels, chunks, whether the
// statistics are the batch's, whether parameters are of the type computed in. The gradients of the parameters, and what the gradient of x subtracts.
template <class S> struct NormParameterGradients {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(double);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const int64_t channels = a.numbers[1];
        const double share = a.numbers[3] != 0 ? 1.0 / (double)a.numbers[0] : 0.0;
        double *sums = (double *)memory;
        add_chunks<2>(array<const double>(a, 1), a.numbers[2], channels, block, sums);
        EACH_THREAD(t) {
            const int64_t channel = (int64_t)block * (THREADS / TEAM) + t / TEAM;
            if (t % TEAM == 0 && channel < channels) {
                const double inverse = (double)array<const T>(a, 0)[channel];
                const double sum = sums[t], product = sums[THREADS + t];
                const bool computed = a.numbers[4] != 0;
                write_either<S>(a, 2, computed, channel, (T)(product * inverse));
                write_either<S>(a, 3, computed, channel, (T)sum);
                array<T>(a, 4)[channel] = (T)(sum * share);
                array<T>(a, 5)[channel] = (T)(product * share * inverse * inverse);
            }
        }
    }
};

// x, y, dy, mean, inverse, weight, constant, slope, dx, dresidual:
// dx = weight inverse (g - constant - (x - mean) slope), dresidual = g, each where it is wanted. Numbers[6] as above.
template <class S> struct NormGradient {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool relu = a.numbers[5] != 0, computed = a.numbers[6] != 0;
        const bool packed = tile.packed() && aligned(a, 0) && aligned(a, 1) && aligned(a, 2) && aligned(a, 8) &&
                            aligned(a, 9);
        EACH_THREAD(t) {
            const int count = tile.count(t);
            if (count > 0) {
                const int64_t channel = tile.channel(t);
                T mean[WIDTH] = {}, scale[WIDTH] = {}, constant[WIDTH] = {}, slope[WIDTH] = {};
                for (int i = 0; i < count; i++) {
                    mean[i] = array<const T>(a, 3)[channel + i];
                    scale[i] = array<const T>(a, 4)[channel + i] * read_either<S>(a, 5, computed, channel + i);
                    constant[i] = array<const T>(a, 6)[channel + i];
                    slope[i] = array<const T>(a, 7)[channel + i];
                }
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const int64_t at = row * tile.channels + channel;
                    const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                    const Pack<S> dy = load(array<const S>(a, 2) + at, count, packed);
                    Pack<S> y = {}, dx = {}, rest = {};
                    if (relu) y = load(array<const S>(a, 1) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        const T g = passed(dy.at[i], y.at[i], relu);
                        narrow(g, rest.at[i]);
                        narrow(scale[i] * (g - constant[i] - (wide(x.at[i]) - mean[i]) * slope[i]), dx.at[i]);
                    }
                    if (given(a, 8)) store(array<S>(a, 8) + at, dx, count, packed);
                    if (given(a, 9)) store(array<S>(a, 9) + at, rest, count, packed);
                }
            }
        }
    }
};

// x, sums: the sum over each chunk of rows.
template <class S> struct ColumnSums {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = WIDTH * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool packed = tile.packed() && aligned(a, 0);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T sum[WIDTH] = {};
            const int count = tile.count(t);
            if (count > 0) {
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const int64_t at = row * tile.channels + tile.channel(t);
                    const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) sum[i] += wide(x.at[i]);
                }
            }
            for (int i = 0; i < WIDTH; i++) sums[i * THREADS + t] = sum[i];
        }
        write_tile_sums<T, 1>(tile, tile.chunk(a, 0, block), sums, array<double>(a, 1));
    }
};

// sums, totals; numbers: channels, chunks.
template <class S> struct ColumnTotals {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = THREADS * sizeof(double);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const int64_t channels = a.numbers[0];
        double *sums = (double *)memory;
        add_chunks<1>(array<const double>(a, 0), a.numbers[1], channels, block, sums);
        EACH_THREAD(t) {
            const int64_t channel = (int64_t)block * (THREADS / TEAM) + t / TEAM;
            if (t % TEAM == 0 && channel < channels) narrow((T)sums[t], array<S>(a, 1)[channel]);
        }
    }
};

// y, bias: y = y + bias, row by row.
template <class S> struct AddBias {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool packed = tile.packed() && aligned(a, 0);
        EACH_THREAD(t) {
            const int count = tile.count(t);
            if (count > 0) {
                T bias[WIDTH] = {};
                for (int i = 0; i < count; i++) bias[i] = wide(array<const S>(a, 1)[tile.channel(t) + i]);
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    S *at = array<S>(a, 0) + row * tile.channels + tile.channel(t);
                    Pack<S> y = load(at, count, packed);
                    for (int i = 0; i < WIDTH; i++) narrow(wide(y.at[i]) + bias[i], y.at[i]);
                    store(at, y, count, packed);
                }
            }
        }
    }
};

#define ROWS_OF_CHANNELS(KERNEL)                                                                             \
    EVERY_TYPE(KERNEL, norm_sums, NormSums)                                                                  \
    EVERY_TYPE(KERNEL, norm_statistics, NormStatistics)                                                      \
    EVERY_TYPE(KERNEL, normalise, Normalise)                                                                 \
    EVERY_TYPE(KERNEL, norm_gradient_sums, NormGradientSums)                                                 \
    EVERY_TYPE(KERNEL, norm_parameter_gradients, NormParameterGradients)                                     \
    EVERY_TYPE(KERNEL, norm_gradient, NormGradient)                                                          \
    EVERY_TYPE(KERNEL, column_sums, ColumnSums)                                                              \
    EVERY_TYPE(KERNEL, column_totals, ColumnTotals)                                                          \
    EVERY_TYPE(KERNEL, add_bias, AddBias)
