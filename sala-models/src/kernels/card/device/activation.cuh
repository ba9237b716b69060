// Activations and their derivatives; `kernels/activation.rs` has the equations.

#pragma once

#include "arguments.cuh"

// Of a NaN x <= 0 does not hold: it stays.
template <class T> struct Relu {
    static INLINE T value(T x) { return x <= T(0) ? T(0) : x; }
    static INLINE T back(T x, T dy) { return x <= T(0) ? T(0) : dy; }
};

template <class T> struct Relu6 {
    static INLINE T value(T x) { return x >= T(6) ? T(6) : Relu<T>::value(x); }
    static INLINE T back(T x, T dy) { return x >= T(6) ? T(0) : Relu<T>::back(x, dy); }
};

template <class T> INLINE T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }

template <class T> struct Silu {
    static INLINE T value(T x) { return x * sigmoid(x); }
    static INLINE T back(T x, T dy) {
        T sigma = sigmoid(x);
        return dy * (sigma * (T(1) + x * (T(1) - sigma)));
    }
};

// The normal distribution function, by the complement where the value is small: 1 + erf would lose its digits.
template <class T> INLINE T below(T x) { return T(0.5) * erfc(x * T(-0.70710678118654752)); }

template <class T> struct Gelu {
    static INLINE T value(T x) { return x * below(x); }
    static INLINE T back(T x, T dy) {
        T density = T(0.39894228040143268) * exp(T(-0.5) * x * x);
        return dy * (below(x) + x * density);
    }
};

template <class T> struct GeluTanh {
    static constexpr double SCALE = 1.5957691216057308; // 2 sqrt(2 / pi)
    static constexpr double CUBIC = 0.044715;

    static INLINE T value(T x) { return x * sigmoid(T(SCALE) * x * (T(1) + T(CUBIC) * x * x)); }
    static INLINE T back(T x, T dy) {
        T square = T(CUBIC) * x * x;
        T sigma = sigmoid(T(SCALE) * x * (T(1) + square));
        T slope = T(SCALE) * (T(1) + T(3) * square);
        return dy * (sigma * (T(1) + x * (T(1) - sigma) * slope));
    }
};

// x, y: y = f(x).
template <class S, template <class> class F> struct Values {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const int64_t start = block * EACH, end = min_of(start + EACH, a.numbers[0]);
        const bool packed = aligned(a, 0) && aligned(a, 1);
        EACH_THREAD(t) {
            for (int64_t at = start + t * WIDTH; at < end; at += THREADS * WIDTH) {
                const int count = (int)min_of((int64_t)WIDTH, end - at);
                Pack<S> x = load(array<const S>(a, 0) + at, count, packed), y = {};
                for (int i = 0; i < WIDTH; i++) narrow(F<T>::value(wide(x.at[i])), y.at[i]);
                store(array<S>(a, 1) + at, y, count, packed);
            }
        }
    }
};

// x, dy, dx: dx = f'(x) dy.
template <class S, template <class> class F> struct Gradients {
    using T = typename Computed<S>::Type;
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const int64_t start = block * EACH, end = min_of(start + EACH, a.numbers[0]);
        const bool packed = aligned(a, 0) && aligned(a, 1) && aligned(a, 2);
        EACH_THREAD(t) {
            for (int64_t at = start + t * WIDTH; at < end; at += THREADS * WIDTH) {
                const int count = (int)min_of((int64_t)WIDTH, end - at);
                Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                Pack<S> dy = load(array<const S>(a, 1) + at, count, packed), dx = {};
                for (int i = 0; i < WIDTH; i++) narrow(F<T>::back(wide(x.at[i]), wide(dy.at[i])), dx.at[i]);
                store(array<S>(a, 2) + at, dx, count, packed);
            }
        }
    }
};

// a, b, y: y = a + b.
template <class S> struct Sum {
    static constexpr int MEMORY = NO_MEMORY;

    static INLINE void run(const Arguments &a, void *, uint32_t block) {
        const int64_t start = block * EACH, end = min_of(start + EACH, a.numbers[0]);
        const bool packed = aligned(a, 0) && aligned(a, 1) && aligned(a, 2);
        EACH_THREAD(t) {
            for (int64_t at = start + t * WIDTH; at < end; at += THREADS * WIDTH) {
                const int count = (int)min_of((int64_t)WIDTH, end - at);
                Pack<S> x = load(array<const S>(a, 0) + at, count, packed);
                Pack<S> y = load(array<const S>(a, 1) + at, count, packed), sum = {};
                for (int i = 0; i < WIDTH; i++) narrow(wide(x.at[i]) + wide(y.at[i]), sum.at[i]);
                store(array<S>(a, 2) + at, sum, count, packed);
            }
        }
    }
};

template <class S> struct ReluValues : Values<S, Relu> {};
template <class S> struct ReluGradients : Gradients<S, Relu> {};
template <class S> struct Relu6Values : Values<S, Relu6> {};
template <class S> struct Relu6Gradients : Gradients<S, Relu6> {};
template <class S> struct SiluValues : Values<S, Silu> {};
template <class S> struct SiluGradients : Gradients<S, Silu> {};
template <class S> struct GeluValues : Values<S, Gelu> {};
template <class S> struct GeluGradients : Gradients<S, Gelu> {};
template <class S> struct GeluTanhValues : Values<S, GeluTanh> {};
template <class S> struct GeluTanhGradients : Gradients<S, GeluTanh> {};

#define ACTIVATIONS(KERNEL)                                                                                  \
    EVERY_TYPE(KERNEL, add, Sum)                                                                             \
    EVERY_TYPE(KERNEL, relu, ReluValues)                                                                     \
    EVERY_TYPE(KERNEL, relu_back, ReluGradients)                                                             \
    EVERY_TYPE(KERNEL, relu6, Relu6Values)                                                                   \
    EVERY_TYPE(KERNEL, relu6_back, Relu6Gradients)                                                           \
    EVERY_TYPE(KERNEL, silu, SiluValues)                                                                     \
    EVERY_TYPE(KERNEL, silu_back, SiluGradients)                                                             \
    EVERY_TYPE(KERNEL, gelu, GeluValues)                                                                     \
    EVERY_TYPE(KERNEL, gelu_back, GeluGradients)                                                             \
    EVERY_TYPE(KERNEL, gelu_tanh, GeluTanhValues)                                                            \
    EVERY_TYPE(KERNEL, gelu_tanh_back, GeluTanhGradients)
