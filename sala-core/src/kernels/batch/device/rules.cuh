// The updates of one element, and of the W elements beside each other that a thread takes at once: WIDTH or 1.
//
// The equations are explained in `base/` and `slow/weights.rs`; `loops.rs` has the same operations in the same order
// for the processor. Constants arrive as f64 and are rounded to the type of the computation.

#pragma once

#include "block.cuh"

// One tensor's share of a launch. Addresses that a rule does not use are 0. `table.rs` writes it.
struct Job {
    uint64_t at[6];
    uint64_t len;
    double by[11];
    uint64_t flags;
};

// Bits of `flags`.
constexpr uint64_t ALIGNED = 1;   // every address is a multiple of 16
constexpr uint64_t COUPLED = 2;   // weight decay enters the gradient
constexpr uint64_t FIRST = 4;     // the momentum buffer holds nothing yet
constexpr uint64_t NESTEROV = 8;
constexpr uint64_t RETURN = 16;   // the fast weights become the pulled slow ones
constexpr uint64_t BF16_GRADIENT = 32, F16_GRADIENT = 64; // not of the type that is computed in

template <class S> INLINE S *array(const Job &job, int which) {
    return reinterpret_cast<S *>(static_cast<uintptr_t>(job.at[which]));
}

// b <- momentum b + undamped d; w <- shrink w - lr d'.
template <class T> struct Sgd {
    static constexpr bool TWICE = false; // one buffer
    T lr, decay, shrink, momentum, undamped;
    bool coupled, first, nesterov, buffered;

    INLINE explicit Sgd(const Job &job)
        : lr((T)job.by[0]), decay((T)job.by[1]), shrink((T)job.by[2]), momentum((T)job.by[3]),
          undamped((T)job.by[4]), coupled(job.flags & COUPLED), first(job.flags & FIRST),
          nesterov(job.flags & NESTEROV), buffered(job.at[2] != 0) {}

    INLINE T step(T w, T g, T &b, T &) const {
        T d = coupled ? g + w * decay : g;
        if (buffered) {
            b = first ? d : b * momentum + d * undamped;
            d = nesterov ? d + b * momentum : b;
        }
        return w * shrink - d * lr;
    }
};

// m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; w <- shrink w - step m / (unbias sqrt(v) + eps).
template <class T> struct Adam {
    static constexpr bool TWICE = true;
    T decay, shrink, keep1, take1, keep2, take2, unbias, eps, size;
    bool coupled;

    INLINE explicit Adam(const Job &job)
        : decay((T)job.by[1]), shrink((T)job.by[2]), keep1((T)job.by[3]), take1((T)job.by[4]),
          keep2((T)job.by[5]), take2((T)job.by[6]), unbias((T)job.by[7]), eps((T)job.by[8]),
          size((T)job.by[0]), coupled(job.flags & COUPLED) {}

    INLINE T step(T w, T g, T &m, T &v) const {
        if (coupled) g = g + w * decay;
        m = m * keep1 + g * take1;
        v = v * keep2 + g * g * take2;
        T root = sqrt(v) * unbias + eps;
        return w * shrink - m / root * size;
    }
};

// phi <- phi + alpha (theta - phi), and the square of the difference.
template <class T> INLINE T pulled(T slow, T fast, T alpha, double &sum) {
    T difference = fast - slow;
    sum += (double)difference * (double)difference;
    return slow + difference * alpha;
}

// The elements of a job from `at` on: each rule yields its part of the job's sum. A thread asks for the elements of AT_ONCE
// calls before it waits for the first ones. Rules that store take one call after the other, since memory that is
// stored to may be what the next call loads.
struct Stores {
    static constexpr int AT_ONCE = 1;
};
struct LoadsAlone {
    static constexpr int AT_ONCE = 4;
};

template <class T, class S, int W> INLINE Pack<T, W> widened(const Pack<S, W> &pack) {
    Pack<T, W> result;
    for (int i = 0; i < W; i++) result.at[i] = wide(pack.at[i]);
    return result;
}

// What may be of half precision where the rule computes in f32: operand 1, whatever the rule.
template <class T, int W> INLINE Pack<T, W> load_gradient(const Job &job, uint64_t at) {
    if (job.flags & BF16_GRADIENT) return widened<T>(load<W>(array<const Bf16>(job, 1) + at));
    if (job.flags & F16_GRADIENT) return widened<T>(load<W>(array<const F16>(job, 1) + at));
    return load<W>(array<const T>(job, 1) + at);
}

// Weights, gradient, two buffers, the weights to start from, slow weights; by[9] is alpha, by[10] the gradient's factor.
template <class S, template <class> class Rule> struct Step : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const Rule<T> rule(job);
        const T alpha = (T)job.by[9], factor = (T)job.by[10];
        S *weights = array<S>(job, 0) + at;
        const T *from = array<T>(job, 4);
        T *first = array<T>(job, 2), *second = Rule<T>::TWICE ? array<T>(job, 3) : nullptr;
        T *slow = array<T>(job, 5);
        Pack<T, W> w, b = {}, v = {}, phi = {};
        if (from) {
            w = load<W>(from + at);
        } else {
            w = widened<T>(load<W>(weights));
        }
        const Pack<T, W> g = load_gradient<T, W>(job, at);
        if (first) b = load<W>(first + at);
        if (second) v = load<W>(second + at);
        if (slow) phi = load<W>(slow + at);
        double sum = 0.0;
        Pack<S, W> to;
        for (int i = 0; i < W; i++) {
            narrow(rule.step(w.at[i], g.at[i] * factor, b.at[i], v.at[i]), to.at[i]);
            if (slow) {
                phi.at[i] = pulled(phi.at[i], wide(to.at[i]), alpha, sum);
                if (job.flags & RETURN) narrow(phi.at[i], to.at[i]);
            }
        }
        store(weights, to);
        if (first) store(first + at, b);
        if (second) store(second + at, v);
        if (slow) store(slow + at, phi);
        return sum;
    }
};
template <class S> struct SgdStep : Step<S, Sgd> {};
template <class S> struct AdamStep : Step<S, Adam> {};

// x: the sum of squares.
template <class S> struct SquaredNorm : LoadsAlone {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        Pack<S, W> x = load<W>(array<const S>(job, 0) + at);
        double sum = 0.0;
        for (int i = 0; i < W; i++) sum += (double)wide(x.at[i]) * (double)wide(x.at[i]);
        return sum;
    }
};

// x, y: the sum of products.
template <class S> struct Dot : LoadsAlone {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        Pack<S, W> x = load<W>(array<const S>(job, 0) + at);
        Pack<S, W> y = load<W>(array<const S>(job, 1) + at);
        double sum = 0.0;
        for (int i = 0; i < W; i++) sum += (double)wide(x.at[i]) * (double)wide(y.at[i]);
        return sum;
    }
};

// sum, x as a gradient: sum <- sum + factor x.
template <class S> struct Accumulate : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T factor = (T)job.by[0];
        S *to = array<S>(job, 0) + at;
        Pack<S, W> sum = load<W>(to);
        const Pack<T, W> x = load_gradient<T, W>(job, at);
        for (int i = 0; i < W; i++) narrow(wide(sum.at[i]) + x.at[i] * factor, sum.at[i]);
        store(to, sum);
        return 0.0;
    }
};

// Result, x as a gradient, y if there is one: a x + b y or a x.
template <class T> struct Combine : Stores {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T a = (T)job.by[0], b = (T)job.by[1];
        const T *other = array<T>(job, 2);
        const Pack<T, W> x = load_gradient<T, W>(job, at);
        Pack<T, W> y = {}, result;
        if (other) y = load<W>(other + at);
        for (int i = 0; i < W; i++) result.at[i] = other ? x.at[i] * a + y.at[i] * b : x.at[i] * a;
        store(array<T>(job, 0) + at, result);
        return 0.0;
    }
};

// Result, x as a gradient: x, but neither below -limit nor above limit.
template <class T> struct Clamp : Stores {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T limit = (T)job.by[0];
        Pack<T, W> x = load_gradient<T, W>(job, at);
        for (int i = 0; i < W; i++) {
            T at_least = x.at[i] < -limit ? -limit : x.at[i];
            x.at[i] = at_least > limit ? limit : at_least;
        }
        store(array<T>(job, 0) + at, x);
        return 0.0;
    }
};

// Weights, gradient, direction: T^2 g, and the sum of (T g)^2, with T = |w| + eta.
template <class S> struct Adaptive : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T eta = (T)job.by[0];
        Pack<S, W> w = load<W>(array<const S>(job, 0) + at);
        const Pack<T, W> g = load_gradient<T, W>(job, at);
        Pack<T, W> d = {};
        double sum = 0.0;
        for (int i = 0; i < W; i++) {
            T magnitude = wide(w.at[i]);
            magnitude = (magnitude < 0 ? -magnitude : magnitude) + eta;
            T scaled = magnitude * g.at[i];
            d.at[i] = magnitude * scaled;
            sum += (double)scaled * (double)scaled;
        }
        store(array<T>(job, 2) + at, d);
        return sum;
    }
};

// New weights, direction as a gradient, weights: w + scale d.
template <class S> struct Offset : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T scale = (T)job.by[0];
        Pack<S, W> w = load<W>(array<const S>(job, 2) + at);
        const Pack<T, W> d = load_gradient<T, W>(job, at);
        for (int i = 0; i < W; i++) narrow(wide(w.at[i]) + d.at[i] * scale, w.at[i]);
        store(array<S>(job, 0) + at, w);
        return 0.0;
    }
};

// Destination, source of the same type.
template <class S> struct Assign : Stores {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        store(array<S>(job, 0) + at, load<W>(array<const S>(job, 1) + at));
        return 0.0;
    }
};

// Destination, source of the type that the destination is computed in: rounded.
template <class S> struct Round : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        Pack<T, W> from = load<W>(array<const T>(job, 1) + at);
        Pack<S, W> to = {};
        for (int i = 0; i < W; i++) narrow(from.at[i], to.at[i]);
        store(array<S>(job, 0) + at, to);
        return 0.0;
    }
};

// Two arrays change places.
template <class S> struct Swap : Stores {
    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        S *a = array<S>(job, 0) + at, *b = array<S>(job, 1) + at;
        Pack<S, W> from_a = load<W>(a), from_b = load<W>(b);
        store(a, from_b);
        store(b, from_a);
        return 0.0;
    }
};

// Weights, slow weights; by[9] is alpha. Only a return writes the weights.
template <class S> struct Pull : Stores {
    using T = typename Computed<S>::Type;

    template <int W> static INLINE double run(const Job &job, uint64_t at) {
        const T alpha = (T)job.by[9];
        S *weights = array<S>(job, 0) + at;
        T *slow = array<T>(job, 1) + at;
        Pack<S, W> w = load<W>(weights);
        Pack<T, W> phi = load<W>(slow);
        double sum = 0.0;
        for (int i = 0; i < W; i++) {
            phi.at[i] = pulled(phi.at[i], wide(w.at[i]), alpha, sum);
            narrow(phi.at[i], w.at[i]);
        }
        store(slow, phi);
        if (job.flags & RETURN) store(weights, w);
        return sum;
    }
};
