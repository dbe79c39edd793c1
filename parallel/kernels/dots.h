// The dot product of a row of weights with several rows of x, for each kind of weights.
#pragma once

#if defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>

#include "products.h"

// How far ahead of what is read the memory is asked: the streams are shorter than the hardware likes.
constexpr long kAheadBytes = 2048;

inline void ask_ahead(const void *from) { __builtin_prefetch((const void *)((uintptr_t)from + kAheadBytes)); }

// Some numbers at the end of a row, with zeros behind them.
template <class T, int size> struct Tail {
    T numbers[size];

    Tail(const T *from, long count) {
        memset((void *)numbers, 0, sizeof numbers);
        memcpy((void *)numbers, from, count * sizeof(T));
    }
};

// Weights in the type of x.
template <class T> struct PlainWeights {
    static constexpr int kStep = 64;
    const T *numbers;
    long in;

    PlainWeights(const Matrix &matrix, long in) : numbers((const T *)matrix.numbers), in(in) {}

    static long row_bytes(long in) { return in * sizeof(T); }

    template <int rows> void dots(const Input &input, long row, int first, float *out) const {
        const T *w = numbers + row * in;
        Floats sums[rows][2] = {};
        long i = 0;
        for (; i + kStep <= in; i += kStep) step<rows>(w + i, input, first, i, sums);
        if (i < in) step<rows>(Tail<T, kStep>(w + i, in - i).numbers, input, first, i, sums);
        for (int r = 0; r < rows; r++) out[r] = sum(sums[r][0] + sums[r][1]);
    }

    template <int rows> static void step(const T *w, const Input &input, int first, long i, Floats (*sums)[2]) {
        for (unsigned at = 0; at < kStep * sizeof(T); at += 64) ask_ahead((const char *)w + at);
#ifdef __AVX512BF16__
        if constexpr (sizeof(T) == 2) {
            __m512bh low = (__m512bh)_mm512_loadu_si512(w), high = (__m512bh)_mm512_loadu_si512(w + 32);
            for (int r = 0; r < rows; r++) {
                const BFloat16 *x = &input.halves[(first + r) * input.width + i];
                sums[r][0] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][0], low, (__m512bh)_mm512_loadu_si512(x));
                sums[r][1] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][1], high, (__m512bh)_mm512_loadu_si512(x + 32));
            }
            return;
        }
#endif
        Floats a = load(w), b = load(w + 16), c = load(w + 32), d = load(w + 48);
        for (int r = 0; r < rows; r++) {
            const float *x = &input.numbers[(first + r) * input.width + i];
            sums[r][0] += a * load(x) + c * load(x + 32);
            sums[r][1] += b * load(x + 16) + d * load(x + 48);
        }
    }
};

// 64 products of whole numbers, as 16 sums.
inline Ints whole_products(const int8_t *w, const int16_t *x) {
#ifdef __AVX512VNNI__
    __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
    __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w + 32)));
    __m512i sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(x));
    return (Ints)_mm512_dpwssd_epi32(sums, high, _mm512_loadu_si512(x + 32));
#else
    int32_t sums[kLanes];
    for (int i = 0; i < kLanes; i++)
        sums[i] = w[i] * x[i] + w[i + 16] * x[i + 16] + w[i + 32] * x[i + 32] + w[i + 48] * x[i + 48];
    Ints result;
    memcpy(&result, sums, sizeof result);
    return result;
#endif
}

inline Floats as_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// Whole numbers of -127 to 127 with a scale for each row.
struct Int8Weights {
    const int8_t *numbers;
    const float *scales;
    long in;

    Int8Weights(const Matrix &matrix, long in)
        : numbers((const int8_t *)matrix.numbers), scales((const float *)matrix.scales), in(in) {}

    static long row_bytes(long in) { return in; }

    template <int rows> void dots(const Input &input, long row, int first, float *out) const {
        const int8_t *w = numbers + row * in;
        Floats sums[rows] = {};
        long i = 0;
        for (; i + kBlock <= in; i += kBlock) step<rows>(w + i, input, first, i, sums);
        if (i < in) step<rows>(Tail<int8_t, kBlock>(w + i, in - i).numbers, input, first, i, sums);
        for (int r = 0; r < rows; r++) out[r] = sum(sums[r]) * scales[row];
    }

    template <int rows> static void step(const int8_t *w, const Input &input, int first, long i, Floats *sums) {
        ask_ahead(w);
        for (int r = 0; r < rows; r++) {
            long at = (first + r) * input.width + i;
            sums[r] += as_floats(whole_products(w, &input.wholes[at])) * input.scales[at / kBlock];
        }
    }
};

// Whole numbers of 0 to 15 in groups of 64: a number is scale * whole + offset.
struct Int4Weights {
    const uint8_t *numbers;
    const BFloat16 *scales;
    long in, groups;

    Int4Weights(const Matrix &matrix, long in)
        : numbers((const uint8_t *)matrix.numbers), scales((const BFloat16 *)matrix.scales), in(in),
          groups((in + kBlock - 1) / kBlock) {}

    static long row_bytes(long in) { return (in + kBlock - 1) / kBlock * (kBlock / 2 + 4); }

    template <int rows> void dots(const Input &input, long row, int first, float *out) const {
        const uint8_t *w = numbers + row * groups * (kBlock / 2);
        const BFloat16 *pairs = scales + row * groups * 2;
        Floats sums[rows] = {};
        float offsets[rows] = {};
        for (long g = 0; g < groups; g++) {
            ask_ahead(w + g * (kBlock / 2));
            alignas(64) int8_t wholes[kBlock];
            for (int i = 0; i < kBlock / 2; i++) {
                uint8_t both = w[g * (kBlock / 2) + i];
                wholes[i] = both & 15;
                wholes[i + kBlock / 2] = both >> 4;
            }
            float scale = widen(pairs[2 * g]), offset = widen(pairs[2 * g + 1]);
            for (int r = 0; r < rows; r++) {
                long block = (first + r) * input.blocks() + g;
                Ints products = whole_products(wholes, &input.wholes[block * kBlock]);
                sums[r] += as_floats(products) * (scale * input.scales[block]);
                offsets[r] += offset * input.sums[block];
            }
        }
        for (int r = 0; r < rows; r++) out[r] = sum(sums[r]) + offsets[r];
    }
};

// x as whole numbers of 16 bits, a scale for each block: closer to x than bfloat16 is.
template <class X> void make_wholes(const X *x, Input &input) {
    input.wholes.assign(input.rows * input.width, 0);
    input.scales.assign(input.rows * input.blocks(), 0.0f);
    input.sums.assign(input.rows * input.blocks(), 0.0f);
    for (int r = 0; r < input.rows; r++) {
        for (long b = 0; b < input.blocks(); b++) {
            const X *from = x + r * input.in + b * kBlock;
            long count = std::min<long>(kBlock, input.in - b * kBlock), place = r * input.blocks() + b;
            float most = 0.0f;
            bool finite = true;
            for (long i = 0; i < count; i++) {
                most = std::max(most, std::fabs(widen(from[i])));
                finite &= std::isfinite(widen(from[i]));
            }
            // What is not finite has to come out as such.
            float scale = finite ? most / 32767.0f : NAN, inverse = finite && most > 0 ? 32767.0f / most : 0.0f;
            int32_t total = 0;
            for (long i = 0; i < count; i++) {
                int16_t whole = int16_t(std::lrintf(widen(from[i]) * inverse));
                input.wholes[place * kBlock + i] = whole;
                total += whole;
            }
            input.scales[place] = scale;
            input.sums[place] = scale * total;
        }
    }
}

template <class Weights> struct IsPlain { static constexpr bool value = false; };
template <class T> struct IsPlain<PlainWeights<T>> { static constexpr bool value = true; };

// The rows of x for weights of a kind. In memory that this thread keeps.
template <class Weights, class X> Input &prepared_input(const X *x, int rows, long in) {
    static thread_local Input input;
    input.rows = rows;
    input.in = in;
    input.width = (in + kBlock - 1) / kBlock * kBlock;
    if constexpr (!IsPlain<Weights>::value) {
        make_wholes(x, input);
        return input;
    }
#ifdef __AVX512BF16__
    if constexpr (sizeof(X) == 2) {
        input.halves.assign(rows * input.width, BFloat16{0});
        for (int r = 0; r < rows; r++) memcpy((void *)&input.halves[r * input.width], x + r * in, in * sizeof(X));
        return input;
    }
#endif
    input.numbers.assign(rows * input.width, 0.0f);
    for (int r = 0; r < rows; r++)
        for (long i = 0; i < in; i++) input.numbers[r * input.width + i] = widen(x[r * in + i]);
    return input;
}
