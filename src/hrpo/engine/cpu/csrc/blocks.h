// What a block of Llama's layout does between its matrix products, a row at a time, rounded where transformers rounds.

#pragma once

#include <algorithm>

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
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            const Floats a = load(x + i), b = load(x + half + i);
            store(out + i, rounded<T>(a * load(cosine + i)) - rounded<T>(b * load(sine + i)));
            store(out + half + i, rounded<T>(b * load(cosine + half + i)) + rounded<T>(a * load(sine + half + i)));
        }
        for (; i < half; i++) {
            const T a = x[i], b = x[half + i];
            turned(a, cosine[i], b, sine[i], -1, out + i);
            turned(b, cosine[half + i], a, sine[half + i], 1, out + half + i);
        }
    }
}

inline Floats sigmoid(Floats x) {
    const Floats power = exponential(x < 0.0f ? x : -x);  // e^-|x|
    return (x < 0.0f ? power : Floats{} + 1.0f) / (1.0f + power);
}
inline Floats silu(Floats x) { return x * sigmoid(x); }

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

// The gradients of gate and up, given that of the product, whose place one of them may take.
template <class T>
void swiglu_back(const T* gate, const T* up, const T* grad, T* for_gate, T* for_up, int64_t D) {
    T kept[4][LANES] = {};  // a last vector that is not whole
    for (int64_t i = 0; i < D; i += LANES) {
        const int64_t n = std::min(LANES, D - i);
        const T *g = gate + i, *u = up + i, *back = grad + i;
        if (n < LANES) {
            memcpy(kept[0], g, n * sizeof(T)), memcpy(kept[1], u, n * sizeof(T)), memcpy(kept[2], back, n * sizeof(T));
            g = kept[0], u = kept[1], back = kept[2];
        }
        const Floats x = load(g), share = sigmoid(x), active = rounded<T>(x * share), slope = load(back);
        const Floats gates = slope * load(u) * (share + active * (1.0f - share));
        if (n == LANES) {
            store(for_gate + i, gates), store(for_up + i, slope * active);
            continue;
        }
        store(kept[3], gates), memcpy(for_gate + i, kept[3], n * sizeof(T));
        store(kept[3], slope * active), memcpy(for_up + i, kept[3], n * sizeof(T));
    }
}

}  // namespace
