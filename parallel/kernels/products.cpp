// Products of a few rows with matrices that are read from memory once: y = x W^T, at the pace of the memory.
//
// Each number of y is worked out by one thread, in an order that depends on nothing but the matrix's width: results do
// not depend on the number of threads, nor on the rows beside it.

#include "products.h"

#include <algorithm>

#include "dots.h"
#include "pool.h"

namespace {

// The least that a thread takes at once: each new place in memory costs time.
constexpr long kChunkBytes = 256 * 1024;

// Rows in chunks: half of a thread's share of what is left, and at the end smaller ones, so that long stretches are read
// in one go and yet all threads end together. Returns where each begins, and the end.
std::vector<long> &chunks_of(long rows, long row_bytes, int threads) {
    static thread_local std::vector<long> starts;
    starts.assign(1, 0);
    long least = std::max(1L, kChunkBytes / std::max(1L, row_bytes));
    while (starts.back() < rows)
        starts.push_back(std::min(rows, starts.back() + std::max(least, (rows - starts.back()) / (2 * threads))));
    return starts;
}

// The products of one row of a matrix with all rows of x.
template <class Weights> void products_of_row(const Weights &weights, const Input &input, long row, float *sums) {
    int first = 0;
    for (; input.rows - first >= 8; first += 8) weights.template dots<8>(input, row, first, sums + first);
    if (input.rows - first >= 4) weights.template dots<4>(input, row, first, sums + first), first += 4;
    if (input.rows - first >= 2) weights.template dots<2>(input, row, first, sums + first), first += 2;
    if (input.rows - first >= 1) weights.template dots<1>(input, row, first, sums + first);
}

// Rows of several matrices as if they stood below each other.
template <class Weights, class X>
void multiply(const Matrix *matrices, int count, const Input &input, X *y, int threads) {
    long total = 0;
    for (int m = 0; m < count; m++) total += matrices[m].out;
    const std::vector<long> &starts = chunks_of(total, Weights::row_bytes(input.in), threads);
    in_parallel(threads, int(starts.size()) - 1, [&](int chunk) {
        float sums[kMostRows];
        long row = starts[chunk], stop = starts[chunk + 1], before = 0;
        for (int m = 0; m < count; before += matrices[m++].out) {
            Weights weights(matrices[m], input.in);
            for (; row < std::min(stop, before + matrices[m].out); row++) {
                products_of_row(weights, input, row - before, sums);
                for (int r = 0; r < input.rows; r++) y[r * total + row] = narrow<X>(sums[r]);
            }
        }
    });
}

// silu(x W1^T) * (x W3^T): both rows of a column by the same thread.
template <class Weights, class X> void multiply_gated(const Matrix *matrices, const Input &input, X *y, int threads) {
    long total = matrices[0].out;
    const std::vector<long> &starts = chunks_of(total, 2 * Weights::row_bytes(input.in), threads);
    in_parallel(threads, int(starts.size()) - 1, [&](int chunk) {
        Weights gate(matrices[0], input.in), up(matrices[1], input.in);
        float gates[kMostRows], ups[kMostRows];
        for (long row = starts[chunk]; row < starts[chunk + 1]; row++) {
            products_of_row(gate, input, row, gates);
            products_of_row(up, input, row, ups);
            for (int r = 0; r < input.rows; r++)
                y[r * total + row] = narrow<X>(gates[r] / (1.0f + exp_of(all(-gates[r]))[0]) * ups[r]);
        }
    });
}

template <class Weights, class X> void run(const Products &p) {
    const Input &input = prepared_input<Weights>((const X *)p.x, p.rows, p.in);
    if (p.gated)
        multiply_gated<Weights>(p.matrices, input, (X *)p.y, p.threads);
    else
        multiply<Weights>(p.matrices, p.count, input, (X *)p.y, p.threads);
}

template <class X> void run_kind(const Products &p) {
    if (p.kind == kInt8) return run<Int8Weights, X>(p);
    if (p.kind == kInt4) return run<Int4Weights, X>(p);
    run<PlainWeights<X>, X>(p);
}

}  // namespace

// The products of at most kMostRows rows with matrices: side by side, or with `gated` silu(first) * second.
extern "C" int32_t shardrun_products(const void *arguments) {
    const Products &products = *(const Products *)arguments;
    if (products.bfloat16)
        run_kind<BFloat16>(products);
    else
        run_kind<float>(products);
    return 0;
}

// What shardrun_write_out takes: a quantised matrix, and where it is to stand as plain numbers [out, in].
struct WriteOut {
    int32_t kind, bfloat16, threads;
    const Matrix *matrix;
    void *y;
    int64_t in;
};

namespace {

template <class Y> void write_row(const Int8Weights &weights, long row, Y *y) {
    const int8_t *w = weights.numbers + row * weights.in;
    for (long i = 0; i < weights.in; i++) y[i] = narrow<Y>(w[i] * weights.scales[row]);
}

template <class Y> void write_row(const Int4Weights &weights, long row, Y *y) {
    for (long g = 0; g < weights.groups; g++) {
        const uint8_t *w = weights.numbers + (row * weights.groups + g) * (kBlock / 2);
        const BFloat16 *pair = weights.scales + (row * weights.groups + g) * 2;
        float scale = widen(pair[0]), offset = widen(pair[1]);
        Y plain[kBlock];
        for (int i = 0; i < kBlock / 2; i++) {
            plain[i] = narrow<Y>((w[i] & 15) * scale + offset);
            plain[i + kBlock / 2] = narrow<Y>((w[i] >> 4) * scale + offset);
        }
        long count = std::min<long>(kBlock, weights.in - g * kBlock);
        memcpy((void *)(y + g * kBlock), plain, count * sizeof(Y));
    }
}

template <class Weights, class Y> void write_rows(const WriteOut &out) {
    Weights weights(*out.matrix, out.in);
    const std::vector<long> &starts = chunks_of(out.matrix->out, out.in * sizeof(Y), out.threads);
    in_parallel(out.threads, int(starts.size()) - 1, [&](int chunk) {
        for (long row = starts[chunk]; row < starts[chunk + 1]; row++) write_row(weights, row, (Y *)out.y + row * out.in);
    });
}

}  // namespace

// A quantised matrix as plain numbers, for products with many rows.
extern "C" int32_t shardrun_write_out(const void *arguments) {
    const WriteOut &out = *(const WriteOut *)arguments;
    if (out.kind == kInt8)
        out.bfloat16 ? write_rows<Int8Weights, BFloat16>(out) : write_rows<Int8Weights, float>(out);
    else
        out.bfloat16 ? write_rows<Int4Weights, BFloat16>(out) : write_rows<Int4Weights, float>(out);
    return 0;
}
