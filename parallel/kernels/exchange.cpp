// Collectives between the ranks of one machine, through memory that they share.
//
// A message goes in pieces, numbered through from 1. For each piece a rank lays its part into its slot, says so in
// `arrived`, waits until all ranks have, and takes what it wants out of their slots. There are two slots a rank, used
// in turns, and no other barrier: who lays piece n + 2 over piece n has seen all ranks arrive at n + 1, and they took
// what they wanted of n before that.

#ifdef __linux__

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cores.h"
#include "vectors.h"
#include "waiting.h"

namespace {

using std::chrono::nanoseconds;

// As in exchange.py and calls.py.
enum Status : int32_t { kDone, kNotYet, kTimedOut, kGone, kOutOfStep };
enum Kind : int32_t { kAllReduce, kAllGather, kBroadcast };
const char *const kNames[] = {"all-reduce", "all-gather", "broadcast"};

// How long a rank looks for the others before it sleeps: ranks in step are some microseconds apart, and to be woken
// takes some tens. It lets others run meanwhile.
constexpr nanoseconds kSpin = std::chrono::microseconds(200);
// A look takes some 30 ns. So many before others may run, and then at each turn.
constexpr int kBusyLooks = 64, kLooks = 32;
// After so long the caller has a look at signals.
constexpr nanoseconds kSlice = std::chrono::milliseconds(100), kLeast = std::chrono::milliseconds(1);
constexpr int kMostLooked = 64;
// The slots begin on a page of their own.
constexpr int64_t kPage = 4096;

// What a rank shows the others, in memory that begins as zeros.
struct Shown {
    // The last piece that it has laid down.
    alignas(64) std::atomic<uint32_t> arrived;
    // Of the last two pieces: which collective, and its bytes.
    int32_t kinds[2];
    int64_t sizes[2];
    // Where it was then.
    std::atomic<int32_t> core;
    // How many ranks sleep until `arrived` changes.
    alignas(64) std::atomic<uint32_t> sleepers;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4, "a futex is 32 bits");

// As _Record in parallel/position.py.
struct Position {
    int64_t changes, step, total, collectives;
    int8_t waiting, patient;
    char operation[32], phase[96], unit[16];
};

// One rank's end, as exchange.py fills it in; the rest begins as zeros and is ours.
struct Exchange {
    char *memory;
    Position *position;
    // A pidfd of each rank: it can be read once the process has ended.
    const int32_t *processes;
    int64_t slot_bytes, timeout_ns;
    int32_t rank, size;

    // The collective that is under way (0: none), how much of it is done, and whether the piece at hand is laid down.
    int64_t current, done_bytes;
    int32_t laid;
    uint32_t piece;
    // How long this rank has waited for the piece, and for whom.
    int64_t waited_ns;
    int32_t missing;

    Shown &shown(int rank) const { return ((Shown *)memory)[rank]; }

    char *slot(int rank) const {
        int64_t head = (size * sizeof(Shown) + kPage - 1) / kPage * kPage;
        return memory + head + (rank * 2 + piece % 2) * slot_bytes;
    }

    // The numbers may have gone round.
    bool has_arrived(int rank) const {
        return int32_t(shown(rank).arrived.load(std::memory_order_acquire) - piece) >= 0;
    }
};

void begin(Exchange &e, int64_t number, Kind kind) {
    e.current = number;
    e.done_bytes = 0;
    e.laid = 0;
    strncpy(e.position->operation, kNames[kind], sizeof e.position->operation);
    e.position->collectives++;
    e.position->waiting = 1;
    e.position->changes++;
}

void end(Exchange &e) {
    e.current = 0;
    e.position->waiting = 0;
    e.position->changes++;
}

void arrive(Exchange &e, Kind kind, int64_t bytes) {
    Shown &own = e.shown(e.rank);
    own.kinds[e.piece % 2] = kind;
    own.sizes[e.piece % 2] = bytes;
    own.core.store(this_core(), std::memory_order_relaxed);
    // Sequentially consistent, as in `sleep_until_arrival`: of a rank that arrives and one that falls asleep, at least
    // one sees the other.
    own.arrived.store(e.piece, std::memory_order_seq_cst);
    if (own.sleepers.load(std::memory_order_seq_cst))
        syscall(SYS_futex, (void *)&own.arrived, FUTEX_WAKE, e.size, nullptr, nullptr, 0);
}

// Sleeps until `rank` arrives, or a signal comes, or the time is over.
void sleep_until_arrival(Exchange &e, int rank, nanoseconds limit) {
    Shown &other = e.shown(rank);
    other.sleepers.fetch_add(1, std::memory_order_seq_cst);
    // The number before this piece: no rank can be further behind, or we could not have come here.
    uint32_t seen = e.piece - 1;
    timespec time = {0, limit.count()};
    syscall(SYS_futex, (void *)&other.arrived, FUTEX_WAIT, seen, &time, nullptr, 0);
    other.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

bool has_gone(const Exchange &e, int rank) {
    pollfd process = {e.processes[rank], POLLIN, 0};
    // It may have arrived before it went.
    return poll(&process, 1, 0) == 1 && process.revents & POLLIN && !e.has_arrived(rank);
}

// What to say when a wait for `rank` has not ended.
Status give_up(Exchange &e, int rank, nanoseconds so_far) {
    // Longer than we sleep we were stopped ourselves, as by Ctrl-Z, which is nobody's fault.
    e.waited_ns += std::min(so_far, 2 * kSlice).count();
    for (e.missing = 0; e.missing < e.size; e.missing++)
        if (!e.has_arrived(e.missing) && has_gone(e, e.missing)) return kGone;
    e.missing = rank;
    return e.waited_ns > e.timeout_ns ? kTimedOut : kNotYet;
}

nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

// Looks for `rank` until it has arrived or it is late; lets others run, who may be who it waits for.
bool arrives_soon(const Exchange &e, int rank, nanoseconds late) {
    for (int looks = 1; !e.has_arrived(rank); looks++) {
        pause_briefly();
        if (looks % kLooks) continue;
        if (looks > kBusyLooks) std::this_thread::yield();
        if (now() > late) return e.has_arrived(rank);
    }
    return true;
}

Status wait_for_all(Exchange &e) {
    nanoseconds since = now();
    for (int rank = 0; rank < e.size; rank++) {
        if (arrives_soon(e, rank, since + kSpin)) continue;
        sleep_until_arrival(e, rank, std::max(kLeast, since + kSlice - now()));
        if (!e.has_arrived(rank)) return give_up(e, rank, now() - since);
    }
    return kDone;
}

// Ranks that share a core wait for each other at each piece.
void leave_lower_ranks(const Exchange &e) {
    static thread_local Neighbours neighbours;
    int cores[kMostLooked], count = std::min(e.rank, kMostLooked);
    for (int rank = 0; rank < count; rank++) cores[rank] = e.shown(rank).core.load(std::memory_order_relaxed);
    neighbours.avoid(cores, count);
}

bool in_step(Exchange &e, Kind kind, int64_t bytes) {
    for (e.missing = 0; e.missing < e.size; e.missing++) {
        const Shown &other = e.shown(e.missing);
        if (other.kinds[e.piece % 2] != kind || other.sizes[e.piece % 2] != bytes) return false;
    }
    return true;
}

// A collective of `bytes` a rank (of the largest, where they differ): for each piece, lay(slot, from, to) and
// take(from, to) of that range of bytes. Called again after kNotYet it goes on where it was.
template <class Lay, class Take>
Status run(Exchange &e, int64_t number, Kind kind, int64_t bytes, const Lay &lay, const Take &take) {
    if (!e.current) begin(e, number, kind);
    e.missing = e.rank;
    if (e.current != number) return kOutOfStep;
    do {
        int64_t from = e.done_bytes, to = std::min(bytes, from + e.slot_bytes);
        if (!e.laid) {
            e.piece++;
            lay(e.slot(e.rank), from, to);
            arrive(e, kind, bytes);
            e.laid = 1;
            e.waited_ns = 0;
        }
        if (Status status = wait_for_all(e)) return status;
        if (!in_step(e, kind, bytes)) return kOutOfStep;
        leave_lower_ranks(e);
        take(from, to);
        e.laid = 0;
        e.done_bytes = to;
    } while (e.done_bytes < bytes);
    end(e);
    return kDone;
}

// The sum of the slots in order of rank, in float32, rounded once: so it is the same to the bit on all ranks.
template <class T> void add_slots(const Exchange &e, T *x, int64_t count) {
    constexpr int64_t kBlock = 512;
    for (int64_t start = 0; start < count; start += kBlock) {
        int64_t stop = std::min(count, start + kBlock);
        float sums[kBlock];
        for (int rank = 0; rank < e.size; rank++) {
            const T *part = (const T *)e.slot(rank);
            if (rank == 0)
                for (int64_t i = start; i < stop; i++) sums[i - start] = widen(part[i]);
            else
                for (int64_t i = start; i < stop; i++) sums[i - start] += widen(part[i]);
        }
        for (int64_t i = start; i < stop; i++) x[i] = narrow<T>(sums[i - start]);
    }
}

// Bytes `from` to `to` of rows of `width` bytes, which stand `stride` apart in `out`.
void spread_rows(char *out, const char *part, int64_t from, int64_t to, int64_t width, int64_t stride) {
    while (from < to) {
        int64_t row = from / width, column = from % width, count = std::min(to - from, width - column);
        memcpy(out + row * stride + column, part, count);
        part += count;
        from += count;
    }
}

}  // namespace

struct AllReduce {
    Exchange *exchange;
    // Different for each collective that is called, and for each that is recorded.
    int64_t number;
    // Contiguous; overwritten with the sum.
    void *x;
    int64_t count;
    int32_t bfloat16;
};

extern "C" int32_t shardrun_all_reduce(const AllReduce *a) {
    Exchange &e = *a->exchange;
    char *x = (char *)a->x;
    int64_t width = a->bfloat16 ? 2 : 4;
    auto lay = [&](char *slot, int64_t from, int64_t to) { memcpy(slot, x + from, to - from); };
    auto take = [&](int64_t from, int64_t to) {
        if (a->bfloat16) add_slots(e, (BFloat16 *)(x + from), (to - from) / width);
        else add_slots(e, (float *)(x + from), (to - from) / width);
    };
    return run(e, a->number, kAllReduce, a->count * width, lay, take);
}

struct AllGather {
    Exchange *exchange;
    int64_t number;
    // `rows` rows of widths[rank] bytes, contiguous.
    const void *x;
    // The same rows of all ranks side by side.
    void *out;
    const int64_t *widths;
    int64_t rows;
};

extern "C" int32_t shardrun_all_gather(const AllGather *a) {
    Exchange &e = *a->exchange;
    const int64_t *widths = a->widths;
    int64_t stride = 0;
    for (int rank = 0; rank < e.size; rank++) stride += widths[rank];
    auto lay = [&](char *slot, int64_t from, int64_t to) {
        to = std::min(to, a->rows * widths[e.rank]);
        if (from < to) memcpy(slot, (const char *)a->x + from, to - from);
    };
    auto take = [&](int64_t from, int64_t to) {
        char *out = (char *)a->out;
        for (int rank = 0; rank < e.size; out += widths[rank++])
            spread_rows(out, e.slot(rank), from, std::min(to, a->rows * widths[rank]), widths[rank], stride);
    };
    int64_t most = a->rows * *std::max_element(widths, widths + e.size);
    return run(e, a->number, kAllGather, most, lay, take);
}

struct Broadcast {
    Exchange *exchange;
    int64_t number;
    // Contiguous; rank 0's is what the others get.
    void *x;
    int64_t bytes;
};

extern "C" int32_t shardrun_broadcast(const Broadcast *b) {
    Exchange &e = *b->exchange;
    char *x = (char *)b->x;
    auto lay = [&](char *slot, int64_t from, int64_t to) { if (e.rank == 0) memcpy(slot, x + from, to - from); };
    auto take = [&](int64_t from, int64_t to) { if (e.rank != 0) memcpy(x + from, e.slot(0), to - from); };
    return run(e, b->number, kBroadcast, b->bytes, lay, take);
}

#endif
