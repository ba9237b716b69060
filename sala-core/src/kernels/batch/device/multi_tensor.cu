// One launch for all tensors of an update: a block for each chunk of each tensor, found in a table.

#include "rules.cuh"

// Which chunk of which job a block takes.
struct Block {
    uint32_t job, chunk;
};

// What `judge` has found out: whether updates are to be carried out, and the factor of gradients.
struct Verdict {
    double finite, factor;
};

// A block's chunk, packs of elements at a time where addresses allow that.
template <class Rule>
INLINE void run_block(const Job *jobs, const Block *blocks, double *partial, const Verdict *verdict, double *sums,
                      uint32_t block) {
    if (verdict && verdict->finite == 0.0) return;
    // A copy: what is stored in the loop could be the table, for all that the compiler knows.
    Job job = jobs[blocks[block].job];
    if (verdict) job.by[10] *= verdict->factor;
    const uint64_t start = blocks[block].chunk * CHUNK;
    const uint64_t end = start + CHUNK < job.len ? start + CHUNK : job.len;
    EACH_THREAD(t) {
        double sum = 0.0;
        for (uint64_t at = start + (uint64_t)t * WIDTH; at < end; at += (uint64_t)THREADS * WIDTH) {
            if ((job.flags & ALIGNED) && end - at >= WIDTH) {
                sum += Rule::template run<WIDTH>(job, at);
                continue;
            }
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
// of `gradients.rs` and `clip.rs` in their order, by one thread.
INLINE void run_judge(const double *numbers, uint64_t count, double limit, Verdict *verdict) {
    double sum = 0.0, finite = 1.0;
    for (uint64_t i = 0; i < count; i++) {
        if (!(numbers[i] - numbers[i] == 0.0)) finite = 0.0;
        if (i > 0) sum += numbers[i];
    }
    const double norm = sqrt(sum);
    verdict->finite = finite;
    verdict->factor = norm > limit ? limit / norm : 1.0;
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
    KERNEL(round_bf16, Round<Bf16>)                                                                          \
    KERNEL(round_f16, Round<F16>)

#ifdef SALA_EMULATED

// Runs the kernel of this name with four addresses or numbers; 0 if there is none of that name.
extern "C" int sala_emulate(const char *name, uint32_t grid, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    double sums[THREADS];
#define RUN(kernel, Rule)                                                                                    \
    if (strcmp(name, #kernel) == 0) {                                                                        \
        for (uint32_t block = 0; block < grid; block++)                                                      \
            run_block<Rule>((const Job *)a, (const Block *)b, (double *)c, (const Verdict *)d, sums, block); \
        return 1;                                                                                            \
    }
    EVERY_KERNEL(RUN)
    if (strcmp(name, "judge") == 0) {
        double limit;
        memcpy(&limit, &c, sizeof limit);
        run_judge((const double *)a, b, limit, (Verdict *)d);
        return 1;
    }
    if (strcmp(name, "total") != 0) return 0;
    for (uint32_t job = 0; job < grid; job++)
        run_total((const double *)a, (const uint64_t *)b, (double *)c, sums, job);
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
        kernel(const Job *jobs, const Block *blocks, double *partial, const Verdict *verdict) {              \
        __shared__ double sums[THREADS];                                                                     \
        run_block<Rule>(jobs, blocks, partial, verdict, sums, blockIdx.x);                                   \
    }
EVERY_KERNEL(DEFINE)

extern "C" __global__ void __launch_bounds__(THREADS)
    total(const double *partial, const uint64_t *first, double *totals, const Verdict *) {
    __shared__ double sums[THREADS];
    run_total(partial, first, totals, sums, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    judge(const double *numbers, uint64_t count, double limit, Verdict *verdict) {
    if (threadIdx.x == 0) run_judge(numbers, count, limit, verdict);
}

#endif
