// Rows of a table looked up by index, and rotary position embedding; `kernels/embedding.rs` and `kernels/rope.rs` have
// the equations.

#pragma once

#include "rows.cuh"

// An index, which is of u8, u32 or i64 as `kind` says; `card/embedding.rs` has the same numbers.
INLINE int64_t index_of(const Arguments &a, int which, int kind, int64_t at) {
    if (kind == 0) return array<const uint8_t>(a, which)[at];
    if (kind == 1) return array<const uint32_t>(a, which)[at];
    return array<const int64_t>(a, which)[at];
}

INLINE bool is_below(int64_t index, int64_t size) { return index >= 0 && index < size; }

#ifdef SALA_EMULATED
#define NOT_A_NUMBER ((double)NAN)
#else
#define NOT_A_NUMBER (__longlong_as_double(0x7ff8000000000000LL))
#endif

// table, indices, y; numbers[3]: the kind of the indices, numbers[4]: the table's rows. A row for an index that is not
// below them is NaN.
template <class S> struct Lookup {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Rows rows(a, block);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 2);
        EACH_THREAD(t) {
            if (rows.exists(t)) {
                const int64_t index = index_of(a, 1, (int)a.numbers[3], rows.row(t));
                const bool inside = is_below(index, a.numbers[4]);
                rows.each(t, [&](int64_t at, int count) {
                    Pack<S> y = {};
                    for (int i = 0; i < WIDTH; i++) narrow((T)NOT_A_NUMBER, y.at[i]);
                    if (inside) y = load(array<const S>(a, 0) + index * rows.size + at, count, packed);
                    store(array<S>(a, 2) + rows.start(t) + at, y, count, packed);
                });
            }
        }
    }
};

// indices, y: row i of y is 1 at index i and 0 elsewhere.
template <class S> struct OneHot {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Rows rows(a, block);
        const bool packed = rows.packed() && aligned(a, 1);
        EACH_THREAD(t) {
            if (rows.exists(t)) {
                const int64_t index = index_of(a, 0, (int)a.numbers[3], rows.row(t));
                rows.each(t, [&](int64_t at, int count) {
                    Pack<S> y = {};
                    for (int i = 0; i < WIDTH; i++) narrow(at + i == index ? T(1) : T(0), y.at[i]);
                    store(array<S>(a, 1) + rows.start(t) + at, y, count, packed);
                });
            }
        }
    }
};

// indices, dy, dtable; numbers: lookups, columns, the table's rows, the kind of the indices. A block has a lookup and
// some columns. The first lookup of an index adds up the slopes of all that have it, in their order, so the sum
// has the same bits in every run; the blocks of the others do nothing. dtable is zeros before.
template <class S> struct LookupGradient {
    using T = typename Computed<S>::Type;
    // Neighbouring lookups that a thread looks at at once: a bit each.
    static constexpr int BITS = 16;
    static constexpr int MEMORY = WIDTH * THREADS * sizeof(T) + (THREADS + 1) * sizeof(uint32_t);

    static INLINE void run(const Arguments &a, void *memory, uint32_t block) {
        const int64_t lookups = a.numbers[0], columns = a.numbers[1];
        const int kind = (int)a.numbers[3];
        const int64_t mine = block % lookups, column0 = block / lookups * (WIDTH * THREADS);
        const int64_t index = index_of(a, 0, kind, mine);
        T *sums = (T *)memory;
        uint32_t *found = (uint32_t *)(sums + WIDTH * THREADS);
        if (!is_below(index, a.numbers[2]) || exists_before(a, kind, mine, index, found)) return;
        const bool packed = columns % WIDTH == 0 && aligned(a, 1) && aligned(a, 2);
        EACH_THREAD(t) {
            for (int i = 0; i < WIDTH; i++) sums[i * THREADS + t] = T(0);
        }
        const S *dy = array<const S>(a, 1);
        for (int64_t from = mine; from < lookups; from += BITS * THREADS) {
            if (!find(a, kind, from, lookups, index, found)) continue;
            EACH_THREAD(t) {
                const int64_t column = column0 + t * WIDTH;
                if (column < columns) {
                    const int count = (int)min_of(WIDTH, columns - column);
                    T sum[WIDTH];
                    for (int i = 0; i < WIDTH; i++) sum[i] = sums[i * THREADS + t];
                    for (int word = 0; word < THREADS; word++) {
                        uint32_t bits = found[word];
                        for (int bit = 0; bits != 0; bit++, bits >>= 1) {
                            if ((bits & 1) == 0) continue;
                            const int64_t row = from + word * BITS + bit;
                            const Pack<S> slope = load(dy + row * columns + column, count, packed);
                            for (int i = 0; i < WIDTH; i++) sum[i] += wide(slope.at[i]);
                        }
                    }
                    for (int i = 0; i < WIDTH; i++) sums[i * THREADS + t] = sum[i];
                }
            }
        }
        EACH_THREAD(t) {
            const int64_t column = column0 + t * WIDTH;
            if (column < columns) {
                Pack<S> sum = {};
                for (int i = 0; i < WIDTH; i++) narrow(sums[i * THREADS + t], sum.at[i]);
                store(array<S>(a, 2) + index * columns + column, sum, (int)min_of(WIDTH, columns - column), packed);
            }
        }
    }

    // Which of the lookups from `from` on have an index: a word of bits for each thread. Whether there are some.
    static INLINE bool find(const Arguments &a, int kind, int64_t from, int64_t end, int64_t index, uint32_t *found) {
        MEET();
        EACH_THREAD(t) {
            if (t == 0) found[THREADS] = 0;
        }
        MEET();
        EACH_THREAD(t) {
            uint32_t bits = 0;
            for (int bit = 0; bit < BITS; bit++) {
                const int64_t at = from + t * BITS + bit;
                if (at < end && index_of(a, 0, kind, at) == index) bits |= 1u << bit;
            }
            found[t] = bits;
            if (bits != 0) found[THREADS] = 1;
        }
        MEET();
        return found[THREADS] != 0;
    }

    // Whether a lookup before `mine` has the index, the nearest looked at first: a frequent index is found at once.
    static INLINE bool exists_before(const Arguments &a, int kind, int64_t mine, int64_t index, uint32_t *found) {
        for (int64_t end = mine; end > 0; end -= BITS * THREADS) {
            const int64_t from = end > BITS * THREADS ? end - BITS * THREADS : 0;
            if (find(a, kind, from, end, index, found)) return true;
        }
        return false;
    }
};

// x, cos, sin, y; rows of D / 2 pairs. Numbers[3]: positions, numbers[4]: whether neighbours are pairs, or else i and
// i + D / 2, numbers[5]: whether to turn back.
template <class S> struct Turn {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Rows rows(a, block);
        const bool packed = rows.packed() && aligned(a, 0) && aligned(a, 3);
        const bool packed_tables = rows.packed() && aligned(a, 1) && aligned(a, 2);
        const bool neighbours = a.numbers[4] != 0, back = a.numbers[5] != 0;
        EACH_THREAD(t) {
            const int64_t position = (uint32_t)rows.row(t) % (uint32_t)a.numbers[3];
            rows.each(t, [&](int64_t at, int count) {
                const int64_t table = position * rows.size + at;
                const Pack<T> cos = load(array<const T>(a, 1) + table, count, packed_tables);
                const Pack<T> sin = load(array<const T>(a, 2) + table, count, packed_tables);
                const int64_t start = 2 * rows.start(t);
                const S *x = array<const S>(a, 0) + start;
                S *y = array<S>(a, 3) + start;
                if (neighbours) {
                    const int first = (int)min_of(WIDTH, 2 * count), second = 2 * count - first;
                    Pack<S> low = load(x + 2 * at, first, packed);
                    Pack<S> high = load(x + 2 * at + WIDTH, second, packed);
                    for (int i = 0; i < WIDTH / 2; i++) {
                        turn(low.at[2 * i], low.at[2 * i + 1], cos.at[i], sin.at[i], back);
                        turn(high.at[2 * i], high.at[2 * i + 1], cos.at[WIDTH / 2 + i], sin.at[WIDTH / 2 + i], back);
                    }
                    store(y + 2 * at, low, first, packed);
                    store(y + 2 * at + WIDTH, high, second, packed);
                } else {
                    Pack<S> first = load(x + at, count, packed);
                    Pack<S> second = load(x + rows.size + at, count, packed);
                    for (int i = 0; i < WIDTH; i++) turn(first.at[i], second.at[i], cos.at[i], sin.at[i], back);
                    store(y + at, first, count, packed);
                    store(y + rows.size + at, second, count, packed);
                }
            });
        }
    }

    static INLINE void turn(S &a, S &b, T cos, T sin, bool back) {
        const T x = wide(a), y = wide(b), s = back ? -sin : sin;
        narrow(x * cos - y * s, a);
        narrow(y * cos + x * s, b);
    }
};

#define LOOKUPS(KERNEL)                                                                                      \
    EVERY_TYPE(KERNEL, lookup, Lookup)                                                                       \
    EVERY_TYPE(KERNEL, one_hot, OneHot)                                                                      \
    EVERY_TYPE(KERNEL, lookup_back, LookupGradient)                                                          \
    EVERY_TYPE(KERNEL, rope, Turn)
