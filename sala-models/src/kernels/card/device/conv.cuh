// What convolutions gather for their products, and back; `card/conv/gathered.rs` says which products.

#pragma once

#include "arguments.cuh"

struct Axis {
    int64_t size, kernel, stride, padding, dilation, windows;

    INLINE Axis(const Arguments &a, int at)
        : size(a.numbers[at]), kernel(a.numbers[at + 1]), stride(a.numbers[at + 2]), padding(a.numbers[at + 3]),
          dilation(a.numbers[at + 4]), windows(a.numbers[at + 5]) {}

    // What entry `entry` of the kernel sees in a window, if it is inside.
    INLINE bool seen(int64_t window, int64_t entry, int64_t &place) const {
        place = window * stride + entry * dilation - padding;
        return place >= 0 && place < size;
    }

    // The window in which entry `entry` of the kernel sees a place, if there is one.
    INLINE bool sees(int64_t place, int64_t entry, int64_t &window) const {
        const int64_t from = place + padding - entry * dilation;
        window = from / stride;
        return from >= 0 && window < windows && window * stride == from;
    }
};

// Elements of a block.
constexpr int64_t GATHERED = 1024;

// x (N, H, W, C), rows (G, pixels, Kh, Kw, C / G).
template <class S> struct Gather {
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Axis rows(a, 3), columns(a, 9);
        const int64_t channels = a.numbers[1], groups = a.numbers[2], width = channels / groups;
        const int64_t pixels = a.numbers[0] * rows.windows * columns.windows;
        const int64_t total = groups * pixels * rows.kernel * columns.kernel * width;
        const int64_t start = block * GATHERED, end = min_of(start + GATHERED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                int64_t rest = at;
                const int64_t c = rest % width;
                rest /= width;
                const int64_t v = rest % columns.kernel;
                rest /= columns.kernel;
                const int64_t u = rest % rows.kernel;
                rest /= rows.kernel;
                const int64_t pixel = rest % pixels, group = rest / pixels;
                const int64_t j = pixel % columns.windows, i = pixel / columns.windows % rows.windows;
                const int64_t image = pixel / columns.windows / rows.windows;
                int64_t y, x;
                S value = {};
                if (rows.seen(i, u, y) & columns.seen(j, v, x))
                    value = array<const S>(
                        a, 0)[((image * rows.size + y) * columns.size + x) * channels + group * width + c];
                array<S>(a, 1)[at] = value;
            }
        }
    }
};

// rows (G, pixels, Kh, Kw, C / G), dx (N, H, W, C): sums in the order of the kernel's entries.
template <class S> struct Scatter {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Axis rows(a, 3), columns(a, 9);
        const int64_t channels = a.numbers[1], groups = a.numbers[2], width = channels / groups;
        const int64_t pixels = a.numbers[0] * rows.windows * columns.windows;
        const int64_t total = a.numbers[0] * rows.size * columns.size * channels;
        const int64_t start = block * GATHERED, end = min_of(start + GATHERED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                const int64_t channel = at % channels, place = at / channels;
                const int64_t x = place % columns.size, y = place / columns.size % rows.size;
                const int64_t image = place / columns.size / rows.size;
                const int64_t group = channel / width, c = channel % width;
                T sum = T(0);
                int64_t i, j;
                for (int64_t u = 0; u < rows.kernel; u++) {
                    if (!rows.sees(y, u, i)) continue;
                    for (int64_t v = 0; v < columns.kernel; v++) {
                        if (!columns.sees(x, v, j)) continue;
                        const int64_t pixel = (image * rows.windows + i) * columns.windows + j;
                        const int64_t entry = u * columns.kernel + v;
                        const int64_t row = (group * pixels + pixel) * rows.kernel * columns.kernel + entry;
                        sum += wide(array<const S>(a, 0)[row * width + c]);
                    }
                }
                narrow(sum, array<S>(a, 1)[at]);
            }
        }
    }
};

#define CONVOLUTIONS(KERNEL)                                                                                 \
    EVERY_TYPE(KERNEL, gather, Gather)                                                                       \
    EVERY_TYPE(KERNEL, scatter, Scatter)
