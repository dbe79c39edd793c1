// Keeping what works at the same time on different cores.
//
// The system sometimes puts a thread that it wakes on the core of the one that woke it, and leaves it there while the other
// core idles: half the pace for seconds. Binding threads for good would be worse: another run would be bound to the same
// cores. So whoever finds itself beside another moves away once, and is free again.
#pragma once

#include <chrono>

#ifdef __linux__
#include <sched.h>
#endif

// The core that this thread is on; -1 where that cannot be told.
inline int this_core() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

class Neighbours {
  public:
    // To be called now and then with the cores that others work on: leaves them, if this thread is on one of them and may
    // go to another. At most once in ten milliseconds: where there are too few cores it would only cost.
    template <class Cores> void avoid(const Cores &taken, int count) {
#ifdef __linux__
        int own = this_core();
        bool beside = false;
        for (int i = 0; i < count; i++) beside |= int(taken[i]) == own;
        if (!beside) return;
        auto now = std::chrono::steady_clock::now();
        if (now - moved_ < std::chrono::milliseconds(10)) return;
        moved_ = now;
        cpu_set_t allowed, free;
        if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
        free = allowed;
        for (int i = 0; i < count; i++)
            if (int(taken[i]) >= 0) CPU_CLR(int(taken[i]), &free);
        if (CPU_COUNT(&free) && !sched_setaffinity(0, sizeof free, &free)) sched_setaffinity(0, sizeof allowed, &allowed);
#else
        (void)taken, (void)count;
#endif
    }

  private:
    std::chrono::steady_clock::time_point moved_{};
};
