// x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467), rounded where transformers rounds.

#pragma once

#include <cmath>

#include "vectors.h"

namespace {

struct Norm {
    const float* weight;
    float eps;
    bool twice;  // whether what is multiplied by the weight is rounded before, too
};

template <class T>
void normalize(const T* from, T* to, int64_t D, const Norm& norm) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < D; i++) sum += widen(from[i]) * widen(from[i]);
    const float scale = 1 / std::sqrt(sum / D + norm.eps);
#pragma omp simd
    for (int64_t i = 0; i < D; i++) {
        T normed;
        narrow(widen(from[i]) * scale, &normed);
        narrow((norm.twice ? widen(normed) : widen(from[i]) * scale) * norm.weight[i], to + i);
    }
}

// The gradient of x, given that of the result; what else reaches x is added, if anything does.
template <class T>
void normalize_back(const T* x, const T* grad, const T* more, T* to, int64_t D, const Norm& norm) {
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = 0; i < D; i++) {
        sum += widen(x[i]) * widen(x[i]);
        along += widen(grad[i]) * norm.weight[i] * widen(x[i]);
    }
    const float scale = 1 / std::sqrt(sum / D + norm.eps), less = along * scale * scale / D;
#pragma omp simd
    for (int64_t i = 0; i < D; i++)
        narrow((more ? widen(more[i]) : 0) + scale * (widen(grad[i]) * norm.weight[i] - widen(x[i]) * less), to + i);
}

}  // namespace
