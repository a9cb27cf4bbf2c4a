// What a block of Llama's layout does between its matrix products, a row at a time, rounded where transformers rounds.

#pragma once

#include "vectors.h"

namespace {

// Rotary embeddings (arXiv:2104.09864) on halves: H heads of d, in place or not, by cosines (d,) and sines (d,).
template <class T>
void rotate(const T* x, const T* cosine, const T* sine, T* out, int64_t H, int64_t d) {
    const auto turned = [](T a, T cos, T b, T sin, float sign, T* to) {
        T kept, crossed;
        narrow(widen(a) * widen(cos), &kept);
        narrow(sign * widen(b) * widen(sin), &crossed);
        narrow(widen(kept) + widen(crossed), to);
    };
    const int64_t half = d / 2;
    for (int64_t head = 0; head < H; head++, x += d, out += d) {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const T a = x[i], b = x[half + i];
            turned(a, cosine[i], b, sine[i], -1, out + i);
            turned(b, cosine[half + i], a, sine[half + i], 1, out + half + i);
        }
    }
}

inline Floats silu(Floats x) {
    const Floats power = exponential(x < 0.0f ? x : -x);  // e^-|x|
    return (x < 0.0f ? x * power : x) / (1.0f + power);
}

// SwiGLU's product (arXiv:2002.05202): gate / (1 + e^-gate) * up, (D,) each.
template <class T>
void swiglu(const T* gate, const T* up, T* out, int64_t D) {
    int64_t i = 0;
    for (; i + LANES <= D; i += LANES) store(out + i, rounded<T>(silu(load(gate + i))) * load(up + i));
    for (; i < D; i++) {
        T active;
        narrow(silu(Floats{widen(gate[i])})[0], &active);
        narrow(widen(active) * widen(up[i]), out + i);
    }
}

}  // namespace
