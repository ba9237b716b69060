// One launch for all tensors of an update: a block for each chunk of each tensor, found among the first blocks of all.

#include "rules.cuh"

// The job that a block takes a chunk of; `first` has one more, the end. All threads look, so that nobody waits for memory
// more than once.
INLINE uint64_t find_job(const uint64_t *first, uint64_t jobs, uint32_t block, uint64_t *found) {
    EACH_THREAD(t) {
        for (uint64_t job = t; job < jobs; job += THREADS) {
            if (first[job] <= block && block < first[job + 1]) *found = job;
        }
    }
    MEET();
    return *found;
}

// What `judge` has found out: whether updates are to be carried out, and the factor of gradients.
struct Verdict {
    double finite, factor;
};

// A block's chunk, packs of elements at a time where addresses allow that.
template <class Rule>
INLINE void run_block(const Job *jobs, const uint64_t *first, uint64_t count, double *partial, const Verdict *verdict,
                      double *sums, uint64_t *found, uint32_t block) {
    if (verdict && verdict->finite == 0.0) return;
    const uint64_t number = find_job(first, count, block, found);
    // A copy: what is stored in the loop could be the table, for all that the compiler knows.
    Job job = jobs[number];
    if (verdict) job.by[10] *= verdict->factor;
    const uint64_t start = (block - first[number]) * CHUNK;
    const uint64_t end = start + CHUNK < job.len ? start + CHUNK : job.len;
    EACH_THREAD(t) {
        double sum = 0.0;
        constexpr uint64_t STRIDE = (uint64_t)THREADS * WIDTH, AHEAD = (Rule::AT_ONCE - 1) * STRIDE;
        uint64_t at = start + (uint64_t)t * WIDTH;
        if (job.flags & ALIGNED) {
            if (AHEAD > 0) {
                for (; at + AHEAD + WIDTH <= end; at += AHEAD + STRIDE) {
                    for (int i = 0; i < Rule::AT_ONCE; i++) sum += Rule::template run<WIDTH>(job, at + i * STRIDE);
                }
            }
            for (; at + WIDTH <= end; at += STRIDE) sum += Rule::template run<WIDTH>(job, at);
        }
        for (; at < end; at += STRIDE) {
            const uint64_t last = end - at < WIDTH ? end : at + WIDTH;
            ROLLED for (uint64_t i = at; i < last; i++) sum += Rule::template run<1>(job, i);
        }
        sums[t] = sum;
    }
    if (!partial) return;
    MEET();
    add_up(sums);
    EACH_THREAD(t) {
        if (t == 0) partial[block] = sums[0];
    }
}

// Adds up the partial sums of each job, which are at first[job] .. first[job + 1].
INLINE void run_total(const double *partial, const uint64_t *first, double *totals, double *sums, uint32_t job) {
    EACH_THREAD(t) {
        double sum = 0.0;
        for (uint64_t i = first[job] + t; i < first[job + 1]; i += THREADS) sum += partial[i];
        sums[t] = sum;
    }
    MEET();
    add_up(sums);
    EACH_THREAD(t) {
        if (t == 0) totals[job] = sums[0];
    }
}

// Whether numbers, a loss and squared norms, are finite, and the factor that brings the norm to a limit: the operations
// of `gradients.rs` and `clip.rs` in their order, by one thread. The others fetch the numbers, THREADS of them at
// a time, and write them to the host's memory.
INLINE void run_judge(const double *numbers, uint64_t count, double limit, Verdict *verdict, double *host,
                      double *some) {
    double sum = 0.0, finite = 1.0;
    for (uint64_t at = 0; at < count; at += THREADS) {
        EACH_THREAD(t) {
            if (at + t < count) host[at + t] = some[t] = numbers[at + t];
        }
        MEET();
        EACH_THREAD(t) {
            if (t > 0) continue;
            for (uint64_t i = 0; i < THREADS && at + i < count; i++) {
                if (!(some[i] - some[i] == 0.0)) finite = 0.0;
                if (at + i > 0) sum += some[i];
            }
        }
        MEET();
    }
    EACH_THREAD(t) {
        if (t > 0) continue;
        const double norm = sqrt(sum);
        verdict->finite = finite;
        verdict->factor = norm > limit ? limit / norm : 1.0;
    }
}

// Each rule for each type of weights.
#define EVERY_TYPE(KERNEL, name, Rule)                                                                       \
    KERNEL(name##_f32, Rule<float>)                                                                          \
    KERNEL(name##_f64, Rule<double>)                                                                         \
    KERNEL(name##_bf16, Rule<Bf16>)                                                                          \
    KERNEL(name##_f16, Rule<F16>)

#define EVERY_KERNEL(KERNEL)                                                                                 \
    EVERY_TYPE(KERNEL, sgd, SgdStep)                                                                         \
    EVERY_TYPE(KERNEL, adam, AdamStep)                                                                       \
    EVERY_TYPE(KERNEL, squared_norm, SquaredNorm)                                                            \
    EVERY_TYPE(KERNEL, dot, Dot)                                                                             \
    EVERY_TYPE(KERNEL, accumulate, Accumulate)                                                               \
    EVERY_TYPE(KERNEL, adaptive, Adaptive)                                                                   \
    EVERY_TYPE(KERNEL, offset, Offset)                                                                       \
    EVERY_TYPE(KERNEL, assign, Assign)                                                                       \
    EVERY_TYPE(KERNEL, swap, Swap)                                                                           \
    EVERY_TYPE(KERNEL, pull, Pull)                                                                           \
    KERNEL(combine_f32, Combine<float>)                                                                      \
    KERNEL(combine_f64, Combine<double>)                                                                     \
    KERNEL(clamp_f32, Clamp<float>)                                                                          \
    KERNEL(clamp_f64, Clamp<double>)                                                                         \
    KERNEL(round_bf16, Round<Bf16>)                                                                          \
    KERNEL(round_f16, Round<F16>)

#ifdef SALA_EMULATED

// Runs the kernel of this name with its arguments, addresses or numbers; 0 if there is none of that name.
extern "C" int sala_emulate(const char *name, uint32_t grid, const uint64_t *of) {
    double sums[THREADS];
    uint64_t found;
#define RUN(kernel, Rule)                                                                                    \
    if (strcmp(name, #kernel) == 0) {                                                                        \
        for (uint32_t block = 0; block < grid; block++)                                                      \
            run_block<Rule>((const Job *)of[0], (const uint64_t *)of[1], of[2], (double *)of[3],             \
                            (const Verdict *)of[4], sums, &found, block);                                    \
        return 1;                                                                                            \
    }
    EVERY_KERNEL(RUN)
    if (strcmp(name, "judge") == 0) {
        double limit;
        memcpy(&limit, &of[2], sizeof limit);
        run_judge((const double *)of[0], of[1], limit, (Verdict *)of[3], (double *)of[4], sums);
        return 1;
    }
    if (strcmp(name, "total") != 0) return 0;
    for (uint32_t job = 0; job < grid; job++)
        run_total((const double *)of[0], (const uint64_t *)of[1], (double *)of[2], sums, job);
    return 1;
}

#else

// Blocks that a multiprocessor is to hold, so that enough loads are on their way. SGD in 32 bits fits into the registers
// of five; the others would move registers through memory.
template <class Rule> constexpr int RESIDENT = 1;
template <> constexpr int RESIDENT<SgdStep<float>> = 5;
template <> constexpr int RESIDENT<SgdStep<Bf16>> = 5;
template <> constexpr int RESIDENT<SgdStep<F16>> = 5;

#define DEFINE(kernel, Rule)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT<Rule>)                                    \
        kernel(const Job *jobs, const uint64_t *first, uint64_t count, double *partial,                      \
               const Verdict *verdict) {                                                                     \
        __shared__ double sums[THREADS];                                                                     \
        __shared__ uint64_t found;                                                                           \
        run_block<Rule>(jobs, first, count, partial, verdict, sums, &found, blockIdx.x);                     \
    }
EVERY_KERNEL(DEFINE)

extern "C" __global__ void __launch_bounds__(THREADS)
    total(const double *partial, const uint64_t *first, double *totals) {
    __shared__ double sums[THREADS];
    run_total(partial, first, totals, sums, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    judge(const double *numbers, uint64_t count, double limit, Verdict *verdict, double *host) {
    __shared__ double some[THREADS];
    run_judge(numbers, count, limit, verdict, host, some);
}

#endif
