// Matrix products of a few rows, in tiles that stay in registers.

#pragma once

#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int WIDEST = 4;  // vectors of a row in a tile: with 6 rows, 24 of 32 registers
#else
constexpr int WIDEST = 2;  // 12 of 16
#endif
constexpr int TALLEST = 6;

// C (M, W vectors) += A (M, K) B (K, W vectors); lda, ldb, ldc: from a row to the next; `across`: A is stored as (K, M).
// What is read after this, 64 bytes for each row of B, is fetched on the way where `ahead` is given.
template <int M, int W, bool across = false, class T>
void tile(const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t K, const char* ahead) {
    Floats sum[M][W];
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) sum[m][w] = load(c + m * ldc + w * LANES);
    for (int64_t k = 0; k < K; k++) {
        Floats row[W];
        for (int w = 0; w < W; w++) row[w] = load(b + k * ldb + w * LANES);
        if (ahead) __builtin_prefetch(ahead + k * 64);
        for (int m = 0; m < M; m++)
            for (int w = 0; w < W; w++) sum[m][w] += (across ? a[k * lda + m] : a[m * lda + k]) * row[w];
    }
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) store(c + m * ldc + w * LANES, sum[m][w]);
}

#ifdef __AVX512BF16__
// The same of bfloat16, two rows of B side by side: (K / 2, W vectors, 2).
template <int M, int W>
void tile(const BFloat16* a, int64_t lda, const BFloat16* b, int64_t ldb, float* c, int64_t ldc, int64_t K,
          const char* ahead) {
    __m512 sum[M][W];
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) sum[m][w] = _mm512_loadu_ps(c + m * ldc + w * LANES);
    for (int64_t k = 0; k < K; k += 2) {
        __m512bh row[W];
        if (ahead) __builtin_prefetch(ahead + k * 32);
        for (int w = 0; w < W; w++) row[w] = (__m512bh)_mm512_loadu_si512(b + k * ldb + w * 2 * LANES);
        for (int m = 0; m < M; m++) {
            int32_t pair;
            memcpy(&pair, a + m * lda + k, sizeof pair);
            for (int w = 0; w < W; w++) sum[m][w] = _mm512_dpbf16_ps(sum[m][w], (__m512bh)_mm512_set1_epi32(pair), row[w]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) _mm512_storeu_ps(c + m * ldc + w * LANES, sum[m][w]);
}
#endif

// The same for any number of rows, and of columns up to the next whole vector.
template <int M = TALLEST, bool across = false, class A, class B>
void product(const A* a, int64_t lda, const B* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t K,
             int64_t columns, const char* ahead = nullptr) {
    constexpr int64_t beside = std::is_same<A, float>::value ? 1 : 2;
    static_assert(!across || beside == 1, "pairs of bfloat16 are not stored across");
    const auto some = [&](auto W, int64_t n) {
        if constexpr (beside == 1)
            tile<M, W(), across>(a, lda, b + n, ldb, c + n, ldc, K, ahead);
        else
            tile<M, W()>(a, lda, b + n * beside, ldb, c + n, ldc, K, ahead);
    };
    for (; rows >= M; rows -= M, a += across ? M : M * lda, c += M * ldc, ahead += ahead ? K / beside * 64 : 0) {
        int64_t n = 0;
        for (; n + WIDEST * LANES <= whole(columns); n += WIDEST * LANES) some(std::integral_constant<int, WIDEST>{}, n);
        for (; n < columns; n += LANES) some(std::integral_constant<int, 1>{}, n);
    }
    if constexpr (M > 1)
        if (rows) product<M - 1, across>(a, lda, b, ldb, c, ldc, rows, K, columns, ahead);
}

}  // namespace
