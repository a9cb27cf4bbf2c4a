// Blocks of Llama's layout: what they do between their matrix products, and a whole decode step. Called from blocks.py
// and trained_blocks.py.

#include "blocks.h"

#include "attention.h"
#include "layer.h"
#include "norm.h"

namespace {

constexpr int64_t SMALL = 16384;  // numbers that one thread is done with before others have begun

// (S, H, d), next numbers from a row to the next, and (S, d) twice.
template <class T>
void rotate_rows(const T* x, int64_t next, const T* cosine, const T* sine, T* out, int64_t S, int64_t H, int64_t d,
                 int threads) {
#pragma omp parallel for num_threads(threads) if (S * H * d > SMALL)
    for (int64_t row = 0; row < S; row++)
        rotate(x + row * next, cosine + row * d, sine + row * d, out + row * H * d, H, d);
}

// (S, D) each, next numbers from a row to the next.
template <class T>
void swiglu_rows(const T* gates, const T* ups, int64_t next, T* out, int64_t S, int64_t D, int threads) {
#pragma omp parallel for num_threads(threads) if (S * D > SMALL)
    for (int64_t row = 0; row < S; row++) swiglu(gates + row * next, ups + row * next, out + row * D, D);
}

// (S, D) each.
template <class T>
void swiglu_backward(const T* gates, const T* ups, const T* grad, T* for_gates, T* for_ups, int64_t S, int64_t D,
                     int threads) {
#pragma omp parallel for num_threads(threads) if (S * D > SMALL)
    for (int64_t at = 0; at < S * D; at += D) swiglu_back(gates + at, ups + at, grad + at, for_gates + at, for_ups + at, D);
}

template <class T>
struct Block {
    Layer<T> inward, outward, gate_and_up, down;
    Norm first, second, q_norm, k_norm;  // the last two without weight where there are none
};

// x (S, D) -> out (S, D), maybe in its place, at cosines and sines (S, d); of the step, query, key, value and out are
// filled in.
template <class T>
void run(const Block<T>& block, const T* x, const T* cosine, const T* sine, T* out, int64_t S, Step<T> step,
         int threads) {
    static thread_local std::vector<T> kept_read, kept_wide, kept_attended, kept_sum, kept_low;  // from call to call
    const int64_t D = block.inward.weight.I, wide = block.inward.weight.O, I = block.down.weight.I;
    const int64_t H = step.H, heads = step.heads, d = step.d;
    const int64_t rank = std::max(std::max(block.inward.A.O, block.outward.A.O),
                                  std::max(block.gate_and_up.A.O, block.down.A.O));
    T *read = room(kept_read, S * D), *both = room(kept_wide, S * std::max(wide, 3 * I)), *active = both + S * 2 * I;
    T *attended = room(kept_attended, S * block.outward.weight.I), *sum = room(kept_sum, S * D);
    T* low = room(kept_low, S * rank);
    step.query = both, step.key = both + H * d, step.value = step.key + heads * d, step.out = attended;
    step.next_query = step.next_key = step.next_value = wide;
    const auto plus = [](T a, T b, T* to) { narrow(widen(a) + widen(b), to); };
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t row = 0; row < S; row++) normalize(x + row * D, read + row * D, D, block.first);
        multiply(read, block.inward, low, both, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++) {
            T *query = both + row * wide, *key = query + H * d;
            for (int64_t head = 0; head < (block.q_norm.weight ? H : 0); head++)
                normalize(query + head * d, query + head * d, d, block.q_norm);
            for (int64_t head = 0; head < (block.k_norm.weight ? heads : 0); head++)
                normalize(key + head * d, key + head * d, d, block.k_norm);
            rotate(query, cosine + row * d, sine + row * d, query, H + heads, d);
        }
        step.run();
        multiply(attended, block.outward, low, sum, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++) {
#pragma omp simd
            for (int64_t i = row * D; i < (row + 1) * D; i++) plus(sum[i], x[i], sum + i);
            normalize(sum + row * D, read + row * D, D, block.second);
        }
        multiply(read, block.gate_and_up, low, both, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++) swiglu(both + row * 2 * I, both + row * 2 * I + I, active + row * I, I);
        multiply(active, block.down, low, out, S);
#pragma omp for simd
        for (int64_t i = 0; i < S * D; i++) plus(out[i], sum[i], out + i);
    }
}

// Blocks one after the other, n of them.
template <class T>
void run(const Block<T>* const* blocks, const Step<T>* steps, int64_t n, const T* x, const T* cosine, const T* sine,
         T* out, int64_t S, int threads) {
    for (int64_t i = 0; i < n; i++) run(*blocks[i], i ? out : x, cosine, sine, out, S, steps[i], threads);
}

}  // namespace

#ifdef __AVX512F__  // as multiply.cpp
extern "C" void blocks_float32(const Block<float>* const* blocks, const Step<float>* steps, int64_t n, const float* x,
                               const float* cosine, const float* sine, float* out, int64_t S, int threads) {
    run(blocks, steps, n, x, cosine, sine, out, S, threads);
}
#endif

#ifdef __AVX512BF16__
extern "C" void blocks_bfloat16(const Block<BFloat16>* const* blocks, const Step<BFloat16>* steps, int64_t n,
                                const BFloat16* x, const BFloat16* cosine, const BFloat16* sine, BFloat16* out,
                                int64_t S, int threads) {
    run(blocks, steps, n, x, cosine, sine, out, S, threads);
}
#endif

extern "C" void rotate_float32(const float* x, int64_t next, const float* cosine, const float* sine, float* out,
                               int64_t S, int64_t H, int64_t d, int threads) {
    rotate_rows(x, next, cosine, sine, out, S, H, d, threads);
}

extern "C" void rotate_bfloat16(const BFloat16* x, int64_t next, const BFloat16* cosine, const BFloat16* sine,
                                BFloat16* out, int64_t S, int64_t H, int64_t d, int threads) {
    rotate_rows(x, next, cosine, sine, out, S, H, d, threads);
}

extern "C" void swiglu_float32(const float* gates, const float* ups, int64_t next, float* out, int64_t S, int64_t D,
                             int threads) {
    swiglu_rows(gates, ups, next, out, S, D, threads);
}

extern "C" void swiglu_bfloat16(const BFloat16* gates, const BFloat16* ups, int64_t next, BFloat16* out, int64_t S,
                              int64_t D, int threads) {
    swiglu_rows(gates, ups, next, out, S, D, threads);
}

extern "C" void swiglu_backward_float32(const float* gates, const float* ups, const float* grad, float* for_gates,
                                        float* for_ups, int64_t S, int64_t D, int threads) {
    swiglu_backward(gates, ups, grad, for_gates, for_ups, S, D, threads);
}

extern "C" void swiglu_backward_bfloat16(const BFloat16* gates, const BFloat16* ups, const BFloat16* grad,
                                         BFloat16* for_gates, BFloat16* for_ups, int64_t S, int64_t D, int threads) {
    swiglu_backward(gates, ups, grad, for_gates, for_ups, S, D, threads);
}
