// x / sqrt(mean(x^2) + eps) * weight, a row at a time. Called from norms.py.

#include <cmath>

#include "vectors.h"

namespace {

template <class T>
void rms_norm(const T* x, const float* weight, T* out, int64_t rows, int64_t D, float eps, bool twice, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * D;
        T* to = out + row * D;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < D; i++) sum += widen(from[i]) * widen(from[i]);
        const float scale = 1 / std::sqrt(sum / D + eps);
#pragma omp simd
        for (int64_t i = 0; i < D; i++) {
            T normed;
            narrow(widen(from[i]) * scale, &normed);
            narrow((twice ? widen(normed) : widen(from[i]) * scale) * weight[i], to + i);
        }
    }
}

}  // namespace

extern "C" void rms_norm_float32(const float* x, const float* weight, float* out, int64_t rows, int64_t D, float eps,
                                 bool twice, int threads) {
    rms_norm(x, weight, out, rows, D, eps, twice, threads);
}

extern "C" void rms_norm_bfloat16(const BFloat16* x, const float* weight, BFloat16* out, int64_t rows, int64_t D,
                                  float eps, bool twice, int threads) {
    rms_norm(x, weight, out, rows, D, eps, twice, threads);
}
