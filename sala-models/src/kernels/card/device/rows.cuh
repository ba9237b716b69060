// Rows, each for a team of threads. A thread takes packs of WIDTH elements, its neighbour those beside them, so that the
// memory that a team touches at once is in one stretch. A row is read again for each step over it: it is in a cache
// then.

#pragma once

#include "arguments.cuh"

// `card/rows.rs` fills the first three numbers.
struct Rows {
    int64_t rows, size;
    int team;
    int64_t row0; // the block's first row

    INLINE Rows(const Arguments &a, uint32_t block)
        : rows(a.numbers[0]), size(a.numbers[1]), team((int)a.numbers[2]) {
        row0 = (int64_t)block * (THREADS / team);
    }

    INLINE int64_t row(int t) const { return row0 + t / team; }
    INLINE int64_t start(int t) const { return row(t) * size; }
    INLINE bool exists(int t) const { return row(t) < rows; }
    // The first thread of a team, where the sums of the team are.
    INLINE int first(int t) const { return t & ~(team - 1); }
    INLINE bool leads(int t) const { return t == first(t) && exists(t); }
    // Packs of a row start where those of the first do.
    INLINE bool packed() const { return size % WIDTH == 0; }

    // Calls `work` with the place of each of a thread's packs in its row, and the number of its elements.
    template <class F> INLINE void each(int t, F work) const {
        if (!exists(t)) return;
        for (int64_t at = (int64_t)(t - first(t)) * WIDTH; at < size; at += team * WIDTH)
            work(at, (int)min_of(WIDTH, size - at));
    }
};

// Some of a tensor that is either of the stored type or of the one computed in, as the latter.
template <class S>
INLINE Pack<typename Computed<S>::Type> load_either(const Arguments &a, int which, bool computed, int64_t at,
                                                    int count, bool packed) {
    using T = typename Computed<S>::Type;
    const bool whole = packed && aligned(a, which);
    if (computed) return load(array<const T>(a, which) + at, count, whole);
    const Pack<S> stored = load(array<const S>(a, which) + at, count, whole);
    Pack<T> pack = {};
    for (int i = 0; i < WIDTH; i++) pack.at[i] = wide(stored.at[i]);
    return pack;
}

// As `load_either`, written.
template <class S>
INLINE void store_either(const Arguments &a, int which, bool computed, int64_t at,
                         const Pack<typename Computed<S>::Type> &pack, int count, bool packed) {
    using T = typename Computed<S>::Type;
    const bool whole = packed && aligned(a, which);
    if (computed) {
        store(array<T>(a, which) + at, pack, count, whole);
        return;
    }
    Pack<S> stored = {};
    for (int i = 0; i < WIDTH; i++) narrow(pack.at[i], stored.at[i]);
    store(array<S>(a, which) + at, stored, count, whole);
}
