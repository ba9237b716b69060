// Rows of channels, cut into tiles: a block takes some neighbouring channels of some neighbouring rows. A thread takes
// WIDTH channels, and every so many rows of the tile's.

#pragma once

#include "arguments.cuh"

// `card/tiles.rs` fills the numbers from `at` on.
struct Tile {
    int64_t rows, channels, end;
    int64_t chunks;   // parts that the rows are cut into
    int lanes;        // threads side by side
    int64_t channel0; // the tile's first channel
    int64_t row0;     // the tile's first row, which is below `end`

    INLINE Tile(const Arguments &a, int at, uint32_t block)
        : rows(a.numbers[at]), channels(a.numbers[at + 1]), lanes((int)a.numbers[at + 2]) {
        const int64_t across = a.numbers[at + 3], height = a.numbers[at + 4];
        channel0 = (block % across) * lanes * WIDTH;
        row0 = (block / across) * height;
        end = min_of(row0 + height, rows);
        chunks = (rows + height - 1) / height;
    }

    INLINE int64_t chunk(const Arguments &a, int at, uint32_t block) const { return block / a.numbers[at + 3]; }
    INLINE int64_t channel(int t) const { return channel0 + (int64_t)(t % lanes) * WIDTH; }
    INLINE int64_t first_row(int t) const { return row0 + t / lanes; }
    INLINE int step() const { return THREADS / lanes; }
    // How many of a thread's channels there are.
    INLINE int count(int t) const {
        const int64_t left = channels - channel(t);
        return left < 0 ? 0 : (int)min_of(WIDTH, left);
    }
    // Packs of a row start where those of the first do.
    INLINE bool packed() const { return channels % WIDTH == 0; }
};

// Adds what the threads of each column of a tile hold of `KINDS` sums, and writes the first row's:
// to[kind][channel][chunk], so that a team reads neighbours.
template <class T, int KINDS>
INLINE void write_tile_sums(const Tile &tile, int64_t chunk, T *memory, double *to) {
    MEET();
    for (int half = tile.step() / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if (t / tile.lanes < half) {
                for (int k = 0; k < KINDS * WIDTH; k++)
                    memory[k * THREADS + t] += memory[k * THREADS + t + half * tile.lanes];
            }
        }
        MEET();
    }
    EACH_THREAD(t) {
        if (t < tile.lanes) {
            for (int kind = 0; kind < KINDS; kind++) {
                for (int i = 0; i < tile.count(t); i++)
                    to[(kind * tile.channels + tile.channel(t) + i) * tile.chunks + chunk] =
                        (double)memory[(kind * WIDTH + i) * THREADS + t];
            }
        }
    }
}

// A team of this many threads adds up the chunks of a channel.
constexpr int TEAM = 128;

// The sums of `KINDS` kinds over all chunks for the channels of a block: the first thread of each team has them in
// sums[kind * THREADS + t].
template <int KINDS>
INLINE void add_chunks(const double *from, int64_t chunks, int64_t channels, uint32_t block, double *sums) {
    EACH_THREAD(t) {
        const int64_t channel = (int64_t)block * (THREADS / TEAM) + t / TEAM;
        for (int kind = 0; kind < KINDS; kind++) {
            double sum = 0.0;
            if (channel < channels) {
                const double *of_channel = from + (kind * channels + channel) * chunks;
                for (int64_t chunk = t % TEAM; chunk < chunks; chunk += TEAM) sum += of_channel[chunk];
            }
            sums[kind * THREADS + t] = sum;
        }
    }
    MEET();
    for (int kind = 0; kind < KINDS; kind++) add_teams(sums + kind * THREADS, TEAM);
}
