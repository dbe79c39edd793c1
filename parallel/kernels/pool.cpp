#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#include "cores.h"
#include "waiting.h"

namespace {

// How long a thread that has nothing to do looks for work before it goes to sleep. A step of decoding has gaps of some
// microseconds between its products; longer spinning would take the time of other processes.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kJobs = 4;
constexpr int kMostThreads = 256;

struct Job {
    void (*work)(void *, int);
    void *context;
};

// Number of the job, how many chunks it has, and the next one to be done: in one word, so that who takes a chunk knows
// at once which job it is of.
std::atomic<uint64_t> ticket{0};
std::atomic<int> done{0};
Job jobs[kJobs];

// Never destroyed: at the end of the process threads still wait for them.
std::mutex &mutex = *new std::mutex;
std::condition_variable &news = *new std::condition_variable;
std::atomic<int> asleep{0};
int started = 1;
// Where each thread took its last chunk; the first is whoever calls.
std::atomic<int> cores[kMostThreads];
std::atomic_flag in_use = ATOMIC_FLAG_INIT;

constexpr int kBits = 20;
constexpr uint64_t kMask = (1u << kBits) - 1;

uint64_t number_of(uint64_t ticket) { return ticket >> (2 * kBits); }
int chunks_of(uint64_t ticket) { return int(ticket >> kBits & kMask); }
int next_of(uint64_t ticket) { return int(ticket & kMask); }

bool work_left(uint64_t seen) { return next_of(seen) < chunks_of(seen); }

// Takes chunks of the job at hand until none is left.
void take_chunks(int thread) {
    cores[thread].store(this_core(), std::memory_order_relaxed);
    for (;;) {
        uint64_t seen = ticket.load(std::memory_order_acquire);
        if (!work_left(seen)) return;
        if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
        // The chunk is ours, so the job cannot end, nor its place be taken, before it is done.
        const Job &job = jobs[number_of(seen) % kJobs];
        job.work(job.context, next_of(seen));
        done.fetch_add(1, std::memory_order_acq_rel);
    }
}

void serve(int thread) {
    Neighbours neighbours;
    for (;;) {
        Waiting waiting;
        while (!work_left(ticket.load(std::memory_order_acquire))) {
            if (waiting.longer_than(kSpin)) {
                std::unique_lock<std::mutex> lock(mutex);
                asleep.fetch_add(1);
                news.wait(lock, [] { return work_left(ticket.load()); });
                asleep.fetch_sub(1);
                break;
            }
        }
        neighbours.avoid(cores, thread);
        take_chunks(thread);
    }
}

void start_threads(int threads) {
    try {
        for (; started < threads && started < kMostThreads; started++) std::thread(serve, started).detach();
    } catch (const std::system_error &) {
        // No more threads may be had: those that there are do the work.
    }
}

}  // namespace

void run_chunks(int threads, int chunks, void (*work)(void *, int), void *context) {
    if (threads < 2 || chunks < 2 || in_use.test_and_set()) {
        for (int chunk = 0; chunk < chunks; chunk++) work(context, chunk);
        return;
    }
    start_threads(threads);
    uint64_t number = number_of(ticket.load()) + 1;
    jobs[number % kJobs] = {work, context};
    done.store(0);
    ticket.store(number << (2 * kBits) | uint64_t(chunks) << kBits);
    if (asleep.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        news.notify_all();
    }
    take_chunks(0);
    Waiting waiting;
    while (done.load(std::memory_order_acquire) < chunks) waiting.a_moment();
    in_use.clear();
}
