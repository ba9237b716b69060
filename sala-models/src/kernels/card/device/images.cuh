// Batches of images put together from bytes on the card; `images.rs` has the equations.

#pragma once

#include "arguments.cuh"

// A product that the compiler does not join with a sum: both are rounded, as on the processor.
INLINE float rounded_product(float a, float b) {
#ifdef SALA_EMULATED
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}

// images (N, C, H, W), tables (C, 256), plan (B, words), y (B, C, H, W). numbers: elements of y, C, H, W, words of a view,
// its cleared rectangles, the kind of mixture, and the rows and columns that are pasted: first and end of each. factors:
// the own share of a blend, and the partner's. A view is its image, its partner's place in the batch, the row that each row
// shows, the column that each column shows, and the rows and columns of each cleared rectangle.
template <class S> struct ImageBatch {
    static constexpr int MEMORY = NO_MEMORY;
    static constexpr uint32_t NOTHING = 0xffffffffu;

    // Where an element is.
    struct Place {
        uint32_t channel, row, column;
    };

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const uint32_t end = (uint32_t)min_of(a.numbers[0], ((int64_t)block + 1) * EACH);
        const uint32_t channels = (uint32_t)a.numbers[1], height = (uint32_t)a.numbers[2];
        const uint32_t width = (uint32_t)a.numbers[3];
        EACH_THREAD(t) {
            for (uint32_t at = block * (uint32_t)EACH + (uint32_t)t; at < end; at += THREADS) {
                const uint32_t row = at / width, plane = row / height, image = plane / channels;
                const Place place = {plane % channels, row % height, at % width};
                array<S>(a, 3)[at] = mixed(a, image, place);
            }
        }
    }

    static INLINE const uint32_t *view_of(const Arguments &a, uint32_t image) {
        return array<const uint32_t>(a, 2) + (int64_t)image * a.numbers[4];
    }

    static INLINE bool within(const Place &at, int64_t top, int64_t bottom, int64_t left, int64_t right) {
        return at.row >= top && at.row < bottom && at.column >= left && at.column < right;
    }

    static INLINE S mixed(const Arguments &a, uint32_t image, const Place &at) {
        const uint32_t *view = view_of(a, image);
        const int64_t kind = a.numbers[6];
        if (kind == 1) {
            const S own = seen(a, view, at), other = seen(a, view_of(a, view[1]), at);
            return rounded_product((S)a.factors[0], own) + rounded_product((S)a.factors[1], other);
        }
        const bool pasted = kind == 2 && within(at, a.numbers[7], a.numbers[8], a.numbers[9], a.numbers[10]);
        return seen(a, pasted ? view_of(a, view[1]) : view, at);
    }

    // What a view shows.
    static INLINE S seen(const Arguments &a, const uint32_t *view, const Place &at) {
        const int64_t channels = a.numbers[1], height = a.numbers[2], width = a.numbers[3];
        const uint32_t *rows = view + 2, *columns = rows + height, *cleared = columns + width;
        for (int64_t i = 0; i < a.numbers[5]; i++, cleared += 4) {
            if (within(at, cleared[0], cleared[1], cleared[2], cleared[3])) return S(0);
        }
        const uint32_t row = rows[at.row], column = columns[at.column];
        uint8_t pixel = 0;
        if (row != NOTHING && column != NOTHING) {
            const int64_t plane = (int64_t)view[0] * channels + at.channel;
            pixel = array<const uint8_t>(a, 0)[(plane * height + row) * width + column];
        }
        return array<const S>(a, 1)[at.channel * 256 + pixel];
    }
};

#define IMAGES(KERNEL) KERNEL(image_batch_f32, ImageBatch<float>)
