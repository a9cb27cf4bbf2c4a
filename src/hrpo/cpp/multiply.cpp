// A product of few rows with a packed weight. Called from linear.py.

#include "product.h"

extern "C" void multiply_float32(const float* x, const float* weight, const float* bias, float* out, int64_t S,
                                 int64_t I, int64_t O, int threads) {
#pragma omp parallel num_threads(threads)
    multiply(x, {weight, bias, I, O}, out, S);
}
