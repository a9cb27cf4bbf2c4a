// Vectors as wide as the machine's registers, and bfloat16. Wider ones compilers keep in memory instead of registers: with
// 16 numbers on a machine that has registers for 8, a product takes eight times as long.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct BFloat16 {
    uint16_t bits;
};

inline Floats load(const float* x) { return *(const Floats*)x; }
inline Floats load(const BFloat16* x) { return (Floats)(__builtin_convertvector(*(const Halves*)x, Bits) << 16); }
inline void store(float* x, Floats value) { *(Floats*)x = value; }

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, BFloat16* out) {  // to the nearest, to the even one of two
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    out->bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Rounded to what T holds.
template <class T>
Floats rounded(Floats x);
template <>
inline Floats rounded<float>(Floats x) {
    return x;
}
#ifdef __AVX512BF16__
inline void store(BFloat16* x, Floats value) { _mm256_storeu_si256((__m256i*)x, (__m256i)_mm512_cvtneps_pbh((__m512)value)); }
template <>
inline Floats rounded<BFloat16>(Floats x) {
    const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)x);
    return (Floats)(__builtin_convertvector(halves, Bits) << 16);
}
#else
template <>
inline Floats rounded<BFloat16>(Floats x) {
    const Bits bits = (Bits)x;
    const Floats quiet = (Floats)(bits | 0x400000);  // not a number, whatever its last bits were
    return x == x ? (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000) : quiet;
}
inline void store(BFloat16* x, Floats value) {
    *(Halves*)x = __builtin_convertvector((Bits)rounded<BFloat16>(value) >> 16, Halves);
}
#endif

inline int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Each vector exchanges lanes with the one `bit` behind it: a fourth of a transposition. Compilers make shuffles of it.
template <int bit, int... lane>
inline void exchange(Ints* rows, std::integer_sequence<int, lane...>) {
    for (int i = 0; i < LANES; i++) {
        if (i & bit) continue;
        const Ints a = rows[i], b = rows[i + bit];
        rows[i] = Ints{(lane & bit ? b[lane & ~bit] : a[lane])...};
        rows[i + bit] = Ints{(lane & bit ? b[lane] : a[lane | bit])...};
    }
}

// (rows, n), LANES rows or fewer -> (n, LANES) with zeros in what is too much, next numbers from a row to the next.
inline void transpose(const int32_t* from, int64_t rows, int64_t n, int32_t* to, int64_t next) {
    const std::make_integer_sequence<int, LANES> lanes;
    int64_t first = 0;
    for (; rows == LANES && first + LANES <= n; first += LANES) {
        Ints square[LANES];
        for (int i = 0; i < LANES; i++) square[i] = *(const Ints*)(from + i * n + first);
        exchange<1>(square, lanes), exchange<2>(square, lanes);
        if constexpr (LANES > 4) exchange<4>(square, lanes);
        if constexpr (LANES > 8) exchange<8>(square, lanes);
        for (int i = 0; i < LANES; i++) *(Ints*)(to + (first + i) * next) = square[i];
    }
    for (; first < n; first++)
        for (int64_t i = 0; i < LANES; i++) to[first * next + i] = i < rows ? from[i * n + first] : 0;
}

// e^x for x <= 0, to 2 units in the last place: e^x = 2^n e^r with |r| <= log(2) / 2, the latter as a polynomial
// (coefficients of Cephes' expf, by S. Moshier). Not a number stays so.
inline Floats exponential(Floats x) {
    const Floats least = Floats{} - 87.0f;
    x = x < least ? least : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: its last bits are n
    const Floats n = shifted - 12582912.0f;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (Floats)(((Ints)shifted + 127) << 23);
}

}  // namespace
