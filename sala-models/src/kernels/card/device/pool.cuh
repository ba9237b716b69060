// Maxima and means of windows of images (N, H, W, C), and back; `card/pool.rs` says where windows are.

#pragma once

#include "arguments.cuh"

// Windows along an axis.
struct Windows {
    int64_t size, count, kernel, stride, padding;
    bool count_padding;

    INLINE Windows(const Arguments &a, int at)
        : size(a.numbers[at]), count(a.numbers[at + 1]), kernel(a.numbers[at + 2]), stride(a.numbers[at + 3]),
          padding(a.numbers[at + 4]), count_padding(a.numbers[at + 5] != 0) {}

    // Covering windows have no stride.
    INLINE bool covering() const { return stride == 0; }
    INLINE int64_t first(int64_t i) const {
        if (covering()) return i * size / count;
        const int64_t from = i * stride - padding;
        return from < 0 ? 0 : from;
    }
    INLINE int64_t end(int64_t i) const {
        if (covering()) return ((i + 1) * size + count - 1) / count;
        return min_of(i * stride - padding + kernel, size);
    }
    // Places that count for a mean.
    INLINE int64_t places(int64_t i) const {
        if (!count_padding) return end(i) - first(i);
        return min_of(i * stride + kernel, size + 2 * padding) - i * stride;
    }
    // The windows that cover a place: from `from` up to, but without, `to`.
    INLINE int64_t from(int64_t place) const {
        if (covering()) return place * count / size;
        const int64_t behind = place + padding - kernel + 1;
        return behind <= 0 ? 0 : (behind + stride - 1) / stride;
    }
    INLINE int64_t to(int64_t place) const {
        if (covering()) return min_of(((place + 1) * count + size - 1) / size, count);
        return min_of((place + padding) / stride + 1, count);
    }
};

// Elements of a block.
constexpr int64_t POOLED = 1024;

// Where an element is: image, row, column and channel of (N, height, width, C).
struct Place {
    int64_t image, row, column, channel;

    INLINE Place(int64_t at, int64_t height, int64_t width, int64_t channels) {
        channel = at % channels;
        at /= channels;
        column = at % width;
        at /= width;
        row = at % height;
        image = at / height;
    }
};

INLINE int64_t element(int64_t image, int64_t row, int64_t column, int64_t channel, int64_t height, int64_t width,
                       int64_t channels) {
    return ((image * height + row) * width + column) * channels + channel;
}

// x, y, winners. The first of the largest wins; a NaN is larger than everything.
template <class S> struct MaxPool {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Windows rows(a, 2), columns(a, 8);
        const int64_t channels = a.numbers[1], total = a.numbers[0] * rows.count * columns.count * channels;
        const int64_t start = block * POOLED, end = min_of(start + POOLED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                const Place p(at, rows.count, columns.count, channels);
                S largest = {};
                uint32_t winner = 0;
                bool found = false;
                for (int64_t i = rows.first(p.row); i < rows.end(p.row); i++) {
                    for (int64_t j = columns.first(p.column); j < columns.end(p.column); j++) {
                        const S x = array<const S>(
                            a, 0)[element(p.image, i, j, p.channel, rows.size, columns.size, channels)];
                        const T value = wide(x), best = wide(largest);
                        if (!found || (best == best && !(value <= best))) {
                            largest = x;
                            winner = (uint32_t)(i * columns.size + j);
                            found = true;
                        }
                    }
                }
                array<S>(a, 1)[at] = largest;
                array<uint32_t>(a, 2)[at] = winner;
            }
        }
    }
};

// dy, dx, winners.
template <class S> struct MaxPoolBack {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Windows rows(a, 2), columns(a, 8);
        const int64_t channels = a.numbers[1], total = a.numbers[0] * rows.size * columns.size * channels;
        const int64_t start = block * POOLED, end = min_of(start + POOLED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                const Place p(at, rows.size, columns.size, channels);
                const uint32_t here = (uint32_t)(p.row * columns.size + p.column);
                T sum = T(0);
                for (int64_t i = rows.from(p.row); i < rows.to(p.row); i++) {
                    for (int64_t j = columns.from(p.column); j < columns.to(p.column); j++) {
                        const int64_t of = element(p.image, i, j, p.channel, rows.count, columns.count, channels);
                        if (array<const uint32_t>(a, 2)[of] == here) sum += wide(array<const S>(a, 0)[of]);
                    }
                }
                narrow(sum, array<S>(a, 1)[at]);
            }
        }
    }
};

// x, y.
template <class S> struct MeanPool {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Windows rows(a, 2), columns(a, 8);
        const int64_t channels = a.numbers[1], total = a.numbers[0] * rows.count * columns.count * channels;
        const int64_t start = block * POOLED, end = min_of(start + POOLED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                const Place p(at, rows.count, columns.count, channels);
                T sum = T(0);
                for (int64_t i = rows.first(p.row); i < rows.end(p.row); i++) {
                    for (int64_t j = columns.first(p.column); j < columns.end(p.column); j++)
                        sum += wide(array<const S>(
                            a, 0)[element(p.image, i, j, p.channel, rows.size, columns.size, channels)]);
                }
                narrow(sum / T(rows.places(p.row) * columns.places(p.column)), array<S>(a, 1)[at]);
            }
        }
    }
};

// dy, dx.
template <class S> struct MeanPoolBack {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const Windows rows(a, 2), columns(a, 8);
        const int64_t channels = a.numbers[1], total = a.numbers[0] * rows.size * columns.size * channels;
        const int64_t start = block * POOLED, end = min_of(start + POOLED, total);
        EACH_THREAD(t) {
            for (int64_t at = start + t; at < end; at += THREADS) {
                const Place p(at, rows.size, columns.size, channels);
                T sum = T(0);
                for (int64_t i = rows.from(p.row); i < rows.to(p.row); i++) {
                    for (int64_t j = columns.from(p.column); j < columns.to(p.column); j++) {
                        const int64_t of = element(p.image, i, j, p.channel, rows.count, columns.count, channels);
                        sum += wide(array<const S>(a, 0)[of]) / T(rows.places(i) * columns.places(j));
                    }
                }
                narrow(sum, array<S>(a, 1)[at]);
            }
        }
    }
};

#define POOLS(KERNEL)                                                                                        \
    EVERY_TYPE(KERNEL, max_pool, MaxPool)                                                                    \
    EVERY_TYPE(KERNEL, max_pool_back, MaxPoolBack)                                                           \
    EVERY_TYPE(KERNEL, mean_pool, MeanPool)                                                                  \
    EVERY_TYPE(KERNEL, mean_pool_back, MeanPoolBack)
