// x (S, I) times a packed weight, (O / 64, I, 64) with zeros behind the last of O columns, plus a bias. Called from
// linear.py.

#include <algorithm>
#include <vector>

#include "product.h"

namespace {

constexpr int64_t COLUMNS = 64;

}  // namespace

extern "C" void multiply_float32(const float* x, const float* weight, const float* bias, float* out, int64_t S,
                                 int64_t I, int64_t O, int threads) {
    const int64_t blocks = (O + COLUMNS - 1) / COLUMNS;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> part;
#pragma omp for
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * COLUMNS, count = std::min(COLUMNS, O - first);
            const bool whole = count == COLUMNS;
            if (!whole) part.assign(S * COLUMNS, 0);
            float* to = whole ? out + first : part.data();
            const int64_t next = whole ? O : COLUMNS;
            for (int64_t row = 0; row < S; row++)
                for (int64_t i = 0; i < count; i++) to[row * next + i] = bias ? bias[first + i] : 0;
            product(x, I, weight + block * I * COLUMNS, COLUMNS, to, next, S, I, COLUMNS);
            for (int64_t row = 0; row < (whole ? 0 : S); row++)
                std::copy_n(to + row * COLUMNS, count, out + row * O + first);
        }
    }
}
