// What a block of Llama's layout does between its matrix products, rounded where transformers rounds. Called from
// blocks.py.

#include "vectors.h"

namespace {

constexpr int64_t SMALL = 16384;  // numbers that one thread is done with before others have begun

// Rotary embeddings (arXiv:2104.09864) on halves: (S, H, d), next numbers from a row to the next, and (S, d) twice.
template <class T>
void rotate(const T* x, int64_t next, const T* cosine, const T* sine, T* out, int64_t S, int64_t H, int64_t d,
            int threads) {
#pragma omp parallel for num_threads(threads) if (S * H * d > SMALL)
    for (int64_t row = 0; row < S; row++)
        for (int64_t head = 0; head < H; head++) {
            const T* from = x + row * next + head * d;
            T* to = out + (row * H + head) * d;
            const auto half = [&](int64_t first, int64_t other, float sign) {
#pragma omp simd
                for (int64_t i = 0; i < d / 2; i++) {
                    T kept, turned;
                    narrow(widen(from[first + i]) * widen(cosine[row * d + first + i]), &kept);
                    narrow(sign * widen(from[other + i]) * widen(sine[row * d + first + i]), &turned);
                    narrow(widen(kept) + widen(turned), to + first + i);
                }
            };
            half(0, d / 2, -1);
            half(d / 2, 0, 1);
        }
}

Floats silu(Floats x) {
    const Floats power = exponential(x < 0.0f ? x : -x);  // e^-|x|
    return (x < 0.0f ? x * power : x) / (1.0f + power);
}

// SwiGLU's product (arXiv:2002.05202): gate / (1 + e^-gate) * up, (S, D) each.
template <class T>
void swiglu(const T* gates, const T* ups, int64_t next, T* out, int64_t S, int64_t D, int threads) {
#pragma omp parallel for num_threads(threads) if (S * D > SMALL)
    for (int64_t row = 0; row < S; row++) {
        const T *gate = gates + row * next, *up = ups + row * next;
        T* to = out + row * D;
        int64_t i = 0;
        for (; i + LANES <= D; i += LANES) store(to + i, rounded<T>(silu(load(gate + i))) * load(up + i));
        for (; i < D; i++) {
            T active;
            narrow(silu(Floats{widen(gate[i])})[0], &active);
            narrow(widen(active) * widen(up[i]), to + i);
        }
    }
}

}  // namespace

extern "C" void rotate_float32(const float* x, int64_t next, const float* cosine, const float* sine, float* out,
                               int64_t S, int64_t H, int64_t d, int threads) {
    rotate(x, next, cosine, sine, out, S, H, d, threads);
}

extern "C" void rotate_bfloat16(const BFloat16* x, int64_t next, const BFloat16* cosine, const BFloat16* sine,
                                BFloat16* out, int64_t S, int64_t H, int64_t d, int threads) {
    rotate(x, next, cosine, sine, out, S, H, d, threads);
}

extern "C" void swiglu_float32(const float* gates, const float* ups, int64_t next, float* out, int64_t S, int64_t D,
                             int threads) {
    swiglu(gates, ups, next, out, S, D, threads);
}

extern "C" void swiglu_bfloat16(const BFloat16* gates, const BFloat16* ups, int64_t next, BFloat16* out, int64_t S,
                              int64_t D, int threads) {
    swiglu(gates, ups, next, out, S, D, threads);
}
