// A decode step's attention in one layer. Called from decode_attention.py.

#include "attention.h"

extern "C" void attend_float32(const Step<float>* step, int threads) {
#pragma omp parallel num_threads(threads)
    step->run();
}

extern "C" void attend_bfloat16(const Step<BFloat16>* step, int threads) {
#pragma omp parallel num_threads(threads)
    step->run();
}
