// What a kernel is told, and how it finds its part of the work.

#pragma once

#ifdef SALA_EMULATED
#include <cmath>
using std::exp;
using std::log;
using std::sqrt;
#endif
#include "block.cuh"

// `card/mod.rs` fills it. A tensor that is not there has the address 0.
struct Arguments {
    uint64_t at[10];
    int64_t numbers[18];
    double factors[6];
};

template <class S> INLINE S *array(const Arguments &a, int which) {
    return reinterpret_cast<S *>(static_cast<uintptr_t>(a.at[which]));
}

// An element of a tensor that is either of the stored type or of the one computed in, as the latter.
template <class S>
INLINE typename Computed<S>::Type read_either(const Arguments &a, int which, bool computed, int64_t at) {
    using T = typename Computed<S>::Type;
    return computed ? array<const T>(a, which)[at] : wide(array<const S>(a, which)[at]);
}

// As `read_either`, written.
template <class S>
INLINE void write_either(const Arguments &a, int which, bool computed, int64_t at, typename Computed<S>::Type value) {
    using T = typename Computed<S>::Type;
    if (computed)
        array<T>(a, which)[at] = value;
    else
        narrow(value, array<S>(a, which)[at]);
}

INLINE bool given(const Arguments &a, int which) { return a.at[which] != 0; }

// Whether a tensor may be read by packs.
INLINE bool aligned(const Arguments &a, int which) { return (a.at[which] & 15) == 0; }

INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Elements of a block of an element-wise kernel.
constexpr int64_t EACH = 4096;

// Bytes of a block's own memory that a kernel without a need for it has.
constexpr int NO_MEMORY = 1;

// Adds (or takes the larger of) what the threads of each team hold, always in the same order; the first thread of a team
// has the result. A team is a power of two of neighbouring threads.
template <class T> INLINE void add_teams(T *values, int team) {
    for (int half = team / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if ((t & (team - 1)) < half) values[t] += values[t + half];
        }
        MEET();
    }
}

template <class T> INLINE void max_teams(T *values, int team) {
    for (int half = team / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if ((t & (team - 1)) < half && values[t] < values[t + half]) values[t] = values[t + half];
        }
        MEET();
    }
}
