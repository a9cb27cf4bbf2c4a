// RMS normalisation of many rows. Called from norms.py.

#include "norm.h"

namespace {

template <class T>
void rms_norm(const T* x, T* out, int64_t rows, int64_t D, const Norm& norm, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 16384)
    for (int64_t row = 0; row < rows; row++) normalize(x + row * D, out + row * D, D, norm);
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
