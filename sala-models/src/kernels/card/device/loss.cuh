// The mean cross entropy of rows of logits; `kernels/cross_entropy.rs` has the equations.

#pragma once

#include "lookup.cuh"
#include "rows.cuh"
#include "softmax.cuh"

// Targets of rows, as numbers[3] says: indices of u8, u32 or i64, or distributions of the type computed in or of the
// stored one. Numbers[4] says whether rows of a class do not count, whose
// low and high half numbers[5] and numbers[6] are; factors: the label smoothing.
template <class S> struct Targets {
    using T = typename Computed<S>::Type;
    enum Kind { U8, U32, I64, COMPUTED, STORED };

    const Arguments &a;
    int kind;
    // The shares of a target that stay, and that each class gets: (1 - epsilon) and epsilon / C.
    T own, all;
    int64_t ignored;

    INLINE Targets(const Arguments &a, int64_t classes) : a(a), kind((int)a.numbers[3]) {
        own = (T)(1.0 - a.factors[0]);
        all = (T)(a.factors[0] / (double)classes);
        ignored = (int64_t)((uint64_t)a.numbers[6] << 32 | (uint64_t)a.numbers[5]);
    }

    INLINE bool classes() const { return kind <= I64; }
    INLINE int64_t of_class(int64_t row) const { return index_of(a, 1, kind, row); }
    INLINE bool counts(int64_t index) const { return a.numbers[4] == 0 || index != ignored; }
    INLINE Pack<T> of_distribution(int64_t at, int count, bool packed) const {
        return load_either<S>(a, 1, kind == COMPUTED, at, count, packed);
    }
};

// logits, targets, losses, statistics. Of each row, losses has its loss and whether it counts, 1 or 0, and statistics
// max x, log(sum of exp(x - max x)) and the sum of its target.
template <class S> struct EntropyRows {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 4 * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const Targets<S> targets(a, rows.size);
        const bool packed = rows.packed() && aligned(a, 0);
        const S *x = array<const S>(a, 0);
        T *largest = (T *)memory, *powers = largest + THREADS, *losses = powers + THREADS, *totals = losses + THREADS;
        EACH_THREAD(t) {
            T most = (T)MINUS_INFINITY;
            rows.each(t, [&](int64_t at, int count) {
                const Pack<S> logits = load(x + rows.start(t) + at, count, packed);
                for (int i = 0; i < WIDTH; i++) {
                    if (i < count && most < wide(logits.at[i])) most = wide(logits.at[i]);
                }
            });
            largest[t] = most;
        }
        MEET();
        max_teams(largest, rows.team);
        EACH_THREAD(t) {
            const T most = largest[rows.first(t)];
            T sum = 0;
            rows.each(t, [&](int64_t at, int count) {
                const Pack<S> logits = load(x + rows.start(t) + at, count, packed);
                for (int i = 0; i < WIDTH; i++) sum += i < count ? exp(wide(logits.at[i]) - most) : T(0);
            });
            powers[t] = sum;
        }
        MEET();
        add_teams(powers, rows.team);
        EACH_THREAD(t) {
            const T most = largest[rows.first(t)], log_sum = log(powers[rows.first(t)]);
            T loss = 0, total = 0;
            // Without smoothing, classes with a logit of -infinity do not matter.
            if (!targets.classes() || targets.all > T(0)) {
                rows.each(t, [&](int64_t at, int count) {
                    const int64_t place = rows.start(t) + at;
                    const Pack<S> logits = load(x + place, count, packed);
                    Pack<T> target = {};
                    if (!targets.classes()) target = targets.of_distribution(place, count, rows.packed());
                    for (int i = 0; i < WIDTH; i++) {
                        const T share = targets.own * target.at[i] + targets.all;
                        if (i < count) loss -= share * (wide(logits.at[i]) - most - log_sum);
                        if (i < count) total += share;
                    }
                });
            }
            losses[t] = loss;
            totals[t] = total;
        }
        MEET();
        add_teams(losses, rows.team);
        add_teams(totals, rows.team);
        EACH_THREAD(t) {
            if (rows.leads(t)) {
                const T most = largest[t], log_sum = log(powers[t]);
                write(a, rows, targets, most, log_sum, losses[t], rows.row(t));
                T *statistics = array<T>(a, 3) + 3 * rows.row(t);
                statistics[0] = most;
                statistics[1] = log_sum;
                statistics[2] = targets.classes() ? T(1) : totals[t];
            }
        }
    }

    static INLINE void write(const Arguments &a, const Rows &rows, const Targets<S> &targets, T most, T log_sum, T of_all,
                             int64_t row) {
        double loss = (double)of_all, counted = 1.0;
        if (targets.classes()) {
            const int64_t index = targets.of_class(row);
            if (!targets.counts(index)) {
                loss = counted = 0.0;
            } else if (!is_below(index, rows.size)) {
                loss = NOT_A_NUMBER;
            } else {
                const T logit = wide(array<const S>(a, 0)[row * rows.size + index]);
                loss -= (1.0 - a.factors[0]) * (double)(logit - most - log_sum);
            }
        }
        array<double>(a, 2)[2 * row] = loss;
        array<double>(a, 2)[2 * row + 1] = counted;
    }
};

// losses, loss, share; numbers: rows. The mean over the rows that count, NaN if there are none, and 1 / their number.
// One block.
template <class S> struct EntropyMean {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(double);

    static INLINE void run(const Arguments &a, void *memory, uint32_t) {
        double *losses = (double *)memory, *counts = losses + THREADS;
        EACH_THREAD(t) {
            double loss = 0.0, count = 0.0;
            for (int64_t row = t; row < a.numbers[0]; row += THREADS) {
                loss += array<const double>(a, 0)[2 * row];
                count += array<const double>(a, 0)[2 * row + 1];
            }
            losses[t] = loss;
            counts[t] = count;
        }
        MEET();
        add_up(losses);
        add_up(counts);
        EACH_THREAD(t) {
            if (t == 0) {
                *array<T>(a, 1) = (T)(losses[0] / counts[0]);
                *array<double>(a, 2) = 1.0 / counts[0];
            }
        }
    }
};

// logits, targets, statistics, share, slope of the loss, dlogits or nothing, dtargets or nothing.
template <class S> struct EntropyGradients {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Rows rows(a, block);
        const Targets<S> targets(a, rows.size);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 5);
        const T factor = (T)((double)*array<const T>(a, 4) * *array<const double>(a, 3));
        EACH_THREAD(t) {
            if (rows.exists(t)) {
                const T *statistics = array<const T>(a, 2) + 3 * rows.row(t);
                const T most = statistics[0], log_sum = statistics[1], total = statistics[2];
                int64_t index = -1;
                if (targets.classes()) index = targets.of_class(rows.row(t));
                const bool counts = !targets.classes() || targets.counts(index);
                const bool known = !targets.classes() || is_below(index, rows.size);
                const T scale = known ? factor : (T)NOT_A_NUMBER;
                rows.each(t, [&](int64_t at, int count) {
                    const int64_t place = rows.start(t) + at;
                    const Pack<S> logits = load(array<const S>(a, 0) + place, count, packed);
                    Pack<T> target = {}, of_targets = {};
                    if (!targets.classes()) target = targets.of_distribution(place, count, rows.packed());
                    Pack<S> of_logits = {};
                    for (int i = 0; i < WIDTH; i++) {
                        const T share = targets.classes() ? T(at + i == index) : target.at[i];
                        const T logarithm = wide(logits.at[i]) - most - log_sum;
                        const T slope = (exp(logarithm) * total - (targets.own * share + targets.all)) * scale;
                        // Whatever rows that do not count hold, they have no slope.
                        narrow(counts ? slope : T(0), of_logits.at[i]);
                        of_targets.at[i] = -targets.own * logarithm * scale;
                    }
                    if (given(a, 5)) store(array<S>(a, 5) + place, of_logits, count, packed);
                    if (given(a, 6))
                        store_either<S>(a, 6, targets.kind == Targets<S>::COMPUTED, place, of_targets, count, rows.packed());
                });
            }
        }
    }
};

#define LOSSES(KERNEL)                                                                                       \
    EVERY_TYPE(KERNEL, entropy_rows, EntropyRows)                                                            \
    EVERY_TYPE(KERNEL, entropy_mean, EntropyMean)                                                            \
    EVERY_TYPE(KERNEL, entropy_back, EntropyGradients)
