// What the kernels are written in: a block's threads, its sum, and numbers of half precision.
//
// The same source is compiled by nvcc for graphics cards and by a C++ compiler for the tests, which run it on the
// processor, a block after the other and a thread after the other (`SALA_EMULATED`). So threads may only meet between
// two THREADS loops, and what they leave for each other is in memory of the block.

#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef SALA_EMULATED
#include <math.h>
#include <string.h>
#define SHARED
#define EACH_THREAD(t) for (int t = 0; t < THREADS; t++)
#define MEET()
#define INLINE inline
#define ROLLED
#define IN_GLOBAL_MEMORY(at)
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SHARED __shared__
#define EACH_THREAD(t) for (int t = threadIdx.x, once = 1; once; once = 0)
#define MEET() __syncthreads()
#define INLINE __device__ __forceinline__
#define ROLLED _Pragma("unroll 1")
// Addresses come from a table, so the compiler does not know it.
#define IN_GLOBAL_MEMORY(at) __builtin_assume(__isGlobal(at))
#endif

// Threads of a block, elements that a thread takes at once, elements of a block. `table.rs` has the same numbers.
constexpr int THREADS = 256;
constexpr int WIDTH = 4;
constexpr uint64_t CHUNK = 16384;

// Half precision: stored only. Sums and products are f32, rounded to nearest (even) when they are stored.
#ifdef SALA_EMULATED
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// `bits` without the lowest `shift` ones, rounded to nearest, ties to even.
INLINE uint32_t rounded(uint32_t bits, int shift) {
    uint32_t half = 1u << (shift - 1), odd = (bits >> shift) & 1;
    return (bits + half - 1 + odd) >> shift;
}

INLINE float wide(Bf16 x) { return float_of((uint32_t)x.bits << 16); }

INLINE void narrow(float x, Bf16 &to) {
    to.bits = isnan(x) ? 0x7fff : (uint16_t)rounded(bits_of(x), 16);
}

INLINE float wide(F16 x) {
    uint32_t sign = (uint32_t)(x.bits >> 15) << 31, exponent = (x.bits >> 10) & 31, rest = x.bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000u | rest << 13);
    if (exponent == 0) return float_of(sign | bits_of((float)rest * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | rest << 13);
}

INLINE void narrow(float x, F16 &to) {
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        to.bits = 0x7fff;
    else if (magnitude >= 0x477ff000) // 65520, half way between the largest number and the next
        to.bits = (uint16_t)(sign | 0x7c00);
    else if (magnitude < 0x38800000) // below 2^-14: multiples of 2^-24, by the processor's rounding
        to.bits = (uint16_t)(sign | (uint32_t)lrintf(float_of(magnitude) * 0x1p24f));
    else
        to.bits = (uint16_t)(sign | rounded(magnitude - (112u << 23), 13));
}
#else
using Bf16 = __nv_bfloat16;
using F16 = __half;
INLINE float wide(Bf16 x) { return __bfloat162float(x); }
INLINE float wide(F16 x) { return __half2float(x); }
INLINE void narrow(float x, Bf16 &to) { to = __float2bfloat16_rn(x); }
INLINE void narrow(float x, F16 &to) { to = __float2half_rn(x); }
#endif
INLINE float wide(float x) { return x; }
INLINE double wide(double x) { return x; }
INLINE void narrow(float x, float &to) { to = x; }
INLINE void narrow(double x, double &to) { to = x; }

// The type that elements of a tensor are computed in.
template <class S> struct Computed {
    using Type = float;
};
template <> struct Computed<double> {
    using Type = double;
};

// Neighbouring elements, moved by one instruction where memory is aligned to 16 bytes.
template <class S, int W = WIDTH> struct alignas(sizeof(S) * W < 16 ? sizeof(S) * W : 16) Pack {
    S at[W];
};

template <int W, class S> INLINE Pack<S, W> load(const S *from) {
    IN_GLOBAL_MEMORY(from);
    return *reinterpret_cast<const Pack<S, W> *>(from);
}

template <class S, int W> INLINE void store(S *to, const Pack<S, W> &pack) {
    IN_GLOBAL_MEMORY(to);
    *reinterpret_cast<Pack<S, W> *>(to) = pack;
}

// As many of them as there are, or where they are not aligned.

template <class S> INLINE Pack<S> load(const S *from, int count, bool aligned) {
    if (aligned && count == WIDTH) return *reinterpret_cast<const Pack<S> *>(from);
    Pack<S> pack = {};
    // As many steps as the compiler knows of: an element by a number that only the run knows would be in memory.
    for (int i = 0; i < WIDTH; i++) {
        if (i < count) pack.at[i] = from[i];
    }
    return pack;
}

template <class S> INLINE void store(S *to, const Pack<S> &pack, int count, bool aligned) {
    if (aligned && count == WIDTH) {
        *reinterpret_cast<Pack<S> *>(to) = pack;
        return;
    }
    for (int i = 0; i < WIDTH; i++) {
        if (i < count) to[i] = pack.at[i];
    }
}

// Adds what the threads of a block hold, always in the same order; the result is in sums[0].
INLINE void add_up(double *sums) {
    for (int half = THREADS / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if (t < half) sums[t] += sums[t + half];
        }
        MEET();
    }
}
