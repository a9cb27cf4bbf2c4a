// Linear layers for a few rows. "multiply" is for all threads of a team to call.

#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "product.h"

namespace {

constexpr int64_t COLUMNS = 64, HALF = COLUMNS / 2;

// In blocks, (O / 64, I, 64) with zeros behind the last of O columns, of bfloat16 (O / 64, I / 2, 64, 2); or plain, (O, I),
// to be laid out so on the way each time.
template <class T>
struct Weight {
    const T* numbers;
    int64_t I, O;
    bool plain;
};

// x -> x weight + (x A) B + bias; no A and B, or bias, where there is none.
template <class T>
struct Layer {
    Weight<T> weight, A, B;
    const T* bias;
};

template <class T>
T* room(std::vector<T>& kept, int64_t size) {
    if (int64_t(kept.size()) < size) kept.resize(size);
    return kept.data();
}

// Columns of a plain weight from the first, a half block or two, as a block that lasts until the next call.
template <class T>
const T* laid_out(const Weight<T>& weight, int64_t first, int64_t width) {
    static thread_local std::vector<int32_t> kept;
    const int64_t words = weight.I * sizeof(T) / sizeof(int32_t);  // one of float, two of bfloat16
    int32_t* block = room(kept, words * COLUMNS);
    const int32_t* from = (const int32_t*)(weight.numbers + first * weight.I);
    for (int64_t column = 0; column < width; column += LANES)
        transpose(from + column * words, std::min(LANES, weight.O - first - column), words, block + column, COLUMNS);
    return (const T*)block;
}

// Columns from the first, a half block or two: c (S, next) += x (S, I) weight. The next block is fetched if it is wanted:
// a thread waits for memory otherwise while it goes through a block for the first rows, and not for the others.
template <class T>
void add(const T* x, const Weight<T>& weight, float* c, int64_t next, int64_t S, int64_t first, int64_t width,
         bool more = false) {
    constexpr int64_t beside = std::is_same<T, float>::value ? 1 : 2;
    const T* block = weight.plain ? laid_out(weight, first, width)
                                  : weight.numbers + first / COLUMNS * weight.I * COLUMNS + first % COLUMNS * beside;
    const T* following = (weight.plain ? weight.numbers + first * weight.I : block) + weight.I * COLUMNS;
    product(x, weight.I, block, COLUMNS, c, next, S, weight.I, width, more ? (const char*)following : nullptr);
}

// Columns from half block to half block (exclusive) of rows: x (S, I), low (S, rank) -> out (S, O).
template <class T>
void columns(const T* x, const T* low, const Layer<T>& layer, T* out, int64_t S, int64_t half, int64_t end) {
    const int64_t O = layer.weight.O;
    std::vector<float> part(S * COLUMNS);
    for (int64_t taken; half < end; half += taken) {
        taken = half % 2 == 0 && half + 1 < end ? 2 : 1;
        const int64_t first = half * HALF, width = taken * HALF, count = std::min(width, O - first);
        float start[COLUMNS] = {};
        for (int64_t i = 0; i < (layer.bias ? count : 0); i++) start[i] = widen(layer.bias[first + i]);
        for (int64_t row = 0; row < S; row++) memcpy(part.data() + row * width, start, width * sizeof(float));
        add(x, layer.weight, part.data(), width, S, first, width, half + 2 < end);
        if (low) add(low, layer.B, part.data(), width, S, first, width);
        for (int64_t row = 0; row < S; row++) {
            T* to = out + row * O + first;
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) store(to + i, load(part.data() + row * width + i));
            for (; i < count; i++) narrow(part[row * width + i], to + i);
        }
    }
}

// x (S, I) -> (S, O). Each thread takes as many half blocks as the others, or one more; A, which has few, row by row.
template <class T>
void multiply(const T* x, const Layer<T>& layer, T* low, T* out, int64_t S) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t halves = (layer.weight.O + HALF - 1) / HALF;
    if (layer.A.numbers) {
        const int64_t row = S * thread / threads, rows = S * (thread + 1) / threads - row, rank = layer.A.O;
        columns<T>(x + row * layer.A.I, nullptr, {layer.A}, low + row * rank, rows, 0, (rank + HALF - 1) / HALF);
#pragma omp barrier
    }
    columns(x, layer.A.numbers ? low : nullptr, layer, out, S, halves * thread / threads, halves * (thread + 1) / threads);
#pragma omp barrier
}

}  // namespace
