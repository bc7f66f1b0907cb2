// The operators that dogo_fast/ops/cpp_backend.py and the views call: torch.ops.dogo_fast_cpp.*. They check sizes, on which
// memory depends, and trust the rest.
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "exp2.h"
#include "parallel.h"
#include "passes.h"

namespace dogo_fast {

// csrc/augment.cpp
void augment(
    const at::Tensor& pixels, const at::Tensor& places, const at::Tensor& draws, const at::Tensor& out, int64_t blur,
    at::ArrayRef<double> scale, at::ArrayRef<double> shift);

namespace {

using at::Tensor;

// geometry: rows, block and span of view a, the same of view b, threads.
Geometry make_geometry(at::IntArrayRef sizes) {
  TORCH_CHECK(sizes.size() == 7, "geometry must have 7 numbers, got ", sizes.size());
  Geometry geometry;
  geometry.a = {sizes[0], sizes[1], 0, sizes[2]};
  geometry.b = {sizes[3], sizes[4], 0, sizes[5]};
  geometry.b.start = geometry.a.padded();
  geometry.threads = sizes[6];
  for (const View& view : {geometry.a, geometry.b}) {
    TORCH_CHECK(0 < view.block && view.block <= view.padding(), "blocks of ", view.block, " rows overrun the padding");
  }
  return geometry;
}

// temperatures: τ, T of peer 1, T of peer 2. Which losses there are is seen in the statistics' sizes.
template <typename T>
Problem<T> make_problem(
    at::IntArrayRef geometry, at::ArrayRef<double> temperatures, int64_t peers, const Tensor& nt, const Tensor& kl) {
  TORCH_CHECK(temperatures.size() == 3, "temperatures must be 3 numbers, got ", temperatures.size());
  Problem<T> problem;
  problem.geometry = make_geometry(geometry);
  problem.peers = peers;
  problem.nt = nt.numel() > 0;
  problem.kl = kl.numel() > 0;
  problem.temperature = temperatures[0];
  problem.kd_temperatures[0] = temperatures[1];
  problem.kd_temperatures[1] = temperatures[2];
  return problem;
}

template <typename T>
Statistics<T> make_statistics(const Problem<T>& problem, const Tensor& nt, const Tensor& kl) {
  return {
      nt.mutable_data_ptr<T>(), kl.mutable_data_ptr<T>(), problem.geometry.padded(), problem.geometry.a.padded()};
}

template <typename T>
std::vector<Operand<T>> make_operands(at::TensorList rows, at::TensorList panels) {
  std::vector<Operand<T>> operands;
  for (size_t peer = 0; peer < rows.size(); ++peer) {
    operands.emplace_back(rows[peer], panels[peer]);
  }
  return operands;
}

// f.template operator()<T>() with the type of the sums.
template <typename F>
auto with_type(const Tensor& statistics, F&& f) {
  return statistics.scalar_type() == at::kDouble ? f.template operator()<double>() : f.template operator()<float>();
}

// Wrong sizes would write outside of buffers.
void check_rows(const char* name, const Tensor& rows, int64_t count) {
  TORCH_CHECK(
      rows.dim() == 2 && rows.size(0) == count, name, " must be a matrix of ", count, " rows, got the shape ",
      rows.sizes());
}

template <typename T>
void check_saved(
    const Problem<T>& problem, at::TensorList rows, at::TensorList panels, const Tensor& inverse_norm, const Tensor& nt,
    const Tensor& kl) {
  const int64_t padded = problem.geometry.padded();
  TORCH_CHECK(panels.size() == rows.size() && (!problem.kl || rows.size() == 2), "one set of rows a peer, two for a KL");
  for (const Tensor& each : rows) {
    check_rows("normalised rows", each, padded);
  }
  TORCH_CHECK(inverse_norm.numel() == problem.peers * padded, "inverse norms of another problem");
  TORCH_CHECK(!problem.nt || nt.numel() == problem.peers * 3 * padded, "NT-Xent statistics of another problem");
  TORCH_CHECK(!problem.kl || kl.numel() == 6 * problem.geometry.a.padded(), "KL statistics of another problem");
}

// Views, or their gradients: a and b of each peer, no wider than its rows.
void check_views(const char* name, const Geometry& geometry, at::TensorList views, at::TensorList rows) {
  TORCH_CHECK(views.size() % 2 == 0 && views.size() <= 2 * rows.size(), name, " must come in pairs, at most one a peer");
  for (size_t index = 0; index < views.size(); ++index) {
    check_rows(name, views[index], index % 2 == 0 ? geometry.a.rows : geometry.b.rows);
    const int64_t width = rows[index / 2].size(1);
    TORCH_CHECK(views[index].size(1) <= width, name, " must have at most ", width, " columns");
  }
}

int64_t statistics(
    at::TensorList views, at::TensorList rows, const Tensor& inverse_norm, const Tensor& nt, const Tensor& kl,
    at::TensorList panels, at::IntArrayRef geometry, at::ArrayRef<double> temperatures, int64_t step) {
  return with_type(inverse_norm, [&]<typename T>() {
    const auto peers = static_cast<int64_t>(rows.size());
    const auto problem = make_problem<T>(geometry, temperatures, peers, nt, kl);
    const auto operands = make_operands<T>(rows, panels);
    const auto sums = make_statistics(problem, nt, kl);
    check_saved(problem, rows, panels, inverse_norm, nt, kl);
    TORCH_CHECK(views.size() == 2 * rows.size(), "two views a peer");
    check_views("views", problem.geometry, views, rows);
    if (step == 0) {
      for (int64_t peer = 0; peer < peers; ++peer) {
        T* inverse = inverse_norm.mutable_data_ptr<T>() + peer * sums.padded;
        normalize<T>(problem.geometry, views[2 * peer], views[2 * peer + 1], rows[peer], inverse);
        make_panels(problem.geometry, operands[peer]);
      }
      clear_statistics(problem, sums);
    }
    return add_statistics(problem, operands, sums, step);
  });
}

void values(
    const Tensor& inverse_norm, const Tensor& nt, const Tensor& kl, at::TensorList values,
    const std::optional<Tensor>& rows, at::IntArrayRef geometry, at::ArrayRef<double> temperatures, double nt_scale,
    double kl_scale, at::ArrayRef<double> kd_weights) {
  with_type(inverse_norm, [&]<typename T>() {
    const auto problem = make_problem<T>(geometry, temperatures, inverse_norm.size(0), nt, kl);
    T* row_values = rows ? rows->mutable_data_ptr<T>() : nullptr;
    const Values sums = finish_statistics(problem, make_statistics(problem, nt, kl), row_values);
    const double nt_1 = nt_scale * sums.nt_xent[0], nt_2 = nt_scale * sums.nt_xent[1];
    const double kl_1 = kl_scale * sums.kl[0], kl_2 = kl_scale * sums.kl[1];
    const auto write = [&](size_t index, double value) { *values[index].mutable_data_ptr<T>() = static_cast<T>(value); };
    if (!problem.nt || !problem.kl) {
      write(0, problem.nt ? nt_1 : kl_1);
      return 0;
    }
    const double loss_1 = nt_1 + kd_weights[0] * kl_1, loss_2 = nt_2 + kd_weights[1] * kl_2;
    size_t index = 0;
    for (const double value : {loss_1 + loss_2, loss_1, loss_2, nt_1, nt_2, kl_1, kl_2}) {
      write(index++, value);
    }
    return 0;
  });
}

int64_t gradients(
    at::TensorList rows, const Tensor& inverse_norm, const Tensor& nt, const Tensor& kl,
    const std::optional<Tensor>& factor, at::TensorList panels, at::TensorList sums, at::TensorList key_sums,
    const Tensor& pulls, const std::optional<Tensor>& inner, at::TensorList gradients, at::IntArrayRef geometry,
    at::ArrayRef<double> temperatures, at::ArrayRef<double> nt_coefficients, at::ArrayRef<double> kl_coefficients,
    bool teacher, int64_t step) {
  return with_type(inverse_norm, [&]<typename T>() {
    const auto peers = static_cast<int64_t>(rows.size());
    const auto problem = make_problem<T>(geometry, temperatures, peers, nt, kl);
    check_saved(problem, rows, panels, inverse_norm, nt, kl);
    check_views("gradients", problem.geometry, gradients, rows);
    const int64_t values = problem.nt ? problem.geometry.a.rows + problem.geometry.b.rows : problem.geometry.a.rows;
    TORCH_CHECK(!factor || factor->numel() == values, "the gradient must have ", values, " numbers");
    const auto operands = make_operands<T>(rows, panels);
    if (step == 0) {
      for (const auto& operand : operands) {
        make_panels(problem.geometry, operand);
      }
    }
    Backward<T> backward;
    backward.peer_2 = gradients.size() < 4 ? Role::kConstant : teacher ? Role::kTeacher : Role::kStudent;
    std::copy_n(nt_coefficients.begin(), 2, backward.nt_coefficients);
    std::copy_n(kl_coefficients.begin(), 2, backward.kl_coefficients);
    backward.factor = factor ? factor->const_data_ptr<T>() : nullptr;
    backward.inverse_norm = inverse_norm.const_data_ptr<T>();
    backward.pulls = pulls.mutable_data_ptr<T>();
    backward.inner = inner ? inner->mutable_data_ptr<T>() : nullptr;
    backward.sums = sums.vec();
    backward.key_sums = key_sums.vec();
    backward.gradients = gradients.vec();
    return add_gradients(problem, operands, make_statistics(problem, nt, kl), backward, step);
  });
}

// 2^x of every number in place, as the passes compute it: for tests and benchmarks.
void exp2_in_place(const Tensor& x) {
  with_type(x, [&]<typename T>() {
    T* data = x.mutable_data_ptr<T>();
    at::parallel_for(0, x.numel(), 4096, [&](int64_t start, int64_t stop) {
#pragma omp simd
      for (int64_t i = start; i < stop; ++i) {
        data[i] = exp2(data[i]);
      }
    });
    return 0;
  });
}

// Whether 16-bit products are worth their rounding: where the processor has AMX.
// Whether products of bfloat16 are faster than of float: with AMX, and on AMD's processors that have AVX512-BF16 (Zen 4
// and later). Intel's that have it without AMX multiply bfloat16 at half the rate. By what the processor says of itself:
// a measurement could choose otherwise in the next run, and so change the bits.
bool fast_bfloat16() {
  if (at::native::cpublas::could_pack(at::kBFloat16)) {
    return true;
  }
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool amd = __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_AMD_ebx && c == signature_AMD_ecx &&
                   d == signature_AMD_edx;
  constexpr unsigned kAvx512Bfloat16 = 1U << 5;  // of leaf 7.1
  if (!amd || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kAvx512Bfloat16) == 0) {
    return false;
  }
  alignas(64) at::BFloat16 one[16 * 16] = {};
  alignas(64) float sums[16 * 16];
  try {  // oneDNN may be told to use less than the processor has
    at::native::cpublas::brgemm(16, 16, 16, 16, 16, 16, false, one, one, sums);
    return true;
  } catch (const c10::Error&) {
  }
#endif
  return false;
}

}  // namespace

TORCH_LIBRARY(dogo_fast_cpp, m) {
  m.def(
      "statistics(Tensor[] views, Tensor(a!)[] rows, Tensor(b!) inverse_norm, Tensor(c!) nt, Tensor(d!) kl, "
      "Tensor(e!)[] panels, int[] geometry, float[] temperatures, int step) -> int");
  m.def(
      "values(Tensor inverse_norm, Tensor(a!) nt, Tensor(b!) kl, Tensor(c!)[] values, Tensor(d!)? rows, "
      "int[] geometry, float[] temperatures, float nt_scale, float kl_scale, float[] kd_weights) -> ()");
  m.def(
      "gradients(Tensor[] rows, Tensor inverse_norm, Tensor nt, Tensor kl, Tensor? factor, Tensor(a!)[] panels, "
      "Tensor(b!)[] sums, Tensor(c!)[] key_sums, Tensor(d!) pulls, Tensor(e!)? inner, Tensor(f!)[] gradients, "
      "int[] geometry, float[] temperatures, float[] nt_coefficients, float[] kl_coefficients, bool teacher, "
      "int step) -> int");
  m.def(
      "augment(Tensor pixels, Tensor places, Tensor draws, Tensor(a!) out, int blur, float[] scale, float[] shift) -> ()");
  m.def("exp2_(Tensor(a!) x) -> ()");
  m.def("fast_bfloat16() -> bool", fast_bfloat16);
}

TORCH_LIBRARY_IMPL(dogo_fast_cpp, CPU, m) {
  m.impl("statistics", statistics);
  m.impl("values", values);
  m.impl("gradients", gradients);
  m.impl("augment", augment);
  m.impl("exp2_", exp2_in_place);
}

}  // namespace dogo_fast
