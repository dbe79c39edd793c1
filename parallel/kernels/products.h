// What stands in memory of the matrices and of the rows that they are multiplied with.
#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

constexpr int kMostRows = 8;
// Numbers of x that share a scale where weights are whole numbers; and the weights of a group of int4.
constexpr int kBlock = 64;

enum Kind { kPlain, kInt8, kInt4 };

// One matrix [out, in], as native.py fills it in.
struct Matrix {
    // Plain: [out, in]. int8: [out, in]. int4: 32 bytes for each group of 64, byte i holds number i in its lower half
    // and number i + 32 in its upper one.
    const void *numbers;
    // int8: float [out]. int4: a pair of bfloat16 for each group, [out, groups, 2]: a scale and an offset.
    const void *scales;
    int64_t out;
};

// What shardrun_products takes. `kind`: of the weights; plain ones have x's type, float or, with `bfloat16`, that.
struct Products {
    int32_t kind, bfloat16, gated, count, rows, threads;
    const Matrix *matrices;
    // [rows, in], and [rows, sum of out] or, with `gated`, [rows, out].
    const void *x;
    void *y;
    int64_t in;
};

// Rows of x as the products want them, filled up with zeros to `width` numbers.
struct Input {
    int rows;
    long in, width;
    std::vector<float> numbers;
    std::vector<BFloat16> halves;
    // Whole numbers; the scale of each block, and the sum of each block's numbers as scaled.
    std::vector<int16_t> wholes;
    std::vector<float> scales, sums;

    long blocks() const { return width / kBlock; }
};
