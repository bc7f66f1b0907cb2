// Backward of NT-Xent, similarity KL and the whole DoGo loss. Notation and saved statistics: dogo_forward.cpp.
//
// Gradient table, of cosines; g is the upstream gradient times the reduction's scale (1/2N, 1/N, 1/N², 1):
//
//     NT-Xent        w_ij = g/τ · exp((s_ij − 1)/τ) (1/l_i + 1/l_j)      one exponential an element: S is symmetric
//                    (running maximum: exp((s_ij − m_i)/τ)/l_i + exp((s_ij − m_j)/τ)/l_j)
//     positives      w_i,pos(i) = −g/τ · (q_i + q_pos(i))                outside the tiles, N × D work
//     KL, student    w_ij = g/T_s · (P_s − P_t)_ij
//     KL, teacher    w_ij = g/T_t · P_t,ij (Δ'_ij − Σ_k P_t,ik Δ'_ik)    Δ' = x_t − x_s; only when asked
//
// of rows, and of temperatures:
//
//     dẑ_i = Σ_j w_ij ẑ_j            dz_i = (dẑ_i − ⟨dẑ_i, ẑ_i⟩ ẑ_i)/‖z_i‖
//     A loss depends on cosine/temperature only: dL/dτ = −1/(2τ) Σ_ij w_ij s_ij over all rows for NT-Xent, and
//     dL/dT = −1/T Σ_ij w_ij (c_ij − any number of row i) over the queries for the KL, whose weights sum to 0 in a row.
//
// Cosines are recomputed, tile by tile, with the products of the forward pass, so that they have the same bits: P sums to
// 1. A tile's weights, NT-Xent's and the KL's together, stand in place of its cosines and serve twice: W Ẑ_c goes to the
// rows, Ẑ_rᵀ W to the keys. That is six products of N² D a peer and pass where rows that own all their keys take eight.
//
// Memory: of each peer dẑ summed by rows and by keys, of type T, and the panels, one copy of its rows (bfloat16: three);
// of each thread one tile a peer. Nothing of size N × N; every sum has one order.
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>

#include "exp2.h"
#include "parallel.h"
#include "passes.h"
#include "transpose.h"

namespace dogo_fast {
namespace {

constexpr int kInverse = 0, kMax = 1, kNegatives = 2;  // kinds of nt: 1/l, m, q
constexpr int kInverseE = 0, kMean = 1, kKlMax = 2;    // kinds of kl: 1/E, X/E, m

// An exponent below a maximum. A cosine that the BLAS sums in another order than in the forward pass may exceed it by a
// rounding, which a tiny temperature makes huge. NaN stays.
template <typename T>
inline T at_most_zero(T x) {
  return x > 0 ? T{0} : x;
}

// NT-Xent's weights of a row, from its cosines; u = g/(τ l).
template <typename T>
void weigh_nt_static(const T* s, int64_t n, T rate, T u, const T* key_u, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] = exp2((s[j] - 1) * rate) * (u + key_u[j]);
  }
}

template <typename T>
void weigh_nt_shifted(const T* s, int64_t n, T rate, T u, T m, const T* key_u, const T* key_m, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] = exp2(at_most_zero((s[j] - m) * rate)) * u + exp2(at_most_zero((s[j] - key_m[j]) * rate)) * key_u[j];
  }
}

// What the KL's weights of one query are made of: q_p = g/(T E_p), once for each peer's own T; the means of Δ.
template <typename T>
struct Query {
  T own_1, other_1;  // of peer 1: P_1 and P_2, each times g/T_1
  T own_2, other_2;  // of peer 2
  T mean;            // Σ_j P_2 Δ' of peer 2 as a teacher
  T m_1, m_2;
  T anchor_1, anchor_2;  // near the row's cosines; see query()
};

// The KL's weights of a row, of peer 1 and, unless it is constant, of peer 2.
template <Role kPeer2, typename T>
void weigh_kl_row(const T* c_1, const T* c_2, int64_t n, T rate_1, T rate_2, const Query<T>& q, T* out_1, T* out_2) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T logit_1 = at_most_zero((c_1[j] - q.m_1) * rate_1);
    const T logit_2 = at_most_zero((c_2[j] - q.m_2) * rate_2);
    const T first = exp2(logit_1), second = exp2(logit_2);
    out_1[j] = first * q.own_1 - second * q.other_1;
    if constexpr (kPeer2 == Role::kStudent) {
      out_2[j] = second * q.own_2 - first * q.other_2;
    } else if constexpr (kPeer2 == Role::kTeacher) {
      out_2[j] = second * q.own_2 * (logit_2 - logit_1 - q.mean);
    }
  }
}

template <typename T>
void add_row(const T* row, int64_t n, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] += row[j];
  }
}

// Σ_j w_j (s_j − m)
template <typename T>
T inner_product(const T* w, const T* s, int64_t n, T m) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += w[j] * (s[j] - m);
  }
  return sum;
}

// The backward pass over tiles.
template <typename T>
class Gradients {
 public:
  Gradients(
      const Problem<T>& problem, const std::vector<Operand<T>>& peers, const Statistics<T>& statistics,
      const Backward<T>& backward)
      : problem_(problem), peers_(peers), statistics_(statistics), backward_(backward) {}

  struct Scratch {
    Buffer<T> tiles;                // one a peer: cosines, then weights
    Buffer<T> rows;                 // the KL's weights of a row, of each peer, and NT-Xent's where they are kept apart
    Buffer<at::BFloat16> narrow;    // weights for 16-bit products
  };
  Scratch make_scratch() const {
    const int64_t size = tile_size();
    return {Buffer<T>(problem_.peers * size), Buffer<T>(3 * problem_.geometry.b.block), Buffer<at::BFloat16>(2 * size)};
  }

  void clear() const;
  void add(const Tile& tile, Scratch& scratch) const;
  void finish() const;

 private:
  int64_t tile_size() const { return problem_.geometry.a.block * problem_.geometry.b.block; }
  T* inner(int64_t peer, int64_t loss) const {
    return backward_.inner + (2 * peer + loss) * statistics_.padded;
  }
  T* pulls(int64_t peer) const { return backward_.pulls + peer * statistics_.padded; }
  // The upstream gradient of a row of a view.
  T factor(const View& view, int64_t i) const {
    const int64_t first = &view == &problem_.geometry.a ? 0 : problem_.geometry.a.rows;
    return backward_.factor == nullptr ? T{1} : backward_.factor[first + i];
  }

  Query<T> query(int64_t row) const;
  void weigh_kl(const T* c_1, const T* c_2, int64_t n, const Query<T>& query, T* out_1, T* out_2) const;
  void weigh_nt(int64_t peer, const Tile& tile, int64_t i, const T* s, T* out) const;
  void weigh_row(int64_t peer, const Tile& tile, int64_t i, const T* kl, T* row, T* apart) const;
  void weigh(const Tile& tile, Scratch& scratch) const;

  T pull(int64_t peer, int64_t i) const;
  void finish_block(const View& view, int64_t block, int64_t peer) const;
  template <typename Out>
  void finish_rows(const View& view, int64_t block, int64_t peer) const;

  const Problem<T>& problem_;
  const std::vector<Operand<T>>& peers_;
  const Statistics<T>& statistics_;
  const Backward<T>& backward_;
};

template <typename T>
void Gradients<T>::clear() const {
  for (int64_t peer = 0; peer < backward_.owned(); ++peer) {
    backward_.sums[peer].zero_();
    backward_.key_sums[peer].zero_();
    if (backward_.inner != nullptr) {
      std::fill_n(inner(peer, 0), 2 * statistics_.padded, T{0});
    }
    if (!problem_.nt) {
      continue;
    }
    const T coefficient = static_cast<T>(backward_.nt_coefficients[peer]);
    for (const View* view : {&problem_.geometry.a, &problem_.geometry.b}) {
      for (int64_t i = 0; i < view->rows; ++i) {
        const int64_t row = view->start + i;
        pulls(peer)[row] = coefficient * factor(*view, i) * statistics_.nt_row(peer, kInverse)[row];
      }
    }
  }
}

template <typename T>
Query<T> Gradients<T>::query(int64_t row) const {
  const T scale = factor(problem_.geometry.a, row);
  const T first = statistics_.kl_row(0, kInverseE)[row], second = statistics_.kl_row(1, kInverseE)[row];
  const T scale_1 = scale * static_cast<T>(backward_.kl_coefficients[0]);
  const T scale_2 = scale * static_cast<T>(backward_.kl_coefficients[1]);
  Query<T> q{scale_1 * first, scale_1 * second, scale_2 * second, scale_2 * first, 0, 0, 0, 0, 0};
  q.m_1 = statistics_.kl_row(0, kKlMax)[row];
  q.m_2 = statistics_.kl_row(1, kKlMax)[row];
  if (backward_.inner != nullptr) {
    // The weights of a row sum to 0 but for their rounding, which should multiply small numbers: cosines less
    // T log(mean of exp(c/T)), which lies among those that matter.
    const auto keys = static_cast<T>(problem_.geometry.b.rows);
    q.anchor_1 = q.m_1 - static_cast<T>(problem_.kd_temperatures[0]) * std::log(first * keys);
    q.anchor_2 = q.m_2 - static_cast<T>(problem_.kd_temperatures[1]) * std::log(second * keys);
  }
  if (backward_.peer_2 == Role::kTeacher) {
    // Δ' and its mean are both in base 2, so that they cancel without a rounding between; q carries the factor
    q.own_2 *= static_cast<T>(kLn2);
    q.mean = -statistics_.kl_row(1, kMean)[row];  // X was summed with Δ = x_1 − x_2; Δ' = x_2 − x_1
  }
  return q;
}

template <typename T>
void Gradients<T>::weigh_kl(const T* c_1, const T* c_2, int64_t n, const Query<T>& q, T* out_1, T* out_2) const {
  const auto weigh = [&]<Role kPeer2>() {
    weigh_kl_row<kPeer2>(c_1, c_2, n, problem_.kd_rate(0), problem_.kd_rate(1), q, out_1, out_2);
  };
  switch (backward_.peer_2) {
    case Role::kStudent:
      return weigh.template operator()<Role::kStudent>();
    case Role::kTeacher:
      return weigh.template operator()<Role::kTeacher>();
    case Role::kConstant:
      return weigh.template operator()<Role::kConstant>();
  }
}

template <typename T>
void Gradients<T>::weigh_nt(int64_t peer, const Tile& tile, int64_t i, const T* s, T* out) const {
  const int64_t row = tile.rows.start + i;
  const T u = pulls(peer)[row];
  const T* key_u = pulls(peer) + tile.keys.start;
  if (problem_.nt_static()) {
    weigh_nt_static(s, tile.key_count, problem_.rate(), u, key_u, out);
  } else {
    const T* max = statistics_.nt_row(peer, kMax);
    weigh_nt_shifted(s, tile.key_count, problem_.rate(), u, max[row], key_u, max + tile.keys.start, out);
  }
}

// Row i of a tile of one peer, from cosines to weights; kl: the KL's weights of the row, or null.
template <typename T>
void Gradients<T>::weigh_row(int64_t peer, const Tile& tile, int64_t i, const T* kl, T* row, T* apart) const {
  const int64_t n = tile.key_count;
  if (!problem_.nt) {
    std::copy_n(kl, n, row);
    return;
  }
  T* nt = backward_.inner == nullptr ? row : apart;
  weigh_nt(peer, tile, i, row, nt);
  if (tile.diagonal && i < n) {
    nt[i] = 0;  // the image itself, or its positive, which finish() adds
  }
  if (backward_.inner != nullptr) {
    const T times = tile.keys_too() ? 2 : 1;  // a weight stands in two rows; a tile of a view with itself holds both
    inner(peer, 0)[tile.rows.start + i] += times * inner_product(nt, row, n, T{0});
    std::copy_n(nt, n, row);
  }
  if (kl != nullptr) {
    add_row(kl, n, row);
  }
}

// The tiles' cosines become weights of the peers that own a gradient.
template <typename T>
void Gradients<T>::weigh(const Tile& tile, Scratch& scratch) const {
  const int64_t n = tile.key_count, stride = tile.keys.rows;
  T* kl[2] = {scratch.rows.data(), scratch.rows.data() + stride};
  T* apart = scratch.rows.data() + 2 * stride;
  const bool with_kl = problem_.kl && tile.cross;
  for (int64_t i = 0; i < tile.row_count; ++i) {
    T* c[2] = {scratch.tiles.data() + i * stride, scratch.tiles.data() + tile_size() + i * stride};
    if (with_kl) {
      const Query<T> q = query(tile.rows.start + i);
      weigh_kl(c[0], c[1], n, q, kl[0], kl[1]);
      for (int64_t peer = 0; backward_.inner != nullptr && peer < backward_.owned(); ++peer) {
        inner(peer, 1)[tile.rows.start + i] += inner_product(kl[peer], c[peer], n, peer == 0 ? q.anchor_1 : q.anchor_2);
      }
    }
    for (int64_t peer = 0; peer < backward_.owned(); ++peer) {
      weigh_row(peer, tile, i, with_kl ? kl[peer] : nullptr, c[peer], apart);
    }
  }
}

template <typename T>
void Gradients<T>::add(const Tile& tile, Scratch& scratch) const {
  for (int64_t peer = 0; peer < problem_.peers; ++peer) {
    const bool read = peer < backward_.owned() || tile.cross;  // a constant teacher's own views do not matter
    if (read) {
      peers_[peer].similarities(tile.rows, tile.keys, scratch.tiles.data() + peer * tile_size());
    }
  }
  weigh(tile, scratch);
  for (int64_t peer = 0; peer < backward_.owned(); ++peer) {
    const Operand<T>& operand = peers_[peer];
    const T* tile_weights = scratch.tiles.data() + peer * tile_size();
    const auto weights = operand.prepare(tile_weights, tile.rows, tile.keys, scratch.narrow);
    const auto at_block = [&](const std::vector<at::Tensor>& sums, Block block) {
      return sums[peer].template mutable_data_ptr<T>() + block.start * operand.width();
    };
    operand.add_to_rows(weights, tile.rows, tile.keys, at_block(backward_.sums, tile.rows));
    if (tile.keys_too()) {
      operand.add_to_keys(weights, tile.rows, tile.keys, at_block(backward_.key_sums, tile.keys));
    }
  }
}

template <typename T>
void Gradients<T>::finish() const {
  for_each_block(problem_.geometry, [&](const View& view, int64_t block) {
    for (int64_t peer = 0; peer < backward_.owned(); ++peer) {
      finish_block(view, block, peer);
    }
  });
}

template <typename T>
void Gradients<T>::finish_block(const View& view, int64_t block, int64_t peer) const {
  const bool in_b = &view == &problem_.geometry.b;
  const at::ScalarType type = backward_.gradients[2 * peer + in_b].scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "dogo_fast gradient", [&] {
    finish_rows<scalar_t>(view, block, peer);
  });
}

// How strongly the two views of image i pull at each other.
template <typename T>
T Gradients<T>::pull(int64_t peer, int64_t i) const {
  const View &a = problem_.geometry.a, &b = problem_.geometry.b;
  const T* negatives = statistics_.nt_row(peer, kNegatives);
  return static_cast<T>(backward_.nt_coefficients[peer]) *
      (factor(a, i) * negatives[a.start + i] + factor(b, i) * negatives[b.start + i]);
}

// Both sums, the positives, and dz = (dẑ − ⟨dẑ, ẑ⟩ ẑ)/‖z‖ of the rows of a block.
template <typename T>
template <typename Out>
void Gradients<T>::finish_rows(const View& view, int64_t block, int64_t peer) const {
  const Operand<T>& operand = peers_[peer];
  const int64_t width = operand.width(), first = view.start + view.first(block);
  const View& other = &view == &problem_.geometry.a ? problem_.geometry.b : problem_.geometry.a;
  const at::Tensor& out = backward_.gradients[2 * peer + (&view == &problem_.geometry.b)];
  Out* gradients = out.mutable_data_ptr<Out>();
  const int64_t columns = out.size(1);
  T* sums = backward_.sums[peer].template mutable_data_ptr<T>() + first * width;
  const T* panel = backward_.key_sums[peer].template const_data_ptr<T>() + first * width;
  add_transposed(panel, view.block, width, sums);
  Buffer<T> row(width), positive(width);
  for (int64_t i = 0; i < view.count(block); ++i) {
    const int64_t index = view.first(block) + i;
    T* dz = sums + i * width;
    operand.load_row(view.start + index, row.data());
    if (problem_.nt) {
      operand.load_row(other.start + index, positive.data());
      const T strength = pull(peer, index);
      if (backward_.inner != nullptr) {
        inner(peer, 0)[view.start + index] -= strength * inner_product(positive.data(), row.data(), width, T{0});
      }
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        dz[j] -= strength * positive[j];
      }
    }
    const T scale = backward_.inverse_norm[peer * statistics_.padded + view.start + index];
    const bool clamped = scale >= static_cast<T>(kClampedInverseNorm);
    const T along = clamped ? T{0} : inner_product(dz, row.data(), width, T{0});
    Out* gradient = gradients + index * columns;
    for (int64_t j = 0; j < columns; ++j) {
      gradient[j] = static_cast<Out>((dz[j] - along * row[j]) * scale);
    }
  }
}

}  // namespace

template <typename T>
int64_t add_gradients(
    const Problem<T>& problem, const std::vector<Operand<T>>& peers, const Statistics<T>& statistics,
    const Backward<T>& backward, int64_t step) {
  const Gradients<T> gradients(problem, peers, statistics, backward);
  if (step == 0) {
    gradients.clear();
  }
  const int64_t next = run_steps(
      problem, peers, 3, step, [&] { return gradients.make_scratch(); },
      [&](const Tile& tile, auto& scratch) { gradients.add(tile, scratch); });
  if (next < 0) {
    gradients.finish();
  }
  return next;
}

template int64_t add_gradients<float>(
    const Problem<float>&, const std::vector<Operand<float>>&, const Statistics<float>&, const Backward<float>&,
    int64_t);
template int64_t add_gradients<double>(
    const Problem<double>&, const std::vector<Operand<double>>&, const Statistics<double>&, const Backward<double>&,
    int64_t);

}  // namespace dogo_fast
