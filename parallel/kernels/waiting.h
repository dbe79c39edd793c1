// Waiting for another thread or process: at first by looking again at once, then by letting others run.
#pragma once

#include <chrono>
#include <thread>

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Waiting {
  public:
    // One look more.
    void a_moment() {
        if (++looks_ % kLooks == 0 && longer()) std::this_thread::yield();
        pause_briefly();
    }

    // One look more; whether the wait has been longer than `limit`.
    bool longer_than(std::chrono::nanoseconds limit) {
        a_moment();
        return looks_ % kLooks == 0 && std::chrono::steady_clock::now() - since_ > limit;
    }

  private:
    static constexpr int kLooks = 32;

    bool longer() const { return looks_ > 32 * kLooks; }

    int looks_ = 0;
    std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};
