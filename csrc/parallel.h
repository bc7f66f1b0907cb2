// What runs on all threads: torch's own, as many as torch.set_num_threads says.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstdint>
#include <vector>

#include "problem.h"

namespace dogo_fast {

// f(view, index of the block in it) for the blocks of both views.
template <typename F>
void for_each_block(const Geometry& geometry, F&& f) {
  const int64_t blocks_a = geometry.a.blocks();
  at::parallel_for(0, blocks_a + geometry.b.blocks(), 1, [&](int64_t start, int64_t stop) {
    for (int64_t block = start; block < stop; ++block) {
      if (block < blocks_a) {
        f(geometry.a, block);
      } else {
        f(geometry.b, block - blocks_a);
      }
    }
  });
}

// Run the steps of the schedule from `step` on until the work of one call is done; returns the step to go on with, or -1
// at the end. run(tile, scratch) for every tile; make_scratch() once a task; `products`: matrix products a tile, of each
// peer.
template <typename T, typename MakeScratch, typename Run>
int64_t run_steps(
    const Problem<T>& problem, const std::vector<Operand<T>>& peers, int64_t products, int64_t step,
    MakeScratch&& make_scratch, Run&& run) {
  const Geometry& g = problem.geometry;
  const Schedule schedule = problem.schedule();
  int64_t width = 0;
  for (const Operand<T>& peer : peers) {
    width += peer.width();
  }
  // of one task: with NT-Xent four tiles a pair of blocks
  const auto pairs = static_cast<double>(g.a.span * g.a.block * g.b.span * g.b.block * (problem.nt ? 4 : 1));
  const double flop_per_step = 2 * pairs * static_cast<double>(width * products);
  double flop = 0;
  for (; step < schedule.steps() && flop < kFlopPerCall; ++step, flop += flop_per_step) {
    const std::vector<Schedule::Task>& tasks = schedule.step(step);
    at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t start, int64_t stop) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      auto scratch = make_scratch();
      for (int64_t task = start; task < stop; ++task) {
        for_each_tile(problem, tasks[task], [&](const Tile& tile) { run(tile, scratch); });
      }
      for (const Operand<T>& peer : peers) {
        peer.release();
      }
    });
  }
  return step == schedule.steps() ? -1 : step;
}

}  // namespace dogo_fast
