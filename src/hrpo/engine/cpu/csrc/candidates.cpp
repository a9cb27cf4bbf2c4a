// The K largest logits of each row, and the logarithm of the sum of all exponentials. Called from candidates.py.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;  // logits that are looked at one by one only if one of them is large enough

struct Candidate {
    float logit;
    int64_t id;
    bool operator<(const Candidate& other) const {  // the likelier first; of equals the one with the smaller number
        return logit != other.logit ? logit > other.logit : id < other.id;
    }
};

template <class T>
float number(const T* x) {  // what is none stands last; the sum below tells of it
    return widen(*x) == widen(*x) ? widen(*x) : -INFINITY;
}

template <class T>
void largest(const T* logits, int64_t V, int64_t K, std::vector<Candidate>& found) {
    found.clear();
    for (int64_t id = 0; id < K; id++) found.push_back({number(logits + id), id});
    float least = std::max_element(found.begin(), found.end())->logit;
    const auto drop = [&] {
        std::nth_element(found.begin(), found.begin() + K - 1, found.end());
        found.resize(K);
        least = found[K - 1].logit;
    };
    for (int64_t first = K; first < V; first += BLOCK) {
        const int64_t last = std::min(first + BLOCK, V);
        float most = -INFINITY;
#pragma omp simd reduction(max : most)
        for (int64_t id = first; id < last; id++) most = std::max(most, widen(logits[id]));
        if (most <= least) continue;
        for (int64_t id = first; id < last; id++)
            if (widen(logits[id]) > least) found.push_back({widen(logits[id]), id});
        if (int64_t(found.size()) > 2 * K + BLOCK) drop();
    }
    drop();
    std::sort(found.begin(), found.end());
}

template <class T>
float log_sum_exp(const T* logits, int64_t V, float top) {
    constexpr int64_t beside = BLOCK / LANES;  // sums, of so few numbers each that rounding does not show
    Floats sums[beside] = {};
    int64_t id = 0;
    for (; id + BLOCK <= V; id += BLOCK)
        for (int64_t i = 0; i < beside; i++) sums[i] += exponential(load(logits + id + i * LANES) - top);
    double sum = 0;
    for (int64_t i = 0; i < BLOCK; i++) sum += sums[i / LANES][i % LANES];
    for (; id < V; id++) sum += std::exp(widen(logits[id]) - top);
    return top + std::log(sum);
}

template <class T>
void candidates(const T* logits, int64_t rows, int64_t V, int64_t K, float* values, int64_t* ids,
                float* totals, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<Candidate> found;
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            largest(logits + row * V, V, K, found);
            totals[row] = log_sum_exp(logits + row * V, V, found[0].logit);
            for (int64_t k = 0; k < K; k++) {
                values[row * K + k] = found[k].logit;
                ids[row * K + k] = found[k].id;
            }
        }
    }
}

}  // namespace

extern "C" void candidates_float32(const float* logits, int64_t rows, int64_t V, int64_t K, float* values,
                                   int64_t* ids, float* totals, int threads) {
    candidates(logits, rows, V, K, values, ids, totals, threads);
}

extern "C" void candidates_bfloat16(const BFloat16* logits, int64_t rows, int64_t V, int64_t K,
                                    float* values, int64_t* ids, float* totals, int threads) {
    candidates(logits, rows, V, K, values, ids, totals, threads);
}
