// Blocks of Llama's layout: what they do between their matrix products, and a decode step of one whole. Called from
// blocks.py.

#include "blocks.h"

#include "attention.h"
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

struct Block {
    Weight inward, outward, gate_and_up, down;
    Norm first, second, q_norm, k_norm;  // the last two without weight where there are none
};

float* room(std::vector<float>& kept, int64_t size) {
    if (int64_t(kept.size()) < size) kept.resize(size);
    return kept.data();
}

// x (S, D) -> out (S, D) at cosines and sines (S, d); of the step, query, key, value and out are filled in.
void run(const Block& block, const float* x, const float* cosine, const float* sine, float* out, int64_t S,
         Step<float> step, int threads) {
    static thread_local std::vector<float> kept_read, kept_wide, kept_attended, kept_sum;  // from call to call
    const int64_t D = block.inward.I, wide = block.inward.O, I = block.down.I, H = step.H, heads = step.heads;
    float *read = room(kept_read, S * D), *both = room(kept_wide, S * std::max(wide, 3 * I));
    float *attended = room(kept_attended, S * block.outward.I), *sum = room(kept_sum, S * D), *active = both + S * 2 * I;
    step.query = both, step.key = both + H * step.d, step.value = step.key + heads * step.d, step.out = attended;
    step.next_query = step.next_key = step.next_value = wide;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t row = 0; row < S; row++) normalize(x + row * D, read + row * D, D, block.first);
        multiply(read, block.inward, both, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++) {
            float *query = both + row * wide, *key = query + H * step.d;
            for (int64_t head = 0; head < (block.q_norm.weight ? H : 0); head++)
                normalize(query + head * step.d, query + head * step.d, step.d, block.q_norm);
            for (int64_t head = 0; head < (block.k_norm.weight ? heads : 0); head++)
                normalize(key + head * step.d, key + head * step.d, step.d, block.k_norm);
            rotate(query, cosine + row * step.d, sine + row * step.d, query, H + heads, step.d);
        }
        step.run();
        multiply(attended, block.outward, sum, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++) {
#pragma omp simd
            for (int64_t i = row * D; i < (row + 1) * D; i++) sum[i] += x[i];
            normalize(sum + row * D, read + row * D, D, block.second);
        }
        multiply(read, block.gate_and_up, both, S);
#pragma omp for
        for (int64_t row = 0; row < S; row++)
            swiglu(both + row * 2 * I, both + row * 2 * I + I, active + row * I, I);
        multiply(active, block.down, out, S);
#pragma omp for simd
        for (int64_t i = 0; i < S * D; i++) out[i] += sum[i];
    }
}

}  // namespace

extern "C" void block_float32(const Block* block, const float* x, const float* cosine, const float* sine, float* out,
                              int64_t S, const Step<float>* step, int threads) {
    run(*block, x, cosine, sine, out, S, *step, threads);
}

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
