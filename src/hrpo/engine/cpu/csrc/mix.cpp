// Weighted sums of candidates' embeddings in bfloat16, for which PyTorch makes a copy of them all. Called from gate.py.

#include <algorithm>

#include "vectors.h"

// ids and weights (n, K), table (V, D) -> out (n, D).
extern "C" void mix_bfloat16(const int64_t* ids, const float* weights, const BFloat16* table, float* out, int64_t n,
                             int64_t K, int64_t D, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < n; row++) {
        float* to = out + row * D;
        std::fill_n(to, D, 0.0f);
        for (int64_t k = row * K; k < (row + 1) * K; k++) {
            const BFloat16* from = table + ids[k] * D;
            const BFloat16* following = table + ids[std::min(k + 1, (row + 1) * K - 1)] * D;  // fetched on the way
            int64_t i = 0;
            for (; i + LANES <= D; i += LANES) {
                __builtin_prefetch(following + i);
                store(to + i, load(to + i) + weights[k] * load(from + i));
            }
            for (; i < D; i++) to[i] += weights[k] * widen(from[i]);
        }
    }
}
