// Transposing, by squares that stay in the first cache.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dogo_fast {

// f(i, j) for a matrix [rows, columns], square by square, i fastest.
template <typename F>
inline void for_each_transposed(int64_t rows, int64_t columns, F&& f) {
  constexpr int64_t kSide = 16;
  for (int64_t i_start = 0; i_start < rows; i_start += kSide) {
    const int64_t i_stop = std::min(i_start + kSide, rows);
    for (int64_t j_start = 0; j_start < columns; j_start += kSide) {
      const int64_t j_stop = std::min(j_start + kSide, columns);
      for (int64_t j = j_start; j < j_stop; ++j) {
        for (int64_t i = i_start; i < i_stop; ++i) {
          f(i, j);
        }
      }
    }
  }
}

// out [columns, rows] = in [rows, columns] transposed.
template <typename E>
void transpose(const E* in, int64_t rows, int64_t columns, E* out) {
  for_each_transposed(rows, columns, [&](int64_t i, int64_t j) { out[j * rows + i] = in[i * columns + j]; });
}

// out [rows, columns] += in [columns, rows] transposed.
template <typename E>
void add_transposed(const E* in, int64_t rows, int64_t columns, E* out) {
  for_each_transposed(columns, rows, [&](int64_t j, int64_t i) { out[i * columns + j] += in[j * rows + i]; });
}

}  // namespace dogo_fast
