// One loss as both passes see it: sizes, temperatures, and the tiles of a task.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "geometry.h"
#include "products.h"

namespace dogo_fast {

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLn2 = 0.693147180559945309417;
constexpr double kClampedInverseNorm = 1e12;  // of a row shorter than 1e-12: F.normalize's clamp

// 2/τ up to which the shift of exp((s - m)/τ) may be the constant 1. From exp(-60), the smallest that can be, to a loss
// scale of 65536 over it and over τ, everything stays a normal float.
template <typename T>
constexpr double kStaticLimit = sizeof(T) == 4 ? 60.0 : 600.0;

// Multiply-adds times two after which a call returns, so that Python can look for an interruption: a tenth of a second
// or so a thread.
constexpr double kFlopPerCall = 1.5e10;

template <typename T>
struct Problem {
  Geometry geometry;
  int64_t peers = 1;
  bool nt = false;  // NT-Xent of every peer
  bool kl = false;  // between the two peers
  double temperature = 1.0;
  double kd_temperatures[2] = {1.0, 1.0};

  T rate() const { return static_cast<T>(kLog2E / temperature); }
  T kd_rate(int64_t peer) const { return static_cast<T>(kLog2E / kd_temperatures[peer]); }
  bool nt_static() const { return 2.0 / temperature <= kStaticLimit<T>; }
  Schedule schedule() const {
    const Geometry& g = geometry;
    return nt ? Schedule::symmetric(g.a.spans(), g.threads)
              : Schedule::rectangular(g.a.spans(), g.b.spans(), g.threads);
  }
};

// A tile of similarities: a block of rows by a block of keys.
struct Tile {
  Block rows, keys;                   // in the padded buffer
  int64_t row_count, key_count;       // real ones among them
  bool cross;                         // rows of view a, keys of view b; else both of one view
  bool diagonal;                      // row i and key i are the same image
  bool keys_too() const { return cross || !diagonal; }  // else the tile holds every pair twice already
};

inline Tile make_tile(const View& rows, int64_t r, const View& keys, int64_t c, bool cross) {
  const Block row_block{rows.start + rows.first(r), rows.block};
  const Block key_block{keys.start + keys.first(c), keys.block};
  return {row_block, key_block, rows.count(r), keys.count(c), cross, r == c};
}

// The tiles of a task. With NT-Xent every pair of images r <= c is met once: a_r a_c, b_r b_c, a_r b_c and a_c b_r.
template <typename T, typename F>
void for_each_tile(const Problem<T>& problem, const Schedule::Task& task, F&& f) {
  const View &a = problem.geometry.a, &b = problem.geometry.b;
  const int64_t r_stop = std::min((task.first + 1) * a.span, a.blocks());
  const int64_t c_stop = std::min((task.second + 1) * b.span, b.blocks());
  for (int64_t r = task.first * a.span; r < r_stop; ++r) {
    const bool alone = problem.nt && task.first == task.second;
    for (int64_t c = alone ? r : task.second * b.span; c < c_stop; ++c) {
      if (problem.nt) {
        f(make_tile(a, r, a, c, false));
        f(make_tile(b, r, b, c, false));
        if (r != c) {
          f(make_tile(a, c, b, r, true));
        }
      }
      f(make_tile(a, r, b, c, true));
    }
  }
}

// f(start, stop) within a row of n: all of it, or all but the pair of an image with itself.
template <typename F>
inline void without(bool leave_out, int64_t i, int64_t n, F&& f) {
  if (leave_out && i < n) {
    f(0, i);
    f(i + 1, n);
  } else {
    f(0, n);
  }
}

}  // namespace dogo_fast
