#include "products.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>

#include <bit>
#include <type_traits>

#include "transpose.h"

namespace dogo_fast {
namespace {

// Layouts of panels. The first is all that similarities need.
constexpr int64_t kTransposed = 0;       // ẑᵀ [width, block]; for bfloat16 in pairs of columns of ẑ: B of Ẑ_r Ẑ_cᵀ
constexpr int64_t kPlainTransposed = 1;  // bfloat16 only: ẑᵀ [width, block], A of Ẑ_rᵀ W
constexpr int64_t kPairs = 2;            // bfloat16 only: ẑ in pairs of rows, B of W Ẑ_c

bool has_float_brgemm() {
  static const bool has = [] {
    alignas(64) float one[16 * 16] = {};
    alignas(64) float sums[16 * 16];
    try {
      at::native::cpublas::brgemm(16, 16, 16, 16, 16, 16, false, one, one, sums);
    } catch (const c10::Error&) {
      return false;
    }
    return true;
  }();
  return has;
}

template <typename T>
at::Tensor matrix(const T* data, int64_t rows, int64_t columns) {
  return at::from_blob(const_cast<T*>(data), {rows, columns}, at::CppTypeToScalarType<T>::value);
}

// c (+)= a b, all row-major: a [m, k], b [k, n], c [m, n].
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c, bool accumulate) {
  if constexpr (std::is_same_v<T, float>) {
    if (has_float_brgemm()) {
      at::native::cpublas::brgemm(m, n, k, k, n, n, accumulate, a, b, c);
      return;
    }
  }
  at::Tensor out = matrix(c, m, n);
  if (accumulate) {
    out.addmm_(matrix(a, m, k), matrix(b, k, n));
  } else {
    at::mm_out(out, matrix(a, m, k), matrix(b, k, n));
  }
}

// b lies in pairs: [k / 2, n, 2].
void multiply_pairs(
    int64_t m, int64_t n, int64_t k, const at::BFloat16* a, const at::BFloat16* b, float* c, bool accumulate) {
  at::native::cpublas::brgemm(m, n, k, k, n, n, accumulate, a, b, c);
}

// out [rows / 2, columns, 2] = in [rows, columns]; rows is even.
void pair_rows(const at::BFloat16* in, int64_t rows, int64_t columns, at::BFloat16* out) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < columns; ++j) {
      out[(i * columns) + 2 * j] = in[i * columns + j];
      out[(i * columns) + 2 * j + 1] = in[(i + 1) * columns + j];
    }
  }
}

// The bits of a bfloat16, rounded to nearest; no NaN becomes a number.
inline uint32_t narrow(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return value != value ? 0x7FC0 : rounded;
}

}  // namespace

template <typename T>
Operand<T>::Operand(const at::Tensor& rows, const at::Tensor& panels)
    : rows_(rows), panels_(panels), width_(rows.size(1)), narrow_(rows.scalar_type() == at::kBFloat16) {}

template <typename T>
void Operand<T>::make_panels(Block block) const {
  if (!narrow_) {
    transpose(row(block.start), block.rows, width_, panel<T>(kTransposed, block));
    return;
  }
  // A pair of neighbours in a row is one number of 32 bits: transposing those pairs the columns.
  const at::BFloat16* rows = narrow_row(block.start);
  transpose(
      reinterpret_cast<const uint32_t*>(rows), block.rows, width_ / 2,
      reinterpret_cast<uint32_t*>(panel<at::BFloat16>(kTransposed, block)));
  if (panels_.size(0) > 1) {
    transpose(rows, block.rows, width_, panel<at::BFloat16>(kPlainTransposed, block));
    pair_rows(rows, block.rows, width_, panel<at::BFloat16>(kPairs, block));
  }
}

template <typename T>
void Operand<T>::similarities(Block rows, Block keys, T* out) const {
  if constexpr (std::is_same_v<T, float>) {
    if (narrow_) {
      const auto* pairs = panel<at::BFloat16>(kTransposed, keys);
      multiply_pairs(rows.rows, keys.rows, width_, narrow_row(rows.start), pairs, out, false);
      return;
    }
  }
  multiply<T>(rows.rows, keys.rows, width_, row(rows.start), panel<T>(kTransposed, keys), out, false);
}

template <typename T>
typename Operand<T>::Weights Operand<T>::prepare(
    const T* weights, Block rows, Block keys, Buffer<at::BFloat16>& scratch) const {
  if constexpr (std::is_same_v<T, float>) {
    if (narrow_) {
      const int64_t size = rows.rows * keys.rows;
      auto* plain = reinterpret_cast<uint16_t*>(scratch.data());
      auto* pairs = reinterpret_cast<uint32_t*>(scratch.data() + size);
      for (int64_t i = 0; i < rows.rows; i += 2) {
        const float* upper = weights + i * keys.rows;
        const float* lower = upper + keys.rows;
        uint16_t* out = plain + i * keys.rows;
        uint32_t* out_pairs = pairs + i / 2 * keys.rows;
#pragma omp simd
        for (int64_t j = 0; j < keys.rows; ++j) {
          const uint32_t first = narrow(upper[j]), second = narrow(lower[j]);
          out[j] = static_cast<uint16_t>(first);
          out[j + keys.rows] = static_cast<uint16_t>(second);
          out_pairs[j] = first | (second << 16);
        }
      }
      return {weights, scratch.data(), scratch.data() + size};
    }
  }
  return {weights, nullptr, nullptr};
}

template <typename T>
void Operand<T>::add_to_rows(const Weights& weights, Block rows, Block keys, T* sums) const {
  if constexpr (std::is_same_v<T, float>) {
    if (narrow_) {
      multiply_pairs(rows.rows, width_, keys.rows, weights.narrow, panel<at::BFloat16>(kPairs, keys), sums, true);
      return;
    }
  }
  multiply<T>(rows.rows, width_, keys.rows, weights.plain, row(keys.start), sums, true);
}

template <typename T>
void Operand<T>::add_to_keys(const Weights& weights, Block rows, Block keys, T* sums) const {
  if constexpr (std::is_same_v<T, float>) {
    if (narrow_) {
      const auto* transposed = panel<at::BFloat16>(kPlainTransposed, rows);
      multiply_pairs(width_, keys.rows, rows.rows, transposed, weights.pairs, sums, true);
      return;
    }
  }
  multiply<T>(width_, keys.rows, rows.rows, panel<T>(kTransposed, rows), weights.plain, sums, true);
}

template <typename T>
void Operand<T>::release() const {
  if (narrow_) {
    at::native::cpublas::brgemm_release();
  }
}

template <typename T>
void Operand<T>::load_row(int64_t i, T* out) const {
  if (narrow_) {
    std::copy_n(narrow_row(i), width_, out);
  } else {
    std::copy_n(row(i), width_, out);
  }
}

template class Operand<float>;
template class Operand<double>;

}  // namespace dogo_fast
