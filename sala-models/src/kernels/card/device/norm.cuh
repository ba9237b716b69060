// Layer and RMS norm of rows; `kernels/norm.rs` has the equations. Numbers[3] says whether the mean is subtracted,
// numbers[4] whether parameters are of the type computed in.

#pragma once

#include "rows.cuh"
#include "tiles.cuh"

// x, y, weight, bias or nothing, statistics; factors: eps. The statistics of a row are its mean and
// 1 / sqrt(variance + eps).
template <class S> struct RowNorm {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const bool centred = a.numbers[3] != 0, computed = a.numbers[4] != 0, biased = given(a, 3);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 1);
        const S *x = array<const S>(a, 0);
        const T count_of_row = (T)rows.size;
        T *sums = (T *)memory, *squares = sums + THREADS;
        EACH_THREAD(t) {
            T sum = 0;
            if (centred) {
                rows.each(t, [&](int64_t at, int count) {
                    const Pack<S> values = load(x + rows.start(t) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) sum += wide(values.at[i]);
                });
            }
            sums[t] = sum;
        }
        MEET();
        add_teams(sums, rows.team);
        // From centred values: those far from 0 would lose the spread.
        EACH_THREAD(t) {
            const T mean = sums[rows.first(t)] / count_of_row;
            T square = 0;
            rows.each(t, [&](int64_t at, int count) {
                const Pack<S> values = load(x + rows.start(t) + at, count, packed);
                for (int i = 0; i < WIDTH; i++) {
                    const T off = i < count ? wide(values.at[i]) - mean : T(0);
                    square += off * off;
                }
            });
            squares[t] = square;
        }
        MEET();
        add_teams(squares, rows.team);
        EACH_THREAD(t) {
            const T mean = sums[rows.first(t)] / count_of_row;
            const T inverse = T(1) / sqrt(squares[rows.first(t)] / count_of_row + (T)a.factors[0]);
            if (rows.leads(t)) {
                array<T>(a, 4)[2 * rows.row(t)] = mean;
                array<T>(a, 4)[2 * rows.row(t) + 1] = inverse;
            }
            rows.each(t, [&](int64_t at, int count) {
                const Pack<S> values = load(x + rows.start(t) + at, count, packed);
                const Pack<T> weight = load_either<S>(a, 2, computed, at, count, packed);
                Pack<T> bias = {};
                if (biased) bias = load_either<S>(a, 3, computed, at, count, packed);
                Pack<S> y = {};
                for (int i = 0; i < WIDTH; i++)
                    narrow((wide(values.at[i]) - mean) * inverse * weight.at[i] + bias.at[i], y.at[i]);
                store(array<S>(a, 1) + rows.start(t) + at, y, count, packed);
            });
        }
    }
};

// x, dy, weight, statistics, dx.
template <class S> struct RowNormGradient {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const bool centred = a.numbers[3] != 0, computed = a.numbers[4] != 0;
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 1) && aligned(a, 4);
        const S *x = array<const S>(a, 0), *dy = array<const S>(a, 1);
        const T *statistics = array<const T>(a, 3);
        T *sums = (T *)memory, *products = sums + THREADS;
        EACH_THREAD(t) {
            T sum = 0, product = 0;
            if (rows.exists(t)) {
                const T mean = statistics[2 * rows.row(t)], inverse = statistics[2 * rows.row(t) + 1];
                rows.each(t, [&](int64_t at, int count) {
                    const Pack<S> values = load(x + rows.start(t) + at, count, packed);
                    const Pack<S> slopes = load(dy + rows.start(t) + at, count, packed);
                    const Pack<T> weight = load_either<S>(a, 2, computed, at, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        const T g = wide(slopes.at[i]) * weight.at[i];
                        sum += g;
                        product += g * ((wide(values.at[i]) - mean) * inverse);
                    }
                });
            }
            sums[t] = sum;
            products[t] = product;
        }
        MEET();
        add_teams(sums, rows.team);
        add_teams(products, rows.team);
        EACH_THREAD(t) {
            if (rows.exists(t)) {
                const T mean = statistics[2 * rows.row(t)], inverse = statistics[2 * rows.row(t) + 1];
                const T of_g = centred ? sums[rows.first(t)] / (T)rows.size : T(0);
                const T of_products = products[rows.first(t)] / (T)rows.size;
                rows.each(t, [&](int64_t at, int count) {
                    const Pack<S> values = load(x + rows.start(t) + at, count, packed);
                    const Pack<S> slopes = load(dy + rows.start(t) + at, count, packed);
                    const Pack<T> weight = load_either<S>(a, 2, computed, at, count, packed);
                    Pack<S> dx = {};
                    for (int i = 0; i < WIDTH; i++) {
                        const T normal = (wide(values.at[i]) - mean) * inverse;
                        const T g = wide(slopes.at[i]) * weight.at[i];
                        narrow(inverse * (g - of_g - normal * of_products), dx.at[i]);
                    }
                    store(array<S>(a, 4) + rows.start(t) + at, dx, count, packed);
                });
            }
        }
    }
};

// x, dy, statistics of the rows, sums: of each chunk of rows and each column, the sums of dy x^ and of dy. Numbers: a
// tile's.
template <class S> struct RowNormSums {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * WIDTH * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Tile tile(a, 0, block);
        const bool packed = tile.packed() && aligned(a, 0) && aligned(a, 1);
        const T *statistics = array<const T>(a, 2);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T product[WIDTH] = {}, sum[WIDTH] = {};
            const int count = tile.count(t);
            if (count > 0) {
                for (int64_t row = tile.first_row(t); row < tile.end; row += tile.step()) {
                    const int64_t at = row * tile.channels + tile.channel(t);
                    const T mean = statistics[2 * row], inverse = statistics[2 * row + 1];
                    const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                    const Pack<S> dy = load(array<const S>(a, 1) + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) {
                        const T slope = wide(dy.at[i]);
                        product[i] += slope * ((wide(x.at[i]) - mean) * inverse);
                        sum[i] += slope;
                    }
                }
            }
            for (int i = 0; i < WIDTH; i++) {
                sums[i * THREADS + t] = product[i];
                sums[(WIDTH + i) * THREADS + t] = sum[i];
            }
        }
        write_tile_sums<T, 2>(tile, tile.chunk(a, 0, block), sums, array<double>(a, 3));
    }
};

// sums, dweight, dbias or nothing; numbers: columns, chunks, and whether parameters are of the type computed in.
template <class S> struct RowNormTotals {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(double);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const int64_t columns = a.numbers[0];
        double *sums = (double *)memory;
        add_chunks<2>(array<const double>(a, 0), a.numbers[1], columns, block, sums);
        EACH_THREAD(t) {
            const int64_t column = (int64_t)block * (THREADS / TEAM) + t / TEAM;
            if (t % TEAM == 0 && column < columns) {
                const bool computed = a.numbers[2] != 0;
                write_either<S>(a, 1, computed, column, (T)sums[t]);
                if (given(a, 2)) write_either<S>(a, 2, computed, column, (T)sums[THREADS + t]);
            }
        }
    }
};

#define NORMS(KERNEL)                                                                                        \
    EVERY_TYPE(KERNEL, row_norm, RowNorm)                                                                    \
    EVERY_TYPE(KERNEL, row_norm_back, RowNormGradient)                                                       \
    EVERY_TYPE(KERNEL, row_norm_sums, RowNormSums)                                                           \
    EVERY_TYPE(KERNEL, row_norm_totals, RowNormTotals)
