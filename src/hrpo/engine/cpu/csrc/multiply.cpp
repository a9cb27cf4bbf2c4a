// A linear layer's product for a few rows. Called from linear.py. Only for AVX-512: with half as many registers, half as
// wide, it is no faster than oneDNN's.

#include "layer.h"

namespace {

template <class T>
void run(const T* x, const Layer<T>& layer, T* out, int64_t S, int threads) {
    static thread_local std::vector<T> kept_low;  // from call to call
    T* low = room(kept_low, S * layer.A.O);
#pragma omp parallel num_threads(threads)
    multiply(x, layer, low, out, S);
}

}  // namespace

#ifdef __AVX512F__
extern "C" void multiply_float32(const float* x, const Layer<float>* layer, float* out, int64_t S, int threads) {
    run(x, *layer, out, S, threads);
}
#endif

#ifdef __AVX512BF16__
extern "C" void multiply_bfloat16(const BFloat16* x, const Layer<BFloat16>* layer, BFloat16* out, int64_t S,
                                  int threads) {
    run(x, *layer, out, S, threads);
}
#endif
