// Forward of NT-Xent, similarity KL and the whole DoGo loss: statistics of rows, then values. Backward: dogo_backward.cpp.
//
// Peer p has normalised rows ẑ = [â; b̂], 2N of them for NT-Xent, R queries and C keys for the KL; s_ij = ⟨ẑ_i, ẑ_j⟩,
// c_ij = ⟨â_i, b̂_j⟩; exponentials in base 2 (rate = log₂ e / temperature).
//
//     NT-Xent     r_i = Σ_{j≠i,pos(i)} exp((s_ij − m_i)/τ)          nt_i = log(1 + r_i exp((m_i − s_{i,pos(i)})/τ))
//     KL          E_p,i = Σ_j exp(x_p,ij),  x_p,ij = (c_p,ij − m_p,i)/T_p          Δ_ij = x_1,ij − x_2,ij
//                 X_1,i = Σ_j exp(x_1,ij) Δ_ij                      KL(P₁ ‖ P₂)_i = X_1/E_1 − log(E_1/E_2)
//                 X_2,i = Σ_j exp(x_2,ij) Δ_ij                      KL(P₂ ‖ P₁)_i = log(E_1/E_2) − X_2/E_2
//
// The shift m is subtracted before the division by the temperature, which keeps the exponent of a confident positive
// exact. For NT-Xent it is the constant 1 (a cosine cannot exceed 1) where 2/τ is at most kStaticLimit, else the running
// maximum of the row. For the KL it is always the running maximum: it costs no exponential more, Δ then has no part that
// all keys of a row share, which would cancel between X/E and log(E_1/E_2), and equal distributions, of however different
// cosines, give exactly 0.
//
// S is symmetric: a tile of NT-Xent is multiplied once and summed along its rows and along its keys; with the constant
// shift both take the same exponentials.
//
// Legend of the statistics, of type T (float, double for double inputs), kind by kind:
//     nt [peers, (r, m, s_pos), padded]        becomes (1/l, m, q), where l = r + exp((s_pos − m)/τ) and q = r/l = 1 − p_pos
//     kl [2, (E, X, m), padded of view a]      becomes (1/E, X/E, m)
//
// Memory beside them: one panel of a peer's rows, and for each thread one tile a peer. Nothing of size N × N; every sum
// has one order, so two runs with the same number of threads give the same bits.
#include <algorithm>
#include <cmath>

#include "exp2.h"
#include "parallel.h"
#include "passes.h"

namespace dogo_fast {
namespace {

constexpr int kSum = 0, kMax = 1, kPositive = 2;  // kinds of nt
constexpr int kE = 0, kX = 1, kKlMax = 2;         // kinds of kl
constexpr int64_t kRowsPerPart = 256;             // rows whose values are summed together

// Below every cosine, rounding included: the shift of a row that has seen no key yet.
constexpr double kNoKeyYet = -2.0;

// Σ_j exp((s_j − m)/τ).
template <typename T>
T sum_exponentials(const T* s, int64_t n, T m, T rate) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += exp2((s[j] - m) * rate);
  }
  return sum;
}

// The same with m = 1, each term also added to its key's sum.
template <typename T>
T share_exponentials(const T* s, int64_t n, T rate, T* key_sums) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T e = exp2((s[j] - 1) * rate);
    sum += e;
    key_sums[j] += e;
  }
  return sum;
}

template <typename T>
T maximum(const T* s, int64_t n, T largest) {
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < n; ++j) {
    largest = s[j] > largest ? s[j] : largest;
  }
  return largest;
}

// Where the sums and maxima of a view's rows begin.
template <typename T>
struct NTRows {
  T* sum;
  T* max;
};

template <typename T>
void add_nt_static(const Tile& tile, const T* s, T rate, NTRows<T> rows, NTRows<T> keys, T* buffer) {
  std::fill_n(buffer, tile.key_count, T{0});
  for (int64_t i = 0; i < tile.row_count; ++i, s += tile.keys.rows) {
    without(tile.diagonal, i, tile.key_count, [&](int64_t start, int64_t stop) {
      rows.sum[i] += tile.keys_too() ? share_exponentials(s + start, stop - start, rate, buffer + start)
                                     : sum_exponentials(s + start, stop - start, T{1}, rate);
    });
  }
  if (tile.keys_too()) {
    for (int64_t j = 0; j < tile.key_count; ++j) {
      keys.sum[j] += buffer[j];
    }
  }
}

// A maximum that rises takes its sum along.
template <typename T>
void raise(T& sum, T& max, T to, T rate) {
  sum *= exp2((max - to) * rate);
  max = to;
}

template <typename T>
void add_nt_running_rows(const Tile& tile, const T* s, T rate, NTRows<T> rows) {
  for (int64_t i = 0; i < tile.row_count; ++i, s += tile.keys.rows) {
    T largest = rows.max[i];
    without(tile.diagonal, i, tile.key_count, [&](int64_t start, int64_t stop) {
      largest = maximum(s + start, stop - start, largest);
    });
    raise(rows.sum[i], rows.max[i], largest, rate);
    without(tile.diagonal, i, tile.key_count, [&](int64_t start, int64_t stop) {
      rows.sum[i] += sum_exponentials(s + start, stop - start, largest, rate);
    });
  }
}

template <typename T>
void add_nt_running_keys(const Tile& tile, const T* s, T rate, NTRows<T> keys, T* buffer) {
  const int64_t stride = tile.keys.rows;
  std::copy_n(keys.max, tile.key_count, buffer);
  for (int64_t i = 0; i < tile.row_count; ++i) {
    without(tile.diagonal, i, tile.key_count, [&](int64_t start, int64_t stop) {
#pragma omp simd
      for (int64_t j = start; j < stop; ++j) {
        buffer[j] = s[i * stride + j] > buffer[j] ? s[i * stride + j] : buffer[j];
      }
    });
  }
  for (int64_t j = 0; j < tile.key_count; ++j) {
    raise(keys.sum[j], keys.max[j], buffer[j], rate);
  }
  for (int64_t i = 0; i < tile.row_count; ++i) {
    without(tile.diagonal, i, tile.key_count, [&](int64_t start, int64_t stop) {
#pragma omp simd
      for (int64_t j = start; j < stop; ++j) {
        keys.sum[j] += exp2((s[i * stride + j] - keys.max[j]) * rate);
      }
    });
  }
}

// Add a tile of one peer's cosines to the statistics of its rows and, where they are others, of its keys.
template <typename T>
void add_nt(
    const Problem<T>& problem, const Statistics<T>& statistics, int64_t peer, const Tile& tile, const T* s, T* buffer) {
  const auto at_block = [&](Block block) {
    return NTRows<T>{
        statistics.nt_row(peer, kSum) + block.start, statistics.nt_row(peer, kMax) + block.start};
  };
  if (tile.cross && tile.diagonal) {
    for (int64_t i = 0; i < tile.row_count; ++i) {
      const T positive = s[i * tile.keys.rows + i];
      statistics.nt_row(peer, kPositive)[tile.rows.start + i] = positive;
      statistics.nt_row(peer, kPositive)[tile.keys.start + i] = positive;
    }
  }
  if (problem.nt_static()) {
    add_nt_static(tile, s, problem.rate(), at_block(tile.rows), at_block(tile.keys), buffer);
    return;
  }
  add_nt_running_rows(tile, s, problem.rate(), at_block(tile.rows));
  if (tile.keys_too()) {
    add_nt_running_keys(tile, s, problem.rate(), at_block(tile.keys), buffer);
  }
}

template <typename T>
struct KLRow {
  T e_1, x_1, e_2, x_2;
};

// What n keys add to a row.
template <typename T>
KLRow<T> sum_kl(const T* c_1, const T* c_2, int64_t n, T m_1, T m_2, T rate_1, T rate_2) {
  T e_1 = 0, x_1 = 0, e_2 = 0, x_2 = 0;
#pragma omp simd reduction(+ : e_1, x_1, e_2, x_2)
  for (int64_t j = 0; j < n; ++j) {
    const T logit_1 = (c_1[j] - m_1) * rate_1;
    const T logit_2 = (c_2[j] - m_2) * rate_2;
    const T delta = logit_1 - logit_2;
    const T first = exp2(logit_1), second = exp2(logit_2);
    e_1 += first;
    e_2 += second;
    x_1 += first * delta;
    x_2 += second * delta;
  }
  return {e_1, x_1, e_2, x_2};
}

// Add a tile of both peers' cosines to the statistics of its queries.
template <typename T>
void add_kl(const Problem<T>& problem, const Statistics<T>& statistics, const Tile& tile, const T* c_1, const T* c_2) {
  const auto at_row = [&](int64_t peer, int64_t kind) { return statistics.kl_row(peer, kind) + tile.rows.start; };
  T *e_1 = at_row(0, kE), *x_1 = at_row(0, kX), *m_1 = at_row(0, kKlMax);
  T *e_2 = at_row(1, kE), *x_2 = at_row(1, kX), *m_2 = at_row(1, kKlMax);
  const T rate_1 = problem.kd_rate(0), rate_2 = problem.kd_rate(1);
  const int64_t n = tile.key_count;
  for (int64_t i = 0; i < tile.row_count; ++i, c_1 += tile.keys.rows, c_2 += tile.keys.rows) {
    const T to_1 = maximum(c_1, n, m_1[i]), to_2 = maximum(c_2, n, m_2[i]);
    const T moved_1 = (m_1[i] - to_1) * rate_1, moved_2 = (m_2[i] - to_2) * rate_2;
    // the means of Δ in the sums so far move with the maxima
    x_1[i] += e_1[i] * (moved_1 - moved_2);
    x_2[i] += e_2[i] * (moved_1 - moved_2);
    raise(x_1[i], m_1[i], to_1, rate_1);
    raise(x_2[i], m_2[i], to_2, rate_2);
    e_1[i] *= exp2(moved_1);
    e_2[i] *= exp2(moved_2);
    const KLRow<T> added = sum_kl(c_1, c_2, n, to_1, to_2, rate_1, rate_2);
    e_1[i] += added.e_1;
    x_1[i] += added.x_1;
    e_2[i] += added.e_2;
    x_2[i] += added.x_2;
  }
}

// log(1 + exp(x)) without overflow, and exact where exp(x) is tiny.
template <typename T>
T softplus(T x) {
  return std::max(x, T{0}) + std::log1p(std::exp(-std::abs(x)));  // in this order std::max keeps a NaN
}

template <typename T>
T finish_nt_row(const Problem<T>& problem, T& sum, T& max, T& positive) {
  const T rate = problem.rate();
  const T value = softplus(std::log(sum) + (max - positive) * (rate * static_cast<T>(kLn2)));
  if (!problem.nt_static()) {
    raise(sum, max, std::max(max, positive), rate);
  }
  const T total = sum + exp2((positive - max) * rate);
  const T negatives = sum / total;
  sum = 1 / total;
  positive = negatives;
  return value;
}

// NT-Xent of the rows start .. stop of a view, summed; the positive of an unfinished row is read from its own place.
template <typename T>
double finish_nt(
    const Problem<T>& problem, const Statistics<T>& statistics, int64_t peer, const View& view, int64_t start,
    int64_t stop, T* rows) {
  double total = 0;
  for (int64_t i = start; i < stop; ++i) {
    const int64_t row = view.start + i;
    const T value = finish_nt_row(
        problem, statistics.nt_row(peer, kSum)[row], statistics.nt_row(peer, kMax)[row],
        statistics.nt_row(peer, kPositive)[row]);
    total += value;
    if (rows != nullptr) {
      rows[i] = value;
    }
  }
  return total;
}

template <typename T>
std::pair<double, double> finish_kl(const Statistics<T>& statistics, int64_t start, int64_t stop, T* rows) {
  double total_1 = 0, total_2 = 0;
  for (int64_t i = start; i < stop; ++i) {
    T &e_1 = statistics.kl_row(0, kE)[i], &x_1 = statistics.kl_row(0, kX)[i];
    T &e_2 = statistics.kl_row(1, kE)[i], &x_2 = statistics.kl_row(1, kX)[i];
    const T normalizers = std::log(e_1 / e_2);
    x_1 /= e_1;
    x_2 /= e_2;
    const T kl_1 = normalizers - static_cast<T>(kLn2) * x_2;
    const T kl_2 = static_cast<T>(kLn2) * x_1 - normalizers;
    e_1 = 1 / e_1;
    e_2 = 1 / e_2;
    total_1 += kl_1;
    total_2 += kl_2;
    if (rows != nullptr) {
      rows[i] = kl_1;
    }
  }
  return {total_1, total_2};
}

// Σ over the rows 0 .. n of f(start, stop), parts of fixed size added in order.
template <typename F>
std::pair<double, double> sum_in_parts(int64_t n, F&& f) {
  const int64_t parts = (n + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<std::pair<double, double>> sums(parts);
  at::parallel_for(0, parts, 1, [&](int64_t start, int64_t stop) {
    for (int64_t part = start; part < stop; ++part) {
      sums[part] = f(part * kRowsPerPart, std::min((part + 1) * kRowsPerPart, n));
    }
  });
  std::pair<double, double> total{0, 0};
  for (const auto& [first, second] : sums) {
    total.first += first;
    total.second += second;
  }
  return total;
}

}  // namespace

template <typename T>
void clear_statistics(const Problem<T>& problem, const Statistics<T>& statistics) {
  if (problem.nt) {
    for (int64_t peer = 0; peer < problem.peers; ++peer) {
      std::fill_n(statistics.nt_row(peer, kSum), statistics.padded, T{0});
      std::fill_n(
          statistics.nt_row(peer, kMax), statistics.padded, problem.nt_static() ? T{1} : static_cast<T>(kNoKeyYet));
      std::fill_n(statistics.nt_row(peer, kPositive), statistics.padded, T{0});
    }
  }
  if (problem.kl) {
    for (int64_t peer = 0; peer < 2; ++peer) {
      std::fill_n(statistics.kl_row(peer, kE), 2 * statistics.padded_a, T{0});
      std::fill_n(statistics.kl_row(peer, kKlMax), statistics.padded_a, static_cast<T>(kNoKeyYet));
    }
  }
}

template <typename T>
int64_t add_statistics(
    const Problem<T>& problem, const std::vector<Operand<T>>& peers, const Statistics<T>& statistics, int64_t step) {
  const int64_t size = problem.geometry.a.block * problem.geometry.b.block;
  struct Scratch {
    Buffer<T> tiles, keys;
  };
  return run_steps(
      problem, peers, 1, step,
      [&] { return Scratch{Buffer<T>(problem.peers * size), Buffer<T>(problem.geometry.b.block)}; },
      [&](const Tile& tile, Scratch& scratch) {
        for (int64_t peer = 0; peer < problem.peers; ++peer) {
          T* s = scratch.tiles.data() + peer * size;
          peers[peer].similarities(tile.rows, tile.keys, s);
          if (problem.nt) {
            add_nt(problem, statistics, peer, tile, s, scratch.keys.data());
          }
        }
        if (problem.kl && tile.cross) {
          add_kl(problem, statistics, tile, scratch.tiles.data(), scratch.tiles.data() + size);
        }
      });
}

template <typename T>
Values finish_statistics(const Problem<T>& problem, const Statistics<T>& statistics, T* rows) {
  Values values;
  if (problem.nt) {
    for (int64_t peer = 0; peer < problem.peers; ++peer) {
      for (const View* view : {&problem.geometry.a, &problem.geometry.b}) {
        T* view_rows = rows == nullptr || view == &problem.geometry.a ? rows : rows + problem.geometry.a.rows;
        values.nt_xent[peer] += sum_in_parts(view->rows, [&](int64_t start, int64_t stop) {
          return std::pair{finish_nt(problem, statistics, peer, *view, start, stop, view_rows), 0.0};
        }).first;
      }
    }
  }
  if (problem.kl) {
    const auto [kl_1, kl_2] = sum_in_parts(problem.geometry.a.rows, [&](int64_t start, int64_t stop) {
      return finish_kl(statistics, start, stop, rows);
    });
    values.kl[0] = kl_1;
    values.kl[1] = kl_2;
  }
  return values;
}

template void clear_statistics<float>(const Problem<float>&, const Statistics<float>&);
template void clear_statistics<double>(const Problem<double>&, const Statistics<double>&);
template int64_t add_statistics<float>(
    const Problem<float>&, const std::vector<Operand<float>>&, const Statistics<float>&, int64_t);
template int64_t add_statistics<double>(
    const Problem<double>&, const std::vector<Operand<double>>&, const Statistics<double>&, int64_t);
template Values finish_statistics<float>(const Problem<float>&, const Statistics<float>&, float*);
template Values finish_statistics<double>(const Problem<double>&, const Statistics<double>&, double*);

}  // namespace dogo_fast
