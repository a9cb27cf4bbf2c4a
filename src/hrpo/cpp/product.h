// Matrix products of a few rows, in tiles that stay in registers. Functions with "omp for" or a barrier are for all
// threads of a team to call.

#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int WIDEST = 4;  // vectors of a row in a tile: with 6 rows, 24 of 32 registers
#else
constexpr int WIDEST = 1;
#endif
constexpr int TALLEST = 6;

// C (M, W vectors) += A (M, K) B (K, W vectors); lda, ldb, ldc: from a row to the next.
template <int M, int W, class T>
void tile(const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t K) {
    Floats sum[M][W];
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) sum[m][w] = load(c + m * ldc + w * LANES);
    for (int64_t k = 0; k < K; k++) {
        Floats row[W];
        for (int w = 0; w < W; w++) row[w] = load(b + k * ldb + w * LANES);
        for (int m = 0; m < M; m++)
            for (int w = 0; w < W; w++) sum[m][w] += a[m * lda + k] * row[w];
    }
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) store(c + m * ldc + w * LANES, sum[m][w]);
}

// The same for any number of rows, and of columns up to the next whole vector.
template <int M = TALLEST, class T>
void product(const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t K,
             int64_t columns) {
    for (; rows >= M; rows -= M, a += M * lda, c += M * ldc) {
        int64_t n = 0;
        for (; n + WIDEST * LANES <= whole(columns); n += WIDEST * LANES) tile<M, WIDEST>(a, lda, b + n, ldb, c + n, ldc, K);
        for (; n < columns; n += LANES) tile<M, 1>(a, lda, b + n, ldb, c + n, ldc, K);
    }
    if constexpr (M > 1)
        if (rows) product<M - 1>(a, lda, b, ldb, c, ldc, rows, K, columns);
}

constexpr int64_t COLUMNS = 64, HALF = COLUMNS / 2;

// What a linear layer is made of: (O / 64, I, 64) with zeros behind the last of O columns, and (O,) or none.
struct Weight {
    const float *blocks, *bias;
    int64_t I, O;
};

// x (S, I) times a weight, plus a bias: (S, O). Each thread takes as many half blocks as the others, or one more.
inline void multiply(const float* x, const Weight& weight, float* out, int64_t S) {
    const int64_t I = weight.I, O = weight.O, halves = (O + HALF - 1) / HALF;
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    std::vector<float> part;
    const int64_t end = halves * (thread + 1) / threads;
    for (int64_t half = halves * thread / threads, taken; half < end; half += taken) {
        taken = half % 2 == 0 && half + 1 < end ? 2 : 1;
        const int64_t first = half * HALF, width = taken * HALF, count = std::min(width, O - first);
        const bool whole = count == width;
        if (!whole) part.assign(S * width, 0);
        float* to = whole ? out + first : part.data();
        const int64_t next = whole ? O : width;
        for (int64_t row = 0; row < S; row++)
            for (int64_t i = 0; i < count; i++) to[row * next + i] = weight.bias ? weight.bias[first + i] : 0;
        const float* block = weight.blocks + first / COLUMNS * I * COLUMNS + first % COLUMNS;
        product(x, I, block, COLUMNS, to, next, S, I, width);
        for (int64_t row = 0; row < (whole ? 0 : S); row++) std::copy_n(to + row * width, count, out + row * O + first);
    }
#pragma omp barrier
}

}  // namespace
