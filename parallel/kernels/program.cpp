// Calls of kernels, recorded once and run again: a decoding step without Python in it.

#include <cstdint>

// One call: a kernel and its arguments, which stay where they are.
struct Call {
    int32_t (*kernel)(const void *arguments);
    const void *arguments;
};

// Runs calls from `*at` on. Stops at the first whose status is not 0, which is returned, with its number in `*at`.
extern "C" int32_t shardrun_run(const Call *calls, int32_t count, int32_t *at) {
    for (; *at < count; ++*at)
        if (int32_t status = calls[*at].kernel(calls[*at].arguments)) return status;
    return 0;
}
