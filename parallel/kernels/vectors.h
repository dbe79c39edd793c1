// Vectors of 16 numbers: GCC's and Clang's vector extension, so the same text serves AVX-512, AVX2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
// The same where it stands anywhere in memory.
typedef float LooseFloats __attribute__((vector_size(64), aligned(4)));
typedef uint32_t LooseWords __attribute__((vector_size(64), aligned(2)));
typedef uint16_t LooseHalves __attribute__((vector_size(32), aligned(2)));

struct BFloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> T narrow(float x);

template <> inline float narrow<float>(float x) { return x; }

// Round to nearest, ties to even; what is not a number stays so.
template <> inline BFloat16 narrow<BFloat16>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline Floats load(const float *from) { return *(const LooseFloats *)from; }

inline Floats load(const BFloat16 *from) {
    return (Floats)(__builtin_convertvector(*(const LooseHalves *)from, Words) << 16);
}

// The sum of all lanes: halves are added onto each other.
inline float sum(Floats x) {
    x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x[0] + x[1];
}

inline Floats all(float x) { return Floats{} + x; }

// 2 to the power of x, for x of -126 or more and 126 or less: the whole part goes to the exponent, the rest (half a
// unit at most) through the Taylor series of exp(rest * ln 2). The relative error is below 3e-7.
inline Floats exp2_of(Floats x) {
    const float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to a whole number
    Floats shifted = x + magic;
    Floats rest = (x - (shifted - magic)) * 0.69314718056f;
    Floats series = rest * (1.0f / 5040) + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    return (Floats)((Ints)series + (((Ints)shifted - 0x4b400000) << 23));
}

inline Floats exp_of(Floats x) {
    x *= 1.44269504089f;
    x = x < -126.0f ? all(-126.0f) : x;
    return exp2_of(x > 126.0f ? all(126.0f) : x);
}
