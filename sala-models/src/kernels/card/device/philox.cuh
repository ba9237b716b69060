// Which entries dropout drops: Philox4x32-10, laid out as `rng.rs` says. Entry i has word i of a stream.

#pragma once

#include "arguments.cuh"

struct Words {
    uint32_t at[4];
};

INLINE Words philox(uint64_t block, uint32_t tag0, uint32_t tag1, uint32_t key0, uint32_t key1) {
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = tag0, c3 = tag1;
    for (int round = 0; round < 10; round++) {
        const uint64_t first = (uint64_t)0xD2511F53u * c0, second = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(second >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)second;
        c2 = (uint32_t)(first >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)first;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// `card/dropout.rs` fills the numbers from `at` on.
struct DropoutMask {
    uint32_t last; // the last word that drops
    uint32_t seed0, seed1, tag0, tag1;

    INLINE DropoutMask(const Arguments &a, int at)
        : last((uint32_t)a.numbers[at]), seed0((uint32_t)a.numbers[at + 1]), seed1((uint32_t)a.numbers[at + 2]),
          tag0((uint32_t)a.numbers[at + 3]), tag1((uint32_t)a.numbers[at + 4]) {}

    INLINE Words words(uint64_t block) const { return philox(block, tag0, tag1, seed0, seed1); }

    // What the WIDTH entries from number `index` on are multiplied with, 0 or `scale`.
    template <class T> INLINE Pack<T> factors(int64_t index, T scale) const {
        const int before = (int)(index & 3);
        Words words = this->words((uint64_t)index >> 2);
        if (before != 0) {
            const Words next = this->words(((uint64_t)index >> 2) + 1);
            // A word at a time, so that none is looked up by a number that only the run knows: that takes memory.
            for (int step = 0; step < 3; step++) {
                if (step < before) {
                    words.at[0] = words.at[1];
                    words.at[1] = words.at[2];
                    words.at[2] = words.at[3];
                    words.at[3] = next.at[step];
                }
            }
        }
        Pack<T> pack = {};
        for (int i = 0; i < WIDTH; i++) pack.at[i] = words.at[i] > last ? scale : T(0);
        return pack;
    }
};

// x, y: y = x mask / (1 - p); numbers: elements, then a mask's; factors: 1 / (1 - p).
template <class S> struct Drop {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const int64_t start = block * EACH, end = min_of(start + EACH, a.numbers[0]);
        const bool packed = aligned(a, 0) && aligned(a, 1);
        const DropoutMask mask(a, 1);
        const T scale = (T)a.factors[0];
        EACH_THREAD(t) {
            for (int64_t at = start + t * WIDTH; at < end; at += THREADS * WIDTH) {
                const int count = (int)min_of((int64_t)WIDTH, end - at);
                const Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                const Pack<T> kept = mask.factors(at, scale);
                Pack<S> y = {};
                // A product with 0, not 0: an infinite or undefined entry shows, dropped or not.
                for (int i = 0; i < WIDTH; i++) narrow(wide(x.at[i]) * kept.at[i], y.at[i]);
                store(array<S>(a, 1) + at, y, count, packed);
            }
        }
    }
};

#define DROPOUT(KERNEL) EVERY_TYPE(KERNEL, dropout, Drop)
