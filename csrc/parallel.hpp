// A team of threads: torch's OpenMP, or std::thread where a sanitizer must see every lock.
#pragma once

#include "partition.hpp"

#if defined(EVENLY_STD_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace evenly {
namespace EVENLY_ISA {

#if defined(EVENLY_STD_THREADS)
struct Barrier {
    std::mutex mutex;
    std::condition_variable changed;
    int size, waiting = 0, round = 0;
    explicit Barrier(int n) : size(n) {}
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        const int mine = round;
        if (++waiting == size) {
            waiting = 0;
            ++round;
            changed.notify_all();
        } else {
            changed.wait(lock, [&] { return round != mine; });
        }
    }
};
#endif

struct Range {
    i64 begin, end;
};

// One member of a team; a team of one has nothing to wait for.
struct Team {
    int index = 0, size = 1;
#if defined(EVENLY_STD_THREADS)
    Barrier* shared = nullptr;
#endif

    void barrier() const {
        if (size == 1) return;
#if defined(EVENLY_STD_THREADS)
        shared->wait();
#elif defined(_OPENMP)
#pragma omp barrier
#endif
    }

    // This member's part of n things, contiguous and fixed, so that equal calls give equal bits.
    Range share(i64 n) const { return {n * index / size, n * (index + 1) / size}; }
};

// Run body(team) on `threads` threads at once.
template <class Body>
inline void parallel(int threads, const Body& body) {
    if (threads <= 1) return body(Team{});
#if defined(EVENLY_STD_THREADS)
    Barrier barrier(threads);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { body(Team{i, threads, &barrier}); });
    body(Team{0, threads, &barrier});
    for (auto& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    body(Team{omp_get_thread_num(), omp_get_num_threads()});
#else
    body(Team{});
#endif
}

// Hand out 0, 1, 2 … to whoever asks first; for tasks whose result does not depend on who does them.
inline i64 take(i64* next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

}  // namespace EVENLY_ISA
}  // namespace evenly
