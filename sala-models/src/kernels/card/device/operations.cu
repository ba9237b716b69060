// The kernels of the operations, each for each type of elements. A family of operations has a file of its own.

#include "activation.cuh"
#include "batch_norm.cuh"
#include "conv.cuh"
#include "images.cuh"
#include "lookup.cuh"
#include "loss.cuh"
#include "norm.cuh"
#include "philox.cuh"
#include "pool.cuh"
#include "softmax.cuh"

#define EVERY_TYPE(KERNEL, name, Rule)                                                                       \
    KERNEL(name##_f32, Rule<float>)                                                                          \
    KERNEL(name##_f64, Rule<double>)                                                                         \
    KERNEL(name##_bf16, Rule<Bf16>)                                                                          \
    KERNEL(name##_f16, Rule<F16>)

#define EVERY_KERNEL(KERNEL)                                                                                 \
    ACTIVATIONS(KERNEL)                                                                                      \
    ROWS_OF_CHANNELS(KERNEL)                                                                                 \
    CONVOLUTIONS(KERNEL)                                                                                     \
    NORMS(KERNEL)                                                                                            \
    DROPOUT(KERNEL)                                                                                          \
    POOLS(KERNEL)                                                                                            \
    SOFTMAXES(KERNEL)                                                                                        \
    LOOKUPS(KERNEL)                                                                                          \
    LOSSES(KERNEL)                                                                                           \
    IMAGES(KERNEL)

#ifdef SALA_EMULATED

// Runs the kernel of this name, a block after the other; 0 if there is none of that name.
extern "C" int sala_models_emulate(const char *name, uint32_t grid, const Arguments *a) {
#define RUN(kernel, ...)                                                                                     \
    if (strcmp(name, #kernel) == 0) {                                                                        \
        alignas(16) static thread_local char memory[__VA_ARGS__::MEMORY];                                    \
        for (uint32_t block = 0; block < grid; block++) __VA_ARGS__::run(*a, memory, block);                 \
        return 1;                                                                                            \
    }
    EVERY_KERNEL(RUN)
    return 0;
}

#else

#define DEFINE(kernel, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) kernel(const Arguments a) {                        \
        __shared__ alignas(16) char memory[__VA_ARGS__::MEMORY];                                             \
        __VA_ARGS__::run(a, memory, blockIdx.x);                                                             \
    }
EVERY_KERNEL(DEFINE)

#endif
