// A decode step's attention on CPUs: each row's query on its group's prompt and on the row's own tokens, one softmax.
//
// decode_attention.py has the shapes. All sums are in float32, whatever the tensors hold. Loads are of whole vectors and
// may pass the end of a row: what they find there is masked or left out, and tensors have room.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "product.h"

namespace {

constexpr int64_t KEYS = 64;  // of a prompt at a time: they stay in the first cache for all queries

// In place; n whole vectors, minus infinity where there is nothing.
void softmax(float* x, int64_t n) {
    Floats most = load(x);
    for (int64_t i = LANES; i < n; i += LANES) most = load(x + i) > most ? load(x + i) : most;
    float top = most[0];
    for (int i = 1; i < LANES; i++) top = std::max(top, most[i]);
    Floats sum = {};
    for (int64_t i = 0; i < n; i += LANES) {
        const Floats share = exponential(load(x + i) - top);
        sum += share;
        store(x + i, share);
    }
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    const float each = 1 / total;
    for (int64_t i = 0; i < n; i += LANES) store(x + i, load(x + i) * each);
}

template <class T>
struct Step {
    const T *query, *key, *value, *prompt_keys, *prompt_values;
    T *own_keys, *own_values, *out;
    const int64_t *parts, *members, *ages;
    int64_t n_parts, H, heads, d, d_v, P_room, T_room, next_query, next_key, next_value;
    float scale;

    // One key-value head of rows that share a prompt: members first to last (exclusive) of a part.
    void attend(const int64_t* part, int64_t head, std::vector<float>& q, std::vector<float>& shares,
                std::vector<float>& mixed) const {
        const int64_t first = part[0], last = part[1], slot = part[2], P = part[3];
        const int64_t per = H / heads, queries = (last - first) * per;
        int64_t longest = 0;
        for (int64_t i = first; i < last; i++) longest = std::max(longest, ages[members[i]] + 1);
        const int64_t width = whole(P) + whole(longest), wide_v = whole(d_v);
        q.resize(queries * d);
        shares.assign(queries * width, 0.0f);
        mixed.assign(queries * wide_v, 0.0f);

        for (int64_t i = first; i < last; i++) {
            const int64_t row = members[i], age = ages[row];
            T* keys = own_keys + (row * heads + head) * d * T_room;
            T* values = own_values + (row * heads + head) * T_room * d_v;
            for (int64_t c = 0; c < d; c++) keys[c * T_room + age] = key[row * next_key + head * d + c];
            for (int64_t c = 0; c < d_v; c++) values[age * d_v + c] = value[row * next_value + head * d_v + c];
            const T* from = query + row * next_query + head * per * d;
            for (int64_t c = 0; c < per * d; c++) q[(i - first) * per * d + c] = widen(from[c]) * scale;
        }
        const int64_t place = slot * heads + head;
        const T* keys = prompt_keys + place * d * P_room;
        for (int64_t k = 0; k < P; k += KEYS)
            product(q.data(), d, keys + k, P_room, shares.data() + k, width, queries, d, std::min(KEYS, P - k));
        for (int64_t i = first; i < last; i++) {
            const int64_t row = members[i], t = ages[row] + 1;
            float* scores = shares.data() + (i - first) * per * width;
            product(q.data() + (i - first) * per * d, d, own_keys + (row * heads + head) * d * T_room, T_room,
                    scores + whole(P), width, per, d, t);
            for (int64_t j = 0; j < per; j++, scores += width) {
                std::fill(scores + P, scores + whole(P), -INFINITY);
                std::fill(scores + whole(P) + t, scores + width, -INFINITY);
                softmax(scores, width);
            }
        }
        const T* values = prompt_values + place * P_room * d_v;
        for (int64_t k = 0; k < P; k += KEYS)
            product(shares.data() + k, width, values + k * d_v, d_v, mixed.data(), wide_v, queries, std::min(KEYS, P - k), d_v);
        for (int64_t i = first; i < last; i++) {
            const int64_t row = members[i], t = ages[row] + 1, at = (i - first) * per;
            product(shares.data() + at * width + whole(P), width, own_values + (row * heads + head) * T_room * d_v, d_v,
                    mixed.data() + at * wide_v, wide_v, per, t, d_v);
            for (int64_t j = 0; j < per; j++)
                for (int64_t c = 0; c < d_v; c++)
                    narrow(mixed[(at + j) * wide_v + c], out + (row * H + head * per + j) * d_v + c);
        }
    }

    void run() const {  // by all threads of a team
        std::vector<float> q, shares, mixed;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t part = 0; part < n_parts; part++)
            for (int64_t head = 0; head < heads; head++) attend(parts + 4 * part, head, q, shares, mixed);
    }
};

}  // namespace
