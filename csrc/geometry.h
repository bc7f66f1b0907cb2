// How rows are cut into blocks, blocks into spans, and which tasks may run at once.
//
// The rows of the two views lie one after the other in one padded buffer: view a, then view b, each with padding() rows
// of zeros behind, as many as the largest block there may be, so that where a row lies does not depend on how rows are
// cut. A tile is one block of rows by one block of keys; a span is a run of blocks, small enough that a pair of spans is
// a task for one thread. A task writes sums of its rows *and* of its keys (S = Sᵀ, and c_ij pulls on both â_i and
// b̂_j), so tasks that share a span must not run at once: the schedule walks steps of tasks that share none. The order
// of every sum is thereby fixed by the geometry alone; no atomics, no copy of the sums for each thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace dogo_fast {

// dogo_fast/ops/cpp_backend.py has the same numbers.
constexpr int64_t kLargestBlock = 128;
constexpr int64_t kSmallestBlock = 32;
constexpr int64_t kBlockMultiple = 16;

struct View {
  int64_t rows = 0;    // real rows
  int64_t block = 0;   // rows in a block, at most padding()
  int64_t start = 0;   // first row in the padded buffer
  int64_t span = 0;    // blocks in a span

  int64_t blocks() const { return (rows + block - 1) / block; }
  int64_t padding() const {
    const int64_t whole = (rows + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
    return std::clamp(whole, kSmallestBlock, kLargestBlock);
  }
  int64_t padded() const { return rows + padding(); }
  int64_t spans() const { return (blocks() + span - 1) / span; }
  // First row of a block within the view, and how many real rows it has.
  int64_t first(int64_t index) const { return index * block; }
  int64_t count(int64_t index) const { return std::min(block, rows - first(index)); }
};

struct Geometry {
  View a, b;
  int64_t threads = 1;

  int64_t padded() const { return a.padded() + b.padded(); }
};

// Tasks (span of rows, span of keys), in steps of at most `threads` of them that share no span.
class Schedule {
 public:
  using Task = std::pair<int64_t, int64_t>;

  // All pairs I <= J of spans of images (NT-Xent), or all queries by all keys (the similarity KL alone).
  static Schedule symmetric(int64_t spans, int64_t threads);
  static Schedule rectangular(int64_t row_spans, int64_t key_spans, int64_t threads);

  int64_t steps() const { return static_cast<int64_t>(steps_.size()); }
  const std::vector<Task>& step(int64_t index) const { return steps_[index]; }

 private:
  void add(const std::vector<Task>& round, int64_t threads);

  std::vector<std::vector<Task>> steps_;
};

inline void Schedule::add(const std::vector<Task>& round, int64_t threads) {
  const auto size = static_cast<int64_t>(round.size());
  for (int64_t start = 0; start < size; start += threads) {
    steps_.emplace_back(round.begin() + start, round.begin() + std::min(start + threads, size));
  }
}

// The rounds of a tournament in which everyone meets everyone once (the circle method), then everyone alone.
inline Schedule Schedule::symmetric(int64_t spans, int64_t threads) {
  Schedule schedule;
  const int64_t players = spans + spans % 2;  // the last may be nobody
  for (int64_t round = 0; round + 1 < players; ++round) {
    std::vector<Task> tasks;
    for (int64_t k = 0; k < players / 2; ++k) {
      const int64_t first = k == 0 ? players - 1 : (round + k) % (players - 1);
      const int64_t second = (round + players - 1 - k) % (players - 1);
      const auto [low, high] = std::minmax(first, second);
      if (high < spans) {
        tasks.emplace_back(low, high);
      }
    }
    schedule.add(tasks, threads);
  }
  std::vector<Task> alone;
  for (int64_t span = 0; span < spans; ++span) {
    alone.emplace_back(span, span);
  }
  schedule.add(alone, threads);
  return schedule;
}

inline Schedule Schedule::rectangular(int64_t row_spans, int64_t key_spans, int64_t threads) {
  Schedule schedule;
  const int64_t rounds = std::max(row_spans, key_spans);
  const int64_t tasks = std::min(row_spans, key_spans);
  for (int64_t round = 0; round < rounds; ++round) {
    std::vector<Task> shifted;
    for (int64_t k = 0; k < tasks; ++k) {
      const int64_t other = (k + round) % rounds;
      shifted.emplace_back(row_spans <= key_spans ? k : other, row_spans <= key_spans ? other : k);
    }
    schedule.add(shifted, threads);
  }
  return schedule;
}

}  // namespace dogo_fast
