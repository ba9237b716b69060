// Softmax of rows, with what comes before it in attention (a scale and masks) and after it (dropout);
// `kernels/softmax.rs` and `kernels/attention/mod.rs` have the equations.

#pragma once

#include "philox.cuh"
#include "rows.cuh"

#ifdef SALA_EMULATED
#define MINUS_INFINITY (-HUGE_VAL)
#else
#define MINUS_INFINITY (-__longlong_as_double(0x7ff0000000000000LL))
#endif

// Where the numbers of a mask, of a causal mask and of dropout begin; `card/softmax.rs` fills them.
constexpr int MASK = 3;
constexpr int QUERIES = 12;
constexpr int DROPPED = 13;

// Scores of rows: `scale` x, with -infinity where a mask hides them.
template <class S> struct Scores {
    using T = typename Computed<S>::Type;
    // What a mask is made of: nothing, bytes that are not 0 where a score is seen, or numbers that are added to it, of
    // the type computed in or of the stored one.
    enum Kind { NONE, BYTES, COMPUTED, STORED };

    const Arguments &a;
    const Rows &rows;
    bool packed;
    T scale;
    int kind;
    int64_t stride; // between a row's entries of the mask

    INLINE Scores(const Arguments &a, const Rows &rows)
        : a(a), rows(rows), packed(rows.packed() && aligned(a, 0)), scale((T)a.factors[0]),
          kind((int)a.numbers[MASK]), stride(a.numbers[MASK + 1]) {}

    // The place of a row's first entry in the mask. Its leading dimensions have sizes, but for the first one, and
    // strides, the last dimension first.
    INLINE int64_t mask_start(int t) const {
        if (kind == NONE) return 0;
        uint32_t row = (uint32_t)rows.row(t);
        int64_t start = 0;
        for (int i = 0; i < 3; i++) {
            const uint32_t size = (uint32_t)a.numbers[MASK + 2 + i];
            start += row % size * a.numbers[MASK + 5 + i];
            row /= size;
        }
        return start + row * a.numbers[MASK + 8];
    }

    // How many scores of a row are not in its query's future.
    INLINE int64_t seen(int t) const {
        const uint32_t queries = (uint32_t)a.numbers[QUERIES];
        if (queries == 0) return rows.size;
        return rows.size - queries + (uint32_t)rows.row(t) % queries + 1;
    }

    // Some of a row's scores; -infinity also beyond `count`.
    INLINE Pack<T> at(int t, int64_t mask_start, int64_t seen, int64_t at, int count) const {
        Pack<T> pack;
        for (int i = 0; i < WIDTH; i++) pack.at[i] = (T)MINUS_INFINITY;
        if (at >= seen) return pack;
        const Pack<S> x = load(array<const S>(a, 0) + rows.start(t) + at, count, packed);
        const int visible = (int)min_of(count, seen - at);
        for (int i = 0; i < WIDTH; i++) {
            if (i >= visible) continue;
            const T score = wide(x.at[i]) * scale;
            const int64_t place = mask_start + (at + i) * stride;
            if (kind == NONE || (kind == BYTES && array<const uint8_t>(a, 1)[place] != 0))
                pack.at[i] = score;
            else if (kind == COMPUTED)
                pack.at[i] = score + array<const T>(a, 1)[place];
            else if (kind == STORED)
                pack.at[i] = score + wide(array<const S>(a, 1)[place]);
        }
        return pack;
    }
};

// x, mask or nothing, y, statistics or nothing, dropped or nothing. y is the softmax of the scores, or its logarithm;
// `dropped` is y after dropout, with factors[1] = 1 / (1 - p). The statistics of a row are what was subtracted from its
// scores, and 1 / (the sum of their powers).
template <class S, bool LOGARITHM> struct SoftmaxValues {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = 2 * THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const Scores<S> scores(a, rows);
        T *largest = (T *)memory, *sums = largest + THREADS;
        EACH_THREAD(t) {
            T most = (T)MINUS_INFINITY;
            const int64_t mask = scores.mask_start(t), seen = scores.seen(t);
            rows.each(t, [&](int64_t at, int count) {
                const Pack<T> score = scores.at(t, mask, seen, at, count);
                for (int i = 0; i < WIDTH; i++) most = most < score.at[i] ? score.at[i] : most;
            });
            largest[t] = most;
        }
        MEET();
        max_teams(largest, rows.team);
        EACH_THREAD(t) {
            const T shift = shift_of(largest[rows.first(t)]);
            const int64_t mask = scores.mask_start(t), seen = scores.seen(t);
            T sum = 0;
            rows.each(t, [&](int64_t at, int count) {
                const Pack<T> score = scores.at(t, mask, seen, at, count);
                for (int i = 0; i < WIDTH; i++) sum += exp(score.at[i] - shift);
            });
            sums[t] = sum;
        }
        MEET();
        add_teams(sums, rows.team);
        EACH_THREAD(t) { write(a, rows, scores, largest[rows.first(t)], sums[rows.first(t)], t); }
    }

    // -infinity - (-infinity) would be NaN.
    static INLINE T shift_of(T largest) { return largest == (T)MINUS_INFINITY ? T(0) : largest; }

    static INLINE void write(const Arguments &a, const Rows &rows, const Scores<S> &scores, T largest, T sum,
                             int t) {
        const T shift = shift_of(largest);
        // Where nothing is left all powers are 0, and so is what is wanted. A NaN among them stays.
        const T whole = largest == (T)MINUS_INFINITY && !LOGARITHM ? sum + T(1) : sum;
        const T inverse = T(1) / whole, logarithm = LOGARITHM ? log(whole) : T(0);
        if (rows.leads(t) && given(a, 3)) {
            array<T>(a, 3)[2 * rows.row(t)] = shift;
            array<T>(a, 3)[2 * rows.row(t) + 1] = inverse;
        }
        const bool packed = rows.packed() && aligned(a, 2) && aligned(a, 4);
        const int64_t mask = scores.mask_start(t), seen = scores.seen(t);
        const DropoutMask dropout(a, DROPPED);
        rows.each(t, [&](int64_t at, int count) {
            const Pack<T> score = scores.at(t, mask, seen, at, count);
            Pack<S> y = {};
            for (int i = 0; i < WIDTH; i++)
                narrow(LOGARITHM ? score.at[i] - shift - logarithm : exp(score.at[i] - shift) * inverse, y.at[i]);
            const int64_t place = rows.start(t) + at;
            store(array<S>(a, 2) + place, y, count, packed);
            if (given(a, 4)) {
                const Pack<T> kept = dropout.factors(place, (T)a.factors[1]);
                for (int i = 0; i < WIDTH; i++) narrow(wide(y.at[i]) * kept.at[i], y.at[i]);
                store(array<S>(a, 4) + place, y, count, packed);
            }
        });
    }
};

// x, mask or nothing, statistics, dy, dx. The values are computed again from x: y was rounded.
template <class S, bool LOGARITHM> struct SoftmaxGradients {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const Scores<S> scores(a, rows);
        const bool packed = rows.packed() && aligned(a, 3) && aligned(a, 4);
        const T *statistics = array<const T>(a, 2);
        const S *dy = array<const S>(a, 3);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T sum = 0;
            if (rows.exists(t)) {
                const T shift = statistics[2 * rows.row(t)], inverse = statistics[2 * rows.row(t) + 1];
                const int64_t mask = scores.mask_start(t), seen = scores.seen(t);
                rows.each(t, [&](int64_t at, int count) {
                    const Pack<S> slope = load(dy + rows.start(t) + at, count, packed);
                    Pack<T> score = {};
                    if (!LOGARITHM) score = scores.at(t, mask, seen, at, count);
                    for (int i = 0; i < WIDTH; i++)
                        sum += LOGARITHM ? wide(slope.at[i])
                                         : exp(score.at[i] - shift) * inverse * wide(slope.at[i]);
                });
            }
            sums[t] = sum;
        }
        MEET();
        add_teams(sums, rows.team);
        EACH_THREAD(t) {
            if (rows.exists(t)) {
                const T shift = statistics[2 * rows.row(t)], inverse = statistics[2 * rows.row(t) + 1];
                const int64_t mask = scores.mask_start(t), seen = scores.seen(t);
                const T sum = sums[rows.first(t)];
                rows.each(t, [&](int64_t at, int count) {
                    const Pack<S> slope = load(dy + rows.start(t) + at, count, packed);
                    const Pack<T> score = scores.at(t, mask, seen, at, count);
                    Pack<S> dx = {};
                    for (int i = 0; i < WIDTH; i++) {
                        const T share = exp(score.at[i] - shift) * inverse;
                        narrow(LOGARITHM ? wide(slope.at[i]) - share * sum : share * (wide(slope.at[i]) - sum),
                               dx.at[i]);
                    }
                    store(array<S>(a, 4) + rows.start(t) + at, dx, count, packed);
                });
            }
        }
    }
};

// shares P, slopes, dropped or nothing: slopes G = dY V^T become those of the unscaled scores,
// scale P (M G - rowsum(P M G)), and `dropped` becomes P M, with M from dropout, or 1.
template <class S> struct ShareGradients {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = THREADS * sizeof(T);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const Rows rows(a, block);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 1) && aligned(a, 2);
        const bool drops = given(a, 2);
        const DropoutMask dropout(a, DROPPED);
        const T scale = (T)a.factors[0], kept_scale = (T)a.factors[1];
        const S *shares = array<const S>(a, 0);
        T *sums = (T *)memory;
        EACH_THREAD(t) {
            T sum = 0;
            rows.each(t, [&](int64_t at, int count) {
                const int64_t place = rows.start(t) + at;
                const Pack<S> share = load(shares + place, count, packed);
                const Pack<S> slope = load(array<const S>(a, 1) + place, count, packed);
                Pack<T> kept = {};
                if (drops) kept = dropout.factors(place, kept_scale);
                for (int i = 0; i < WIDTH; i++) {
                    const T product = wide(share.at[i]) * wide(slope.at[i]);
                    sum += drops ? product * kept.at[i] : product;
                }
            });
            sums[t] = sum;
        }
        MEET();
        add_teams(sums, rows.team);
        EACH_THREAD(t) {
            const T sum = sums[rows.first(t)];
            rows.each(t, [&](int64_t at, int count) {
                const int64_t place = rows.start(t) + at;
                const Pack<S> share = load(shares + place, count, packed);
                Pack<S> slope = load(array<const S>(a, 1) + place, count, packed), left = {};
                Pack<T> kept = {};
                if (drops) kept = dropout.factors(place, kept_scale);
                for (int i = 0; i < WIDTH; i++) {
                    const T own = wide(share.at[i]);
                    const T g = drops ? wide(slope.at[i]) * kept.at[i] : wide(slope.at[i]);
                    narrow(own * (g - sum) * scale, slope.at[i]);
                    narrow(own * kept.at[i], left.at[i]);
                }
                store(array<S>(a, 1) + place, slope, count, packed);
                if (drops) store(array<S>(a, 2) + place, left, count, packed);
            });
        }
    }
};

// x (outer, rows, columns, size), y (outer, columns, rows, size): rows of `size` in the other order. Numbers[3] and
// numbers[4]: the rows and columns of x.
template <class S> struct SwapRows {
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Rows rows(a, block);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 1);
        const uint32_t inner = (uint32_t)a.numbers[3], columns = (uint32_t)a.numbers[4];
        EACH_THREAD(t) {
            const uint32_t row = (uint32_t)rows.row(t), of_column = row / inner, outer = of_column / columns;
            const int64_t from = ((int64_t)outer * inner + row % inner) * columns + of_column % columns;
            rows.each(t, [&](int64_t at, int count) {
                const Pack<S> pack = load(array<const S>(a, 0) + from * rows.size + at, count, packed);
                store(array<S>(a, 1) + rows.start(t) + at, pack, count, packed);
            });
        }
    }
};

template <class S> struct PlainSoftmax : SoftmaxValues<S, false> {};
template <class S> struct PlainSoftmaxGradients : SoftmaxGradients<S, false> {};
template <class S> struct LogSoftmax : SoftmaxValues<S, true> {};
template <class S> struct LogSoftmaxGradients : SoftmaxGradients<S, true> {};

#define SOFTMAXES(KERNEL)                                                                                    \
    EVERY_TYPE(KERNEL, softmax, PlainSoftmax)                                                                \
    EVERY_TYPE(KERNEL, softmax_back, PlainSoftmaxGradients)                                                  \
    EVERY_TYPE(KERNEL, log_softmax, LogSoftmax)                                                              \
    EVERY_TYPE(KERNEL, log_softmax_back, LogSoftmaxGradients)                                                \
    EVERY_TYPE(KERNEL, shares_back, ShareGradients)                                                          \
    EVERY_TYPE(KERNEL, swap_rows, SwapRows)
