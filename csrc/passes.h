// The passes over the tiles. csrc/dogo_forward.cpp and csrc/dogo_backward.cpp have the equations.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "problem.h"

namespace dogo_fast {

// Views a and b of a peer, of any strides and float dtype, to normalised rows (zero in the padding) and their
// inverse norms.
template <typename T>
void normalize(
    const Geometry& geometry, const at::Tensor& a, const at::Tensor& b, const at::Tensor& rows, T* inverse_norm);

template <typename T>
void make_panels(const Geometry& geometry, const Operand<T>& peer);

// Saved statistics of rows; nt [peers, 3, padded], kl [2, 3, padded of view a].
template <typename T>
struct Statistics {
  T* nt;
  T* kl;
  int64_t padded;
  int64_t padded_a;

  T* nt_row(int64_t peer, int64_t kind) const { return nt + (3 * peer + kind) * padded; }
  T* kl_row(int64_t peer, int64_t kind) const { return kl + (3 * peer + kind) * padded_a; }
};

template <typename T>
void clear_statistics(const Problem<T>& problem, const Statistics<T>& statistics);

template <typename T>
int64_t add_statistics(
    const Problem<T>& problem, const std::vector<Operand<T>>& peers, const Statistics<T>& statistics, int64_t step);

// Sums of the rows' values, in double: NT-Xent of each peer, KL(P_2 || P_1), KL(P_1 || P_2); the values of the rows of
// the one loss there is to `rows` unless null. Statistics become what the backward pass reads.
struct Values {
  double nt_xent[2] = {0, 0};
  double kl[2] = {0, 0};
};
template <typename T>
Values finish_statistics(const Problem<T>& problem, const Statistics<T>& statistics, T* rows);

enum class Role { kStudent, kTeacher, kConstant };

// What the backward pass is given, and where it writes.
template <typename T>
struct Backward {
  Role peer_2;
  double nt_coefficients[2];  // upstream gradient, times the reduction's scale, over τ, of each peer
  double kl_coefficients[2];  // over T of each peer
  const T* factor;            // upstream gradient of every row, [2N] or [R], or null: 1
  const T* inverse_norm;      // [peers, padded]
  T* pulls;                   // scratch [peers, padded]: u_i of NT-Xent
  std::vector<at::Tensor> sums;      // [padded, width] of each owned peer: dẑ summed by rows
  std::vector<at::Tensor> key_sums;  // the same in panels: dẑ summed by keys
  T* inner;                          // [owned peers, 2, padded] or null: of the temperatures
  std::vector<at::Tensor> gradients;  // a_1, b_1 and, unless constant, a_2, b_2

  int64_t owned() const { return static_cast<int64_t>(sums.size()); }
};

template <typename T>
int64_t add_gradients(
    const Problem<T>& problem, const std::vector<Operand<T>>& peers, const Statistics<T>& statistics,
    const Backward<T>& backward, int64_t step);

}  // namespace dogo_fast
