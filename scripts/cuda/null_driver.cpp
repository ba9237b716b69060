// A driver without a card: it hands out addresses, counts what it is asked for and computes nothing. `null.py` adds the
// functions that are not here, which only succeed.
//
// Addresses that kernels of this project are told, in their arguments or in tables that were uploaded, are looked up: one
// that was freed, or belongs to nothing, is named on standard error. A process appends what it counted to the
// file NULL_CUDA_LOG when it ends: its command line, then a line for each function and kernel.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

namespace {

// Above every number that a table of this project has beside its addresses.
constexpr uint64_t FIRST = 1ull << 46;
constexpr uint64_t ALIGNMENT = 512;
// Tables are small; images and weights, whose bytes could be anything, are not.
constexpr size_t TABLE = 1 << 20;
// Addresses at the beginning of the one argument of an operation's kernel; arguments of an update's, of the
// one that adds up and of the one that judges.
constexpr int OF_OPERATION = 10, OF_UPDATE = 5, OF_TOTAL = 3, OF_JUDGE = 4;
// More than that is uploaded from ordinary memory only after the host has waited.
constexpr size_t AT_ONCE = 64 << 10;
constexpr int INVALID_VALUE = 1;

enum class Module : uintptr_t { Other = 1, Operations, Updates };

struct Function {
    std::string name;
    Module module;
    long launches = 0;
};

void complain(const char *where, uint64_t at) {
    fprintf(stderr, "null driver: %s is told %llx, which is nobody's\n", where, (unsigned long long)at);
}

struct Driver {
    // Without a log nothing is counted and looked up, so that the time of the host is its own.
    const bool counting = getenv("NULL_CUDA_LOG");
    std::mutex mutex;
    std::map<std::string, long> calls;
    std::map<std::pair<std::string, uintptr_t>, Function *> functions;
    std::map<uint64_t, size_t> live;
    std::atomic<uint64_t> next{FIRST};
    long looked_up = 0, dead = 0;

    ~Driver() {
        if (!counting) return;
        std::ifstream line("/proc/self/cmdline");
        std::string command((std::istreambuf_iterator<char>(line)), {});
        for (char &c : command) c = c ? c : ' ';
        std::ofstream log(getenv("NULL_CUDA_LOG"), std::ios::app);
        log << "$ " << command << "\n";
        for (const auto &[name, count] : calls) log << count << " " << name << "\n";
        for (const auto &[_, f] : functions)
            if (f->launches) log << f->launches << " kernel " << f->name << "\n";
        log << looked_up << " addresses looked up\n" << dead << " of them dead\n";
    }

    void count(const char *what) {
        if (!counting) return;
        std::lock_guard<std::mutex> guard(mutex);
        calls[what]++;
    }

    uint64_t allocate(size_t bytes) {
        const uint64_t at = next.fetch_add((bytes / ALIGNMENT + 1) * ALIGNMENT);
        if (!counting) return at;
        std::lock_guard<std::mutex> guard(mutex);
        calls["allocate"]++;
        live[at] = bytes;
        return at;
    }

    void release(uint64_t at) {
        if (!counting) return;
        std::lock_guard<std::mutex> guard(mutex);
        calls["free"]++;
        if (at && !live.erase(at)) complain("a free", at);
    }

    void look_up(uint64_t at, const char *where) {
        if (!counting || at < FIRST || at >= next) return;
        std::lock_guard<std::mutex> guard(mutex);
        looked_up++;
        auto after = live.upper_bound(at);
        if (after != live.begin()) {
            const auto &[first, bytes] = *std::prev(after);
            if (at < first + bytes || (at == first && bytes == 0)) return;
        }
        dead++;
        complain(where, at);
    }
};

Driver &driver() {
    static Driver driver;
    return driver;
}

char thing[64];
thread_local void *context;

} // namespace

extern "C" {

int cuInit(unsigned) { return driver(), 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int room, int) { return snprintf(name, room, "no card"), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = 80ull << 30, 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = *total = 80ull << 30, 0; }
// Compute capability 9.0, 132 multiprocessors; 1 for the rest, which mostly asks whether something is supported.
int cuDeviceGetAttribute(int *value, int which, int) {
    return *value = which == 75 ? 9 : which == 76 ? 0 : which == 16 ? 132 : 1, 0;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = thing, 0; }
int cuDeviceGetMemPool(void **pool, int) { return *pool = thing, 0; }
int cuDevicePrimaryCtxRetain(void **made, int) { return *made = thing, 0; }
int cuCtxGetCurrent(void **current) { return *current = context, 0; }
int cuCtxSetCurrent(void *current) { return context = current, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuStreamCreate(void **stream, unsigned) { return *stream = thing, 0; }
int cuStreamIsCapturing(void *, int *status) { return *status = 0, 0; }
int cuStreamSynchronize(void *) { return driver().count("wait"), 0; }
int cuEventCreate(void **event, unsigned) { return *event = thing, 0; }
int cuEventRecord(void *, void *) { return driver().count("record"), 0; }
int cuEventSynchronize(void *) { return driver().count("wait"), 0; }
int cuEventElapsedTime(float *ms, void *, void *) { return *ms = 1, 0; }
int cuEventElapsedTime_v2(float *ms, void *, void *) { return *ms = 1, 0; }
int cuGetErrorName(int, const char **text) { return *text = "null", 0; }
int cuGetErrorString(int, const char **text) { return *text = "null", 0; }
int cuFuncGetAttribute(int *value, int, void *) { return *value = 1, 0; }

int cuModuleLoadData(void **module, const void *image) {
    auto has = [&](const char *entry) { return image && strstr((const char *)image, entry); };
    const Module which = has(".entry entropy_rows_f32")   ? Module::Operations
                         : has(".entry squared_norm_f32") ? Module::Updates
                                                          : Module::Other;
    return *module = (void *)which, 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    std::lock_guard<std::mutex> guard(driver().mutex);
    Function *&known = driver().functions[{name, (uintptr_t)module}];
    if (!known) known = new Function{name, (Module)(uintptr_t)module};
    return *function = known, 0;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned, void *, void **arguments, void **) {
    Function &f = *(Function *)function;
    for (unsigned count : {x, y, z, threads_x, threads_y, threads_z}) {
        if (count > 0) continue;
        fprintf(stderr, "null driver: %s is launched without a block or a thread\n", f.name.c_str());
        return INVALID_VALUE;
    }
    if (!driver().counting) return 0;
    for (int i = 0; f.module == Module::Operations && i < OF_OPERATION; i++)
        driver().look_up(((const uint64_t *)arguments[0])[i], f.name.c_str());
    const int of_update = f.name == "judge" ? OF_JUDGE : f.name == "total" ? OF_TOTAL : OF_UPDATE;
    for (int i = 0; f.module == Module::Updates && i < of_update; i++)
        driver().look_up(*(const uint64_t *)arguments[i], f.name.c_str());
    std::lock_guard<std::mutex> guard(driver().mutex);
    driver().calls["launch"]++;
    f.launches++;
    return 0;
}

int cuMemAllocAsync(uint64_t *at, size_t bytes, void *) { return *at = driver().allocate(bytes), 0; }
int cuMemAlloc_v2(uint64_t *at, size_t bytes) { return *at = driver().allocate(bytes), 0; }
int cuMemFreeAsync(uint64_t at, void *) { return driver().release(at), 0; }
int cuMemFree_v2(uint64_t at) { return driver().release(at), 0; }
int cuMemHostAlloc(void **at, size_t bytes, unsigned) { return *at = calloc(1, bytes), 0; }
int cuMemFreeHost(void *at) { return free(at), 0; }
int cuMemsetD8Async(uint64_t at, unsigned char, size_t, void *) {
    return driver().count("set"), driver().look_up(at, "set"), 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t, uint64_t, size_t, void *) { return driver().count("copy on the card"), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t at, const void *from, size_t bytes, void *) {
    driver().count("upload");
    if (bytes > AT_ONCE) driver().count("upload that waits");
    driver().look_up(at, "upload");
    if (bytes % 8 == 0 && bytes < TABLE)
        for (size_t i = 0; i < bytes / 8; i++) driver().look_up(((const uint64_t *)from)[i], "a table");
    return 0;
}
// Zeros, but for the first number, with which a program tries out whether the card computes 2 * 2 * 8.
int cuMemcpyDtoHAsync_v2(void *to, uint64_t, size_t bytes, void *) {
    driver().count("download");
    memset(to, 0, bytes);
    static bool tried;
    if (!tried && bytes == sizeof(float)) *(float *)to = 32;
    tried = tried || bytes == sizeof(float);
    return 0;
}

} // extern "C"
