// RMS normalisation of many rows, and back. Called from norms.py and trained_blocks.py.

#include "norm.h"

namespace {

template <class T>
void rms_norm(const T* x, T* out, int64_t rows, int64_t D, const Norm& norm, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 16384)
    for (int64_t row = 0; row < rows; row++) normalize(x + row * D, out + row * D, D, norm);
}

template <class T>
void rms_norm_backward(const T* x, const T* grad, const T* more, T* out, int64_t rows, int64_t D, const Norm& norm,
                       int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 16384)
    for (int64_t at = 0; at < rows * D; at += D)
        normalize_back(x + at, grad + at, more ? more + at : nullptr, out + at, D, norm);
}

}  // namespace

extern "C" void rms_norm_float32(const float* x, const float* weight, float* out, int64_t rows, int64_t D, float eps,
                                 bool twice, int threads) {
    rms_norm(x, out, rows, D, {weight, eps, twice}, threads);
}

extern "C" void rms_norm_bfloat16(const BFloat16* x, const float* weight, BFloat16* out, int64_t rows, int64_t D,
                                  float eps, bool twice, int threads) {
    rms_norm(x, out, rows, D, {weight, eps, twice}, threads);
}

extern "C" void rms_norm_backward_float32(const float* x, const float* grad, const float* more, const float* weight,
                                          float* out, int64_t rows, int64_t D, float eps, int threads) {
    rms_norm_backward(x, grad, more, out, rows, D, {weight, eps, false}, threads);
}

extern "C" void rms_norm_backward_bfloat16(const BFloat16* x, const BFloat16* grad, const BFloat16* more,
                                           const float* weight, BFloat16* out, int64_t rows, int64_t D, float eps,
                                           int threads) {
    rms_norm_backward(x, grad, more, out, rows, D, {weight, eps, false}, threads);
}
