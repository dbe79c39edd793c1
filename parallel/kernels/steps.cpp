// What a decoding step does besides its products: norms, and attention of one new token in each row.

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "vectors.h"

// What shardrun_add_norm takes; all [rows, width] but `weight` [width]. `more` may be null.
struct AddNorm {
    int32_t bfloat16, rows;
    void *x;
    const void *more, *weight;
    void *y;
    int64_t width;
    float eps;
};

// What shardrun_attend takes. q heads, then k, then v heads stand side by side in each row of `qkv`; out [rows, heads *
// width].
struct Attention {
    int32_t bfloat16, threads;
    const void *qkv;
    void *out;
    // [rows, kv_heads, places, width] each.
    void *keys, *values;
    // Cosine and sine of each pair: [positions, width / 2, 2].
    const float *turns;
    // Where each row's new token stands: it sees all places before, and itself.
    const int64_t *places;
    // How many queries each KV head serves, and how many before it: [kv_heads] each.
    const int32_t *queries, *first_queries;
    int64_t rows, heads, kv_heads, max_places, width;
};

namespace {

// Memory that this thread keeps.
std::vector<float> &scratch(long size) {
    static thread_local std::vector<float> memory;
    if (long(memory.size()) < size) memory.resize(size);
    return memory;
}

float dot(const float *a, const float *b, long count) {
    Floats sums{};
    long i = 0;
    for (; i + kLanes <= count; i += kLanes) sums += load(a + i) * load(b + i);
    float total = sum(sums);
    for (; i < count; i++) total += a[i] * b[i];
    return total;
}

float dot(const float *a, const BFloat16 *b, long count) {
    Floats sums{};
    long i = 0;
    for (; i + kLanes <= count; i += kLanes) sums += load(a + i) * load(b + i);
    float total = sum(sums);
    for (; i < count; i++) total += a[i] * widen(b[i]);
    return total;
}

// to += weight * from
template <class T> void add_scaled(float *to, float weight, const T *from, long count) {
    long i = 0;
    for (; i + kLanes <= count; i += kLanes) *(LooseFloats *)(to + i) = load(to + i) + weight * load(from + i);
    for (; i < count; i++) to[i] += weight * widen(from[i]);
}

template <class T> void add_and_norm(const AddNorm &a) {
    T *x = (T *)a.x, *y = (T *)a.y;
    const T *more = (const T *)a.more, *weight = (const T *)a.weight;
    std::vector<float> &row = scratch(a.width);
    for (int r = 0; r < a.rows; r++, x += a.width, y += a.width) {
        for (long i = 0; i < a.width; i++) row[i] = widen(x[i]);
        if (more != nullptr) {
            for (long i = 0; i < a.width; i++) {
                x[i] = narrow<T>(row[i] + widen(more[i]));
                row[i] = widen(x[i]);
            }
            more += a.width;
        }
        float scale = 1.0f / std::sqrt(dot(row.data(), row.data(), a.width) / a.width + a.eps);
        for (long i = 0; i < a.width; i++) y[i] = narrow<T>(row[i] * scale * widen(weight[i]));
    }
}

// Neighbours (2i, 2i + 1) turned by the angle of the place (arXiv:2104.09864, in Meta's layout).
template <class T> void turn(const T *from, const float *turns, float *to, long width) {
    for (long i = 0; i < width; i += 2) {
        float x = widen(from[i]), y = widen(from[i + 1]), cosine = turns[i], sine = turns[i + 1];
        to[i] = x * cosine - y * sine;
        to[i + 1] = x * sine + y * cosine;
    }
}

// The scores become their exponentials over the largest, and the sum of these is returned.
float exponentials(float *scores, long count) {
    float most = scores[0];
    for (long i = 1; i < count; i++) most = std::max(most, scores[i]);
    float total = 0;
    long i = 0;
    Floats sums{};
    for (; i + kLanes <= count; i += kLanes) {
        Floats values = exp_of(load(scores + i) - most);
        *(LooseFloats *)(scores + i) = values;
        sums += values;
    }
    total = sum(sums);
    for (; i < count; i++) total += scores[i] = exp_of(all(scores[i] - most))[0];
    return total;
}

// One KV head of one row, with all of its queries.
template <class T> void attend_head(const Attention &a, long row, long head) {
    long width = a.width, place = a.places[row], seen = place + 1;
    const T *qkv = (const T *)a.qkv + row * (a.heads + 2 * a.kv_heads) * width;
    const float *turns = a.turns + place * width;
    T *keys = (T *)a.keys + (row * a.kv_heads + head) * a.max_places * width;
    T *values = (T *)a.values + (row * a.kv_heads + head) * a.max_places * width;
    long count = a.queries[head], first = a.first_queries[head];
    float *query = scratch(count * (2 * width + seen + 1) + width).data(), *sums = query + count * width;
    float *scores = sums + count * width, *turned = scores + count * seen, *totals = turned + width;
    turn(qkv + (a.heads + head) * width, turns, turned, width);
    for (long i = 0; i < width; i++) keys[place * width + i] = narrow<T>(turned[i]);
    memcpy((void *)(values + place * width), qkv + (a.heads + a.kv_heads + head) * width, width * sizeof(T));
    float scale = 1.0f / std::sqrt(float(width));
    for (long q = 0; q < count; q++) {
        turn(qkv + (first + q) * width, turns, query + q * width, width);
        for (long i = 0; i < width; i++) query[q * width + i] = widen(narrow<T>(query[q * width + i])) * scale;
    }
    for (long t = 0; t < seen; t++)
        for (long q = 0; q < count; q++) scores[q * seen + t] = dot(query + q * width, keys + t * width, width);
    std::fill(sums, sums + count * width, 0.0f);
    for (long q = 0; q < count; q++) totals[q] = exponentials(scores + q * seen, seen);
    for (long t = 0; t < seen; t++)
        for (long q = 0; q < count; q++)
            add_scaled(sums + q * width, scores[q * seen + t], values + t * width, width);
    T *out = (T *)a.out + (row * a.heads + first) * width;
    for (long q = 0; q < count; q++)
        for (long i = 0; i < width; i++) out[q * width + i] = narrow<T>(sums[q * width + i] / totals[q]);
}

}  // namespace

// For a new token in each row: turn queries and keys to its place, put key and value into the cache there, and attend.
extern "C" int32_t shardrun_attend(const void *arguments) {
    const Attention &attention = *(const Attention *)arguments;
    long heads = attention.kv_heads;
    in_parallel(attention.threads, int(attention.rows * heads), [&](int task) {
        if (attention.bfloat16)
            attend_head<BFloat16>(attention, task / heads, task % heads);
        else
            attend_head<float>(attention, task / heads, task % heads);
    });
    return 0;
}

// x += more (where there is more), then y = x / rms(x) * weight, for each row (arXiv:1910.07467).
extern "C" int32_t shardrun_add_norm(const void *arguments) {
    const AddNorm &norm = *(const AddNorm *)arguments;
    if (norm.bfloat16)
        add_and_norm<BFloat16>(norm);
    else
        add_and_norm<float>(norm);
    return 0;
}
