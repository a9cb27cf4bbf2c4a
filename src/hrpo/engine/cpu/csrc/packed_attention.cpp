// Attention of packed groups, and back: prompts attend to themselves, causally; completions to their prompt too. Called
// from packed_attention.py, which has the shapes.
//
// Scores are laid out (keys, queries), a vector of queries each, so that the softmax needs no sums across a vector. All
// are computed for 64 queries at a time, and again in the backward pass (arXiv:2205.14135). All sums are in float32,
// whatever the tensors hold. A thread takes a sequence and a key-value head at a time.

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "product.h"

namespace {

constexpr int64_t QUERIES = 64;

// Tokens first to first + length of a row, and those of their prompt; a prompt has none.
struct Sequence {
    int64_t first, length, prompt, prompt_length;
};

template <class T>
struct Packed {
    const T *query, *key, *value;  // (S, H, d), (S, heads, d), (S, heads, d)
    T* out;                        // (S, H, d)
    float* logs;                   // (S, H), of the sum of exponentials
    const T* grad;                 // (S, H, d), and those of query, key and value
    T *to_query, *to_key, *to_value;
    const Sequence* sequences;  // B prompts, then G completions of each
    int64_t B, G, H, heads, d;
    float scale;

    // Numbers of a thread.
    struct Room {
        std::vector<float> keys, values, queries, across, scores, slopes, sums, delta;
    };

    static float* room(std::vector<float>& kept, int64_t size, bool clear = false) {
        if (int64_t(kept.size()) < size) kept.resize(size);
        if (clear) std::fill_n(kept.begin(), size, 0.0f);
        return kept.data();
    }

    static void widen_row(const T* from, float* to, int64_t d, float scale = 1) {
        for (int64_t c = 0; c < d; c += LANES) store(to + c, load(from + c) * scale);
    }

    // Rows of one head of `heads`, a prompt's and then the sequence's own: (P + length, d).
    void gather(const T* from, int64_t head, const Sequence& s, float* to) const {
        for (int64_t k = 0; k < s.prompt_length; k++, to += d) widen_row(from + ((s.prompt + k) * heads + head) * d, to, d);
        for (int64_t k = 0; k < s.length; k++, to += d) widen_row(from + ((s.first + k) * heads + head) * d, to, d);
    }

    // Rows q to q + count of one head of H, (count, d), and the same across, (d, QUERIES), zeros up to a whole vector.
    void block(const T* from, int64_t head, int64_t q, int64_t count, float scale, float* rows, float* across) const {
        for (int64_t i = 0; i < count; i++) widen_row(from + ((q + i) * H + head) * d, rows + i * d, d, scale);
        for (int64_t i = 0; i < count; i += LANES)
            transpose((int32_t*)(rows + i * d), std::min(LANES, count - i), d, (int32_t*)(across + i), QUERIES);
    }

    // scores (keys, QUERIES) += keys (keys, d) across (d, QUERIES), of `count` queries from `q` on of a sequence.
    void multiply(const float* keys, const float* across, float* scores, int64_t n_keys, int64_t count) const {
        product(keys, d, across, QUERIES, scores, QUERIES, n_keys, d, count);
    }

    // Of own key k, whether query q + lane of the sequence may not look at it.
    static Ints hidden(int64_t k, int64_t q) {
        Ints lanes;
        for (int i = 0; i < LANES; i++) lanes[i] = int32_t(q + i);
        return lanes < int32_t(k);
    }

    void forward(const Sequence& s, int64_t head, Room& kept) const {
        const int64_t per = H / heads, P = s.prompt_length, most = P + s.length;
        float *keys = room(kept.keys, most * d), *values = room(kept.values, most * d);
        gather(key, head, s, keys);
        gather(value, head, s, values);
        float *rows = room(kept.queries, QUERIES * d), *across = room(kept.across, d * QUERIES);
        for (int64_t h = head * per; h < (head + 1) * per; h++)
            for (int64_t q = 0; q < s.length; q += QUERIES) {
                const int64_t count = std::min(QUERIES, s.length - q), n_keys = P + q + count;
                float* scores = room(kept.scores, n_keys * QUERIES, true);
                float* sums = room(kept.sums, QUERIES * d, true);
                block(query, h, s.first + q, count, scale, rows, across);
                multiply(keys, across, scores, n_keys, count);
                for (int64_t lane = 0; lane < count; lane += LANES) {
                    for (int64_t k = P + q; k < n_keys; k++) {
                        float* at = scores + k * QUERIES + lane;
                        store(at, hidden(k - P, q + lane) ? Floats{} - INFINITY : load(at));
                    }
                    Floats top = load(scores + lane), total = {};
                    for (int64_t k = 1; k < n_keys; k++) {
                        const Floats score = load(scores + k * QUERIES + lane);
                        top = score > top ? score : top;
                    }
                    for (int64_t k = 0; k < n_keys; k++) {
                        float* at = scores + k * QUERIES + lane;
                        Floats share = exponential(load(at) - top);
                        if (k >= P + q) share = hidden(k - P, q + lane) ? Floats{} : share;  // it was next to nothing
                        total += share;
                        store(at, share);
                    }
                    const Floats each = 1 / total;
                    for (int64_t k = 0; k < n_keys; k++) {
                        float* at = scores + k * QUERIES + lane;
                        store(at, load(at) * each);
                    }
                    for (int64_t i = 0; i < std::min(LANES, count - lane); i++)
                        logs[(s.first + q + lane + i) * H + h] = top[i] + std::log(total[i]);
                }
                product<TALLEST, true>(scores, QUERIES, values, d, sums, d, count, n_keys, d);
                for (int64_t i = 0; i < count; i++)
                    for (int64_t c = 0; c < d; c += LANES)
                        store(out + ((s.first + q + i) * H + h) * d + c, load(sums + i * d + c));
            }
    }

    // Gradients of a sequence's queries, keys and values. Those of a prompt's keys and values, (2, P, heads, d), are
    // written to its room, or added to what others have put there.
    void backward(const Sequence& s, int64_t head, float* to_prompt, bool add, Room& kept) const {
        const int64_t per = H / heads, P = s.prompt_length, most = P + s.length;
        float *keys = room(kept.keys, 2 * most * d, true), *to_keys = keys + most * d;
        float *values = room(kept.values, 2 * most * d, true), *to_values = values + most * d;
        gather(key, head, s, keys);
        gather(value, head, s, values);
        float *rows = room(kept.queries, 2 * QUERIES * d), *grads = rows + QUERIES * d;
        float *across = room(kept.across, 2 * d * QUERIES), *grads_across = across + d * QUERIES;
        float* delta = room(kept.delta, 2 * QUERIES);
        float* log = delta + QUERIES;
        for (int64_t h = head * per; h < (head + 1) * per; h++)
            for (int64_t q = 0; q < s.length; q += QUERIES) {
                const int64_t count = std::min(QUERIES, s.length - q), n_keys = P + q + count;
                float* shares = room(kept.scores, n_keys * QUERIES, true);
                float* slopes = room(kept.slopes, n_keys * QUERIES, true);
                float* sums = room(kept.sums, QUERIES * d, true);
                block(query, h, s.first + q, count, scale, rows, across);
                block(grad, h, s.first + q, count, 1, grads, grads_across);
                std::fill_n(delta, 2 * QUERIES, 0.0f);
                for (int64_t i = 0; i < count; i++) {
                    const T* made = out + ((s.first + q + i) * H + h) * d;
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t c = 0; c < d; c++) sum += grads[i * d + c] * widen(made[c]);
                    delta[i] = sum;
                    log[i] = logs[(s.first + q + i) * H + h];
                }
                multiply(keys, across, shares, n_keys, count);
                multiply(values, grads_across, slopes, n_keys, count);
                for (int64_t k = 0; k < n_keys; k++)
                    for (int64_t lane = 0; lane < count; lane += LANES) {
                        float *at = shares + k * QUERIES + lane, *slope = slopes + k * QUERIES + lane;
                        Floats share = exponential(load(at) - load(log + lane));
                        if (k >= P + q) share = hidden(k - P, q + lane) ? Floats{} : share;
                        store(at, share);
                        store(slope, share * (load(slope) - load(delta + lane)));
                    }
                product<TALLEST, true>(slopes, QUERIES, keys, d, sums, d, count, n_keys, d);
                for (int64_t i = 0; i < count; i++)
                    for (int64_t c = 0; c < d; c += LANES)
                        store(to_query + ((s.first + q + i) * H + h) * d + c, load(sums + i * d + c) * scale);
                product(slopes, QUERIES, rows, d, to_keys, d, n_keys, count, d);
                product(shares, QUERIES, grads, d, to_values, d, n_keys, count, d);
            }
        const int64_t shared = P ? P : s.length;
        for (int64_t k = 0; k < shared; k++)
            for (int64_t c = 0; c < d; c += LANES) {
                float *key_at = to_prompt + (k * heads + head) * d + c, *value_at = key_at + shared * heads * d;
                store(key_at, load(to_keys + k * d + c) + (add ? load(key_at) : Floats{}));
                store(value_at, load(to_values + k * d + c) + (add ? load(value_at) : Floats{}));
            }
        for (int64_t k = 0; P && k < s.length; k++)
            for (int64_t c = 0; c < d; c += LANES) {
                const int64_t at = ((s.first + k) * heads + head) * d + c;
                store(to_key + at, load(to_keys + (P + k) * d + c));
                store(to_value + at, load(to_values + (P + k) * d + c));
            }
    }
};

template <class T>
void attend(const Packed<T>& packed, int threads) {
#pragma omp parallel num_threads(threads)
    {
        typename Packed<T>::Room kept;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t s = 0; s < packed.B * (1 + packed.G); s++)
            for (int64_t head = 0; head < packed.heads; head++) packed.forward(packed.sequences[s], head, kept);
    }
}

// A prompt's gradients have some from itself and from each of its completions: the latter are dealt out to as many rooms
// as there are threads, and those added up in order, so that the same threads give the same numbers.
template <class T>
void attend_back(const Packed<T>& packed, int threads) {
    const int64_t B = packed.B, G = packed.G, width = packed.heads * packed.d;
    const int64_t rooms = 1 + std::min<int64_t>(threads, G);
    std::vector<int64_t> places(B + 1);
    for (int64_t b = 0; b < B; b++) places[b + 1] = places[b] + rooms * 2 * packed.sequences[b].length * width;
    const std::unique_ptr<float[]> to_prompts(new float[places[B]]);
#pragma omp parallel num_threads(threads)
    {
        typename Packed<T>::Room kept;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < B * rooms; b++)
            for (int64_t head = 0; head < packed.heads; head++) {
                const Sequence& prompt = packed.sequences[b / rooms];
                const int64_t room = b % rooms;
                float* to = to_prompts.get() + places[b / rooms] + room * 2 * prompt.length * width;
                if (room == 0) packed.backward(prompt, head, to, false, kept);
                for (int64_t g = room - 1; room && g < G; g += rooms - 1)
                    packed.backward(packed.sequences[B + b / rooms * G + g], head, to, g >= rooms - 1, kept);
            }
        for (int64_t b = 0; b < B; b++) {
            const Sequence& prompt = packed.sequences[b];
            const int64_t half = prompt.length * width;
#pragma omp for
            for (int64_t at = 0; at < 2 * half; at += LANES) {
                Floats sum = {};
                for (int64_t room = 0; room < rooms; room++)
                    sum += load(to_prompts.get() + places[b] + room * 2 * half + at);
                store((at < half ? packed.to_key + at : packed.to_value + at - half) + prompt.first * width, sum);
            }
        }
    }
}

}  // namespace

extern "C" void attend_packed_float32(const Packed<float>* packed, int threads) { attend(*packed, threads); }

extern "C" void attend_packed_bfloat16(const Packed<BFloat16>* packed, int threads) { attend(*packed, threads); }

extern "C" void attend_packed_backward_float32(const Packed<float>* packed, int threads) {
    attend_back(*packed, threads);
}

extern "C" void attend_packed_backward_bfloat16(const Packed<BFloat16>* packed, int threads) {
    attend_back(*packed, threads);
}
