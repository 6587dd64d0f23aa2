// What the machine offers: caches, threads, memory for one call.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "kernels.hpp"

namespace evenly {

namespace {

std::atomic<bool> forked{false};

struct Scratch {
    char* memory = nullptr;
    i64 size = 0;
    ~Scratch() { std::free(memory); }
};

// "1024K" of Linux's own description; sysconf may report the caches of the whole package, of which
// a virtual machine has a share.
i64 cache_size(int index, long otherwise) {
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    i64 size = 0;
    char unit = 0;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        long number = 0;
        if (std::fscanf(file, "%ld%c", &number, &unit) >= 1)
            size = number << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
        std::fclose(file);
    }
    return size > 0 ? size : otherwise;
}

}  // namespace

int threads_for(i64 bytes, int wanted) {
    constexpr i64 kAlone = 48 << 10, kEach = 32 << 10;
    if (bytes < kAlone || forked.load(std::memory_order_relaxed)) return 1;
    return static_cast<int>(std::min<i64>(wanted, bytes / kEach));
}

const Caches& caches() {
    static const Caches found = [] {
        long l2 = 0, l3 = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
        l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
        Caches c{cache_size(2, l2), cache_size(3, l3)};
        if (c.l2 <= 0) c.l2 = 1 << 20;
        if (c.last <= 0) c.last = std::max<i64>(c.l2, 32 << 20);
        return c;
    }();
    return found;
}

namespace {

char* grown(Scratch& mine, i64 bytes) {
    if (mine.size < bytes) {
        std::free(mine.memory);
        const i64 size = (bytes * 5 / 4 + 4095) / 4096 * 4096;
        mine.memory = static_cast<char*>(std::aligned_alloc(4096, size));
        mine.size = mine.memory ? size : 0;
        if (mine.memory == nullptr) throw std::bad_alloc();
    }
    return mine.memory;
}

}  // namespace

char* scratch(i64 bytes) {
    thread_local Scratch mine;
    return grown(mine, bytes);
}

char* between(i64 bytes) {
    thread_local Scratch mine;
    return grown(mine, bytes);
}

void note_fork() { forked.store(true, std::memory_order_relaxed); }

}  // namespace evenly
