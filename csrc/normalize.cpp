// Row normalisation: ẑ = z / max(‖z‖, 1e-12), as F.normalize; the gradient of a shorter row is 1e12 · dẑ.
//
// Rows are first scaled by the power of two below max|z| (exact), so that rows as large as 1e38 do not overflow. A NaN
// or Inf makes its whole row NaN: Inf / Inf. Saved: inverse_norm = 1 / max(‖z‖, 1e-12), exactly 1e12 for a clamped row.
#include <ATen/Dispatch.h>

#include <cmath>
#include <limits>

#include "parallel.h"
#include "passes.h"

namespace dogo_fast {
namespace {

// Normalise a row in place; returns the inverse norm.
template <typename T>
T normalize_row(T* row, int64_t width) {
  T largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < width; ++j) {
    const T size = std::abs(row[j]);
    largest = size > largest ? size : largest;
  }
  // 1 for a row so small that it is clamped anyway
  T unit = 1;
  if (largest >= std::numeric_limits<T>::min()) {
    unit = std::scalbn(T{1}, std::ilogb(largest));  // Inf of Inf
  }
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < width; ++j) {
    row[j] /= unit;
    squares += row[j] * row[j];
  }
  T length = std::sqrt(squares);
  const T shortest = static_cast<T>(1.0 / kClampedInverseNorm);
  const bool clamped = unit * length < shortest;  // not of NaN, which must stay
  if (clamped) {
    length = shortest / unit;
  }
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    row[j] /= length;
  }
  return clamped ? static_cast<T>(kClampedInverseNorm) : 1 / length / unit;
}

template <typename T, typename In>
void load(const at::Tensor& view, int64_t i, T* row) {
  const In* data = view.const_data_ptr<In>() + i * view.stride(0);
  const int64_t stride = view.stride(1), columns = view.size(1);
  for (int64_t j = 0; j < columns; ++j) {
    row[j] = static_cast<T>(data[j * stride]);
  }
}

template <typename T>
void load(const at::Tensor& view, int64_t i, T* row) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, view.scalar_type(), "dogo_fast normalize", [&] {
    load<T, scalar_t>(view, i, row);
  });
}

template <typename T, typename Out>
void normalize_block(const at::Tensor& in, const View& view, int64_t block, const at::Tensor& rows, T* inverse_norm) {
  const int64_t width = rows.size(1);
  Buffer<T> row(width);
  const int64_t stop = block + 1 == view.blocks() ? view.padded() : view.first(block + 1);
  for (int64_t i = view.first(block); i < stop; ++i) {
    Out* out = rows.mutable_data_ptr<Out>() + (view.start + i) * width;
    T inverse = 0;
    std::fill_n(row.data(), width, T{0});
    if (i < view.rows) {
      load(in, i, row.data());
      inverse = normalize_row(row.data(), width);
    }
    inverse_norm[view.start + i] = inverse;
    for (int64_t j = 0; j < width; ++j) {
      out[j] = static_cast<Out>(row[j]);
    }
  }
}

}  // namespace

template <typename T>
void normalize(
    const Geometry& geometry, const at::Tensor& a, const at::Tensor& b, const at::Tensor& rows, T* inverse_norm) {
  for_each_block(geometry, [&](const View& view, int64_t block) {
    const at::Tensor& in = &view == &geometry.a ? a : b;
    if (rows.scalar_type() == at::kBFloat16) {
      normalize_block<T, at::BFloat16>(in, view, block, rows, inverse_norm);
    } else {
      normalize_block<T, T>(in, view, block, rows, inverse_norm);
    }
  });
}

template <typename T>
void make_panels(const Geometry& geometry, const Operand<T>& peer) {
  for_each_block(geometry, [&](const View& view, int64_t block) {
    peer.make_panels({view.start + view.first(block), view.block});
  });
}

template void normalize<float>(const Geometry&, const at::Tensor&, const at::Tensor&, const at::Tensor&, float*);
template void normalize<double>(const Geometry&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double*);
template void make_panels<float>(const Geometry&, const Operand<float>&);
template void make_panels<double>(const Geometry&, const Operand<double>&);

}  // namespace dogo_fast
